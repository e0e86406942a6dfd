package sandbox

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"naru/sandbox/build"
	"naru/sandbox/network"
)

// The hostile builds: Dockerfiles that want to harm the machine, each with the end that
// it must have, and after each a look at whether anything but that build changed: a
// tree of files outside, mounts, links, rules, cgroups, processes, services of the
// host. They run in namespaces of their own, whose network leads nowhere.
//
// go test takes a third of those that are not slow; `make hostile` (NARU_HOSTILE=all) runs all, beside
// an app under load, and prints what that felt.
const (
	hostileVariable = "NARU_TEST_HOSTILE" // "init" or "inside": where in the namespaces a process is
	hostileAll      = "NARU_HOSTILE"
	hostileServer   = "NARU_TEST_SERVER"
	hostileFlood    = "NARU_TEST_FLOOD"
	hostileClient   = "NARU_TEST_CLIENT"
)

func TestHostileBuilds(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHostileInside$", "-test.v", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), hostileVariable+"=init")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if os.Getenv(hostileAll) != "" {
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
}

// hostileIfAsked makes this process the first of the namespaces, or a program of a
// build or an app.
func hostileIfAsked() {
	switch {
	case os.Getenv(hostileServer) != "":
		fmt.Println(serveApp())
		os.Exit(1)
	case os.Getenv(hostileClient) != "":
		if err := askApp(os.Getenv(hostileClient)); err != nil {
			fmt.Fprintln(os.Stderr, "clients:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv(hostileFlood) != "":
		flood(os.Getenv(hostileFlood))
		os.Exit(0)
	case os.Getenv(hostileVariable) == "init":
		code, err := hostileInit()
		if err != nil {
			fmt.Fprintln(os.Stderr, "hostile builds:", err)
		}
		os.Exit(code)
	}
}

func hostileInit() (int, error) {
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, "")); err != nil {
		return 1, err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	// The host's own address, and the cloud's metadata service as one of them.
	uplink := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}}
	if err == nil {
		err = netlink.LinkAdd(uplink)
	}
	for _, a := range []string{"192.0.2.2/24", "169.254.169.254/32"} {
		addr, parseErr := netlink.ParseAddr(a)
		if err = errors.Join(err, parseErr); err == nil {
			err = netlink.AddrAdd(uplink, addr)
		}
	}
	if err = errors.Join(err, netlink.LinkSetUp(uplink), os.Setenv(hostileVariable, "inside")); err != nil {
		return 1, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 1, err
	}
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if got == pid {
			return ws.ExitStatus(), nil
		}
		if err != nil && err != syscall.EINTR {
			return 1, err
		}
	}
}

// hostileCase is one build.
type hostileCase struct {
	name string
	file string            // after FROM busybox; CANARY, GATEWAY, APP are replaced
	ctx  map[string]string // more files; "name@" is a link
	data map[string][]byte
	o    func(*build.Options)
	// want is the reason that ends it, "" for success, or "error:" and a part of the
	// message; several, separated by "|", where the kernel or chance decides.
	want string
	out  string // regexp that the output must match
	slow bool   // left out of go test
}

// hostileWorld is what the builds must not change.
type hostileWorld struct {
	t       *testing.T
	e       *Engine
	canary  string
	replace *strings.Replacer
	reached atomic.Int64 // connections to services of the host
	self    []byte       // this program
}

func newHostileWorld(t *testing.T) *hostileWorld {
	w := &hostileWorld{t: t, e: newEngine(t), canary: filepath.Join(t.TempDir(), "canary")}
	must(t, os.MkdirAll(filepath.Join(w.canary, "dir"), 0o777))
	must(t, os.Chmod(w.canary, 0o777))
	put(t, w.canary, "secret", "SECRET-OF-THE-HOST")
	put(t, w.canary, "Dockerfile", "FROM busybox\n")
	put(t, w.canary, "dir/file", "file")
	var err error
	w.self, err = os.ReadFile("/proc/self/exe")
	must(t, err)
	for _, addr := range []string{"0.0.0.0:8088", "169.254.169.254:80", "[::]:8089"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Logf("no service at %s: %v", addr, err)
			continue
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w.reached.Add(1)
				_ = c.Close()
			}
		}()
	}
	_, log, err := w.build(hostileCase{file: "RUN --network=default true", name: "first"})
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	n, err := w.e.Networks().Inspect(networkBuild)
	must(t, err)
	w.replace = strings.NewReplacer("CANARY", w.canary, "GATEWAY", n.Gateway.String(), "APP", w.neighbour())
	return w
}

// neighbour is another container, with a service, in the default network.
func (w *hostileWorld) neighbour() string {
	c, err := w.e.Run(w.t.Context(), ContainerConfig{
		Image: "busybox", Args: []string{"sh", "-c", "mkdir /www; echo APP-CONTENT > /www/index.html; exec httpd -f -p 8080 -h /www"}, Network: network.Default,
	}, Stdio{})
	must(w.t, err)
	eventually(w.t, "the neighbour serves", func() bool {
		conn, err := net.DialTimeout("tcp", c.Address.String()+":8080", time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return c.Address.String() + ":8080"
}

func (w *hostileWorld) build(c hostileCase) (build.Options, string, error) {
	w.t.Helper()
	replace := func(s string) string {
		if w.replace == nil {
			return s
		}
		return w.replace.Replace(s)
	}
	files := map[string]string{}
	if !strings.HasPrefix(c.name, "Dockerfile") {
		files["Dockerfile"] = "FROM busybox\n" + replace(c.file) + "\n"
	}
	for name, data := range c.ctx {
		files[name] = replace(data)
	}
	dir := writeContext(w.t, files)
	for name, data := range c.data {
		must(w.t, os.WriteFile(filepath.Join(dir, name), data, 0o755))
	}
	if strings.Contains(c.file, "/src/self") {
		must(w.t, os.WriteFile(filepath.Join(dir, "self"), w.self, 0o755))
	}
	o := build.Options{
		Context: dir, Network: networkBuild, Owner: "hostile", Secrets: map[string][]byte{"token": []byte("hush-hush-value")},
		Memory: 64 << 20, Pids: 64, CPUs: 1, Disk: 96 << 20, Inodes: 10_000, Timeout: 20 * time.Second, StepTimeout: 10 * time.Second,
	}
	if c.o != nil {
		c.o(&o)
	}
	_, log, err := buildIn(w.t, w.e, o)
	return o, log, err
}

// TestHostileInside runs the table.
func TestHostileInside(t *testing.T) {
	if os.Getenv(hostileVariable) != "inside" {
		t.Skip("TestHostileBuilds runs this in namespaces of its own")
	}
	w := newHostileWorld(t)
	all := os.Getenv(hostileAll) != ""
	list := hostileCases()
	if len(list) < 100 {
		t.Errorf("only %d hostile builds", len(list))
	}
	var load *appLoad
	if all {
		load = w.startLoad()
	}
	before := w.snapshot()
	done := 0
	for i, c := range list {
		if !all && (c.slow || i%3 != 0) {
			continue
		}
		done++
		t.Run(c.name, func(t *testing.T) {
			start := time.Now()
			_, log, err := w.build(c)
			if bad := c.judge(log, err); bad != "" {
				t.Errorf("%s\nerror: %v\n%s", bad, err, lastOf(log))
			}
			if strings.Contains(log, "SECRET-OF-THE-HOST") || strings.Contains(log, "hush-hush") {
				t.Errorf("the output has a secret:\n%s", lastOf(log))
			}
			if n := w.reached.Load(); n > 0 {
				t.Errorf("it reached a service of the host")
			}
			if !all {
				before = w.compare(t, before)
				return
			}
			t.Logf("%6.2f s  %v", time.Since(start).Seconds(), err)
		})
		if load != nil && load.built(t) { // not while the clients ask: to look is work for the machine
			before = w.compare(t, before)
			load.beCalm(t)
		}
	}
	t.Logf("%d hostile builds", done)
	if load != nil {
		w.compare(t, before)
		load.report(t)
	}
}

// compare says what has changed since before, and returns how it is now.
func (w *hostileWorld) compare(t *testing.T, before map[string]string) (after map[string]string) {
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) { // the kernel takes links away by and by
		if after = w.snapshot(); equalMaps(before, after) || time.Now().After(deadline) {
			break
		}
	}
	for what, was := range before {
		if after[what] != was {
			t.Errorf("%s changed:\n%s\nbefore:\n%s", what, after[what], was)
		}
	}
	return after
}

func equalMaps(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func lastOf(log string) string { return log[max(0, len(log)-4000):] }

// judge says what is wrong with an end.
func (c hostileCase) judge(log string, err error) string {
	if c.out != "" && !regexp.MustCompile(c.out).MatchString(log) {
		return "the output does not match " + c.out
	}
	failed := (*build.StepError)(nil)
	for want := range strings.SplitSeq(c.want, "|") {
		text, isText := strings.CutPrefix(want, "error:")
		switch {
		case want == "" && err == nil:
			return ""
		case isText && err != nil && strings.Contains(err.Error(), text):
			return ""
		case want != "" && errors.As(err, &failed) && failed.Reason == build.Reason(want):
			return ""
		}
	}
	return fmt.Sprintf("want the end %q", c.want)
}

// snapshot is all that no build may change.
func (w *hostileWorld) snapshot() map[string]string {
	s := map[string]string{"files outside": w.tree(), "cgroups": w.cgroups()}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(w.t, err)
	s["mounts"] = string(mounts)
	links, err := netlink.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // a veth went meanwhile
		links, err = netlink.LinkList()
	}
	must(w.t, err)
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	s["links"] = strings.Join(names, " ")
	if rules, err := exec.Command("nft", "list", "ruleset").Output(); err == nil {
		s["rules"] = string(rules)
	}
	s["processes"] = w.processes()
	for what, dir := range map[string]string{"containers": w.e.containersDir(), "run directory": filepath.Join(w.e.run, "c"), "unfinished layers": filepath.Join(w.e.root, "images", "tmp")} {
		list, _ := os.ReadDir(dir)
		s[what] = fmt.Sprint(list)
	}
	return s
}

// tree describes the canary.
func (w *hostileWorld) tree() string {
	var b strings.Builder
	err := filepath.WalkDir(w.canary, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, p, info.Mode(), info.ModTime().UnixNano())
		if d.Type().IsRegular() {
			data, err := os.ReadFile(p)
			fmt.Fprintf(&b, "%x\n", sha256.Sum256(data))
			return err
		}
		return nil
	})
	must(w.t, err)
	return b.String()
}

func (w *hostileWorld) cgroups() string {
	var left []string
	for _, place := range []string{"/sys/fs/cgroup/*/naru-", "/sys/fs/cgroup/naru-"} {
		found, err := filepath.Glob(place + w.e.hash + "/*")
		must(w.t, err)
		for _, p := range found {
			if info, err := os.Stat(p); err == nil && info.IsDir() {
				left = append(left, p)
			}
		}
	}
	return strings.Join(left, "\n")
}

// processes are those of the namespace but nft's, which has just looked.
func (w *hostileWorld) processes() string {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	must(w.t, err)
	var list []string
	for _, d := range dirs {
		if line, err := os.ReadFile(d + "/cmdline"); err == nil && len(line) > 0 {
			list = append(list, filepath.Base(d)+" "+string(bytes.ReplaceAll(line[:min(len(line), 60)], []byte{0}, []byte{' '})))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// archive is a tar with what BuildKit's and others' extractors have fallen for.
func archive(entries ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		data := []byte(nil)
		if h.Typeflag == tar.TypeReg {
			data = []byte("evil")
			h.Size = int64(len(data))
		}
		h.Mode = 0o777
		_ = w.WriteHeader(&h) // a test's own headers fit
		_, _ = w.Write(data)
	}
	_ = w.Close()
	return b.Bytes()
}

// bomb is a small archive of a large file.
func bomb(size int64) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	_ = w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Size: size, Mode: 0o644})
	block := bytes.Repeat([]byte{1}, 1<<20)
	for n := int64(0); n < size; n += int64(len(block)) {
		_, _ = w.Write(block)
	}
	_ = errors.Join(w.Close(), z.Close())
	return b.Bytes()
}

// flood sends datagrams as fast as it can, for a second.
func flood(to string) {
	var d net.Dialer
	conn, err := d.DialContext(context.Background(), "udp", to)
	if err != nil {
		fmt.Println("flood:", err)
		return
	}
	data := make([]byte, 1200)
	n := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); n++ {
		_, _ = conn.Write(data)
	}
	fmt.Println("sent", n > 100)
}
