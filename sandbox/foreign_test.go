package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/image"
	"naru/sandbox/network"
	"naru/sandbox/runtime"
	"naru/sandbox/runtime/cgroup"
)

// needRunc is Debian's runc, the other runtime of these tests. With `naru oci` as the
// other one, the verbs are tested in package cli.
func needRunc(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("the other runtime is runc: ", err)
	}
	return path
}

// foreignEngine is an engine that must leave no directory of its name in any hierarchy:
// other runtimes enter all of them.
func foreignEngine(t *testing.T) *Engine {
	t.Helper()
	needRoot(t)
	var e *Engine
	t.Cleanup(func() { // after the engine's own
		if e == nil {
			return
		}
		if left, err := filepath.Glob("/sys/fs/cgroup/*/naru-" + e.hash); err != nil || len(left) > 0 {
			t.Errorf("cgroups are left: %v, %v", left, err)
		}
	})
	e = newEngine(t)
	return e
}

// withRunc is a container of runc that runs a shell script.
func withRunc(t *testing.T, script string) ContainerConfig {
	c := sh(script)
	c.Runtime = needRunc(t)
	return c
}

// plantMarker makes a file on the host, and returns its path and a script that makes
// another one at the same path in a container.
func plantMarker(t *testing.T) (path, script string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "marker")
	for name, text := range map[string]string{"marker": "host\n", "only-host": "host\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return path, fmt.Sprintf("mkdir -p %s; echo container > %s; ", dir, path)
}

// runtimePid is the process of the other runtime, which has the host's files.
func runtimePid(t *testing.T, e *Engine, id string) int {
	t.Helper()
	rt, err := e.open(id)
	if err != nil || rt == nil {
		t.Fatalf("open: %v, %v", rt, err)
	}
	defer rt.Close()
	return rt.Pid()
}

// TestForeignVerbs goes through all that looks into a running container. The process
// that its state names has the host's root, so whatever looks by that is wrong.
func TestForeignVerbs(t *testing.T) {
	e := foreignEngine(t)
	marker, script := plantMarker(t)
	c := withRunc(t, script+"echo ready; while :; do sleep 1; done")
	c.Mounts = []Mount{{Source: "data", Target: "/data", Volume: true}, {Target: "/scratch", Tmpfs: true}}
	c.Memory = 64 << 20
	made := runReady(t, e, c)
	if made.Config.Runtime != needRunc(t) || made.Pid == 0 || made.Pid == runtimePid(t, e, made.ID) {
		t.Errorf("runtime %q, pid %d", made.Config.Runtime, made.Pid)
	}
	if len(made.Warnings) == 0 || !strings.Contains(made.Warnings[0], "without a user namespace") {
		t.Errorf("warnings %q", made.Warnings)
	}
	t.Run("files", func(t *testing.T) { foreignFiles(t, e, made, marker) })
	t.Run("exec", func(t *testing.T) { foreignExec(t, e, made, marker) })
	t.Run("rights", func(t *testing.T) { foreignRights(t, e, made) })
	t.Run("counters", func(t *testing.T) { foreignCounters(t, e, made) })
	t.Run("namespaces", func(t *testing.T) { foreignNamespaces(t, e, made) })
	t.Run("layer", func(t *testing.T) { foreignLayer(t, e, made, marker) })
}

func foreignFiles(t *testing.T, e *Engine, made Container, marker string) {
	host := t.TempDir()
	if err := e.Copy(t.Context(), CopyPlace{made.ID, marker}, CopyPlace{Path: host + "/out"}, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(host + "/out"); string(data) != "container\n" {
		t.Errorf("cp gives %q", data)
	}
	err := e.Copy(t.Context(), CopyPlace{made.ID, filepath.Dir(marker) + "/only-host"}, CopyPlace{Path: host + "/x"}, CopyOptions{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cp of a file that only the host has: %v", err)
	}
	for _, dir := range []string{"/data", "/scratch"} { // mounts of the container are seen too
		if err := e.Copy(t.Context(), CopyPlace{Path: host + "/out"}, CopyPlace{made.ID, dir + "/in"}, CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if code, err := execTo(t, e, made.ID, &out, ExecOptions{Args: []string{"cat", dir + "/in"}}); code != 0 || err != nil || out.String() != "container\n" {
			t.Errorf("%s: %d, %v, %q", dir, code, err, out.String())
		}
	}
	var tar bytes.Buffer
	if err := e.Export(t.Context(), made.ID, &tar); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(tar.String(), "only-host") || !strings.Contains(tar.String(), "container\n") {
		t.Error("export is not of the container's files")
	}
}

// execTo runs a command in a container and gathers what it writes.
func execTo(t *testing.T, e *Engine, ref string, out *bytes.Buffer, o ExecOptions) (int, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o.Stdout, o.Stderr = f, f
	code, err := e.Exec(t.Context(), ref, o)
	data, readErr := os.ReadFile(f.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	out.Write(data)
	return code, err
}

func foreignExec(t *testing.T, e *Engine, made Container, marker string) {
	for _, test := range []struct {
		o    ExecOptions
		code int
		want string
	}{
		{ExecOptions{Args: []string{"cat", marker}}, 0, "container\n"},
		{ExecOptions{Args: []string{"cat", filepath.Dir(marker) + "/only-host"}}, 1, "cat: can't open '" + filepath.Dir(marker) + "/only-host': No such file or directory\n"},
		{ExecOptions{Args: []string{"sh", "-c", "id -u; id -G; pwd; echo $HOME $X; exit 9"}, User: "plain", Workdir: "/etc", Env: []string{"X=y"}}, 9, "1000\n1000 2000\n/etc\n/srv y\n"},
		{ExecOptions{Args: []string{"hostname"}}, 0, made.ID[:12] + "\n"},
		{ExecOptions{Args: []string{"grep", "CapEff", "/proc/self/status"}, User: "plain"}, 0, "CapEff:\t0000000000000000\n"},
	} {
		var out bytes.Buffer
		if code, err := execTo(t, e, made.ID, &out, test.o); code != test.code || err != nil || out.String() != test.want {
			t.Errorf("%q: %d, %v, %q; want %d, %q", test.o.Args, code, err, out.String(), test.code, test.want)
		}
	}
	for args, want := range map[string]int{"nope": 127, "/etc/notes": 126} {
		for _, detach := range []bool{false, true} {
			if code, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{args}, Detach: detach}); code != want || err == nil {
				t.Errorf("exec %s (detached: %v): %d, %v", args, detach, code, err)
			}
		}
	}
	if _, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"id"}, User: "nobody-there"}); err == nil {
		t.Error("exec of a user that is not there")
	}
	limited, cancel := context.WithTimeout(t.Context(), time.Second/2)
	defer cancel()
	if _, err := e.Exec(limited, made.ID, ExecOptions{Args: []string{"sleep", "4711"}}); err == nil {
		t.Error("a command that was to be killed has ended")
	}
	if list, err := e.Top(t.Context(), made.ID); err != nil || slices.ContainsFunc(list, func(p Process) bool { return p.Command == "sleep 4711" }) {
		t.Errorf("a cancelled exec goes on: %v, %v", list, err)
	}
	if jobs, _ := filepath.Glob(filepath.Join(e.stateDir(made.ID), "exec-*")); len(jobs) > 0 {
		t.Errorf("execs have left %v", jobs)
	}
}

// foreignRights compares the program, and an exec, with those of our own runtime: the
// bundle has the same strict defaults.
func foreignRights(t *testing.T, e *Engine, made Container) {
	const show = "exec 2>&1; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; ls /proc/acpi /sys/firmware; cat /proc/keys /proc/interrupts; echo > /proc/sys/kernel/domainname || echo no; test -c /dev/fuse || echo none"
	own := sh(show)
	own.UserNS = UserNSHost
	want := output(t, e, own)
	if !strings.Contains(want, "Seccomp:\t2") || !strings.Contains(want, "NoNewPrivs:\t1") {
		t.Fatalf("our own defaults are %q", want)
	}
	other := own
	other.Runtime = made.Config.Runtime
	var out bytes.Buffer
	code, err := execTo(t, e, made.ID, &out, ExecOptions{Args: []string{"sh", "-c", show}})
	if got := output(t, e, other); code != 0 || err != nil || got != want || out.String() != want {
		t.Errorf("ours\n%s\nits run\n%s\nits exec (%d, %v)\n%s", want, got, code, err, out.String())
	}
}

func foreignCounters(t *testing.T, e *Engine, made Container) {
	list, err := e.Top(t.Context(), made.ID)
	if err != nil || len(list) == 0 {
		t.Fatalf("top: %v, %v", list, err)
	}
	for _, p := range list {
		if p.Pid == os.Getpid() || strings.Contains(p.Command, "runc") || p.Inside == p.Pid {
			t.Errorf("top shows %+v", p)
		}
	}
	stats, err := e.Stats(t.Context(), made.ID)
	if err != nil || len(stats.Network) != 0 {
		t.Errorf("stats of a container without a network: %v, %v", stats.Network, err)
	}
	if _, err := e.Update(t.Context(), made.ID, func(c *ContainerConfig) { c.Memory = 80 << 20 }); err != nil {
		t.Fatal(err)
	}
	if stats, err = e.Stats(t.Context(), made.ID); err != nil || stats.Memory.Limit != 80<<20 {
		t.Errorf("memory limit %d, %v", stats.Memory.Limit, err)
	}
	if err := e.Pause(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, made.ID, "paused")
	if _, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"true"}}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("exec in a paused container: %v", err)
	}
	if err := e.Unpause(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	result, err := e.checkOnce(t.Context(), &record{ID: made.ID, Config: ContainerConfig{Living: Living{
		Health: &image.Healthcheck{Test: []string{"CMD", "sh", "-c", "echo well; exit 4"}, Timeout: 10 * time.Second}}}})
	if err != nil || result.ExitCode != 4 || result.Output != "well\n" {
		t.Errorf("health check: %+v, %v", result, err)
	}
}

// foreignNamespaces joins the container's namespaces, which are neither the host's nor
// those of the runtime's process.
func foreignNamespaces(t *testing.T, e *Engine, made Container) {
	rt := runtimePid(t, e, made.ID)
	for kind, ns := range map[string]Namespaces{"ipc": {IPC: "container:" + made.Name}, "uts": {UTS: "container:" + made.Name}} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", made.Pid, kind))
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range []int{rt, os.Getpid()} {
			if other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err != nil || other == theirs {
				t.Fatalf("namespace %s of pid %d: %s, %v", kind, pid, other, err)
			}
		}
		c := sh("ls -l /proc/self/ns/" + kind)
		c.Namespaces = ns
		if out := output(t, e, c); !strings.Contains(out, theirs) {
			t.Errorf("joined %s, want %s", out, theirs)
		}
		c.Runtime = made.Config.Runtime
		if _, err := e.Run(t.Context(), c, Stdio{}); err == nil || !strings.Contains(err.Error(), kind+" container:") {
			t.Errorf("another runtime joins: %v", err)
		}
	}
}

func foreignLayer(t *testing.T, e *Engine, made Container, marker string) {
	changes, err := e.Diff(t.Context(), made.ID)
	if err != nil || !slices.Contains(changes, Change{"A", marker}) || slices.ContainsFunc(changes, func(c Change) bool {
		return strings.Contains(c.Path, "only-host") || strings.HasPrefix(c.Path, "/proc") || strings.HasPrefix(c.Path, "/dev")
	}) {
		t.Errorf("diff %v, %v", changes, err)
	}
	if _, err := e.Commit(t.Context(), made.ID, CommitOptions{Name: "kept"}); err != nil {
		t.Fatal(err)
	}
	c := sh("cat " + marker)
	c.Image = "kept"
	if out := output(t, e, c); out != "container\n" {
		t.Errorf("the committed image has %q", out)
	}
}

// hidingRuntime is a script whose program is a process of the host in the container's
// cgroup.
func hidingRuntime(t *testing.T) string {
	t.Helper()
	host, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	if host.Unified == "" {
		t.Skip("the script of this test enters a unified cgroup")
	}
	script := filepath.Join(t.TempDir(), "hides")
	text := `#!/bin/sh
shift 6
case $1 in
run)
	group=$(sed 's/.*"cgroupsPath":"\([^"]*\)".*/\1/' "$3/config.json")
	sleep 1000 & program=$!
	echo $program > ` + host.Unified + `$group/cgroup.procs
	echo $program > "$5.tmp"; mv "$5.tmp" "$5"
	wait $program; exit $?;;
esac
exit 1
`
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return script
}

// A runtime whose pid is not a process with the container's root, as of one with a kernel
// of its own, is never looked through: here that process has the host's files.
func TestForeignThatHides(t *testing.T) {
	e := foreignEngine(t)
	marker, _ := plantMarker(t)
	c := sh("true")
	c.Runtime = hidingRuntime(t)
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	out := CopyPlace{Path: t.TempDir() + "/out"}
	var b few
	joins := sh("true")
	joins.Namespaces.IPC = "container:" + made.Name
	for what, look := range map[string]func() error{
		"cp out": func() error { return e.Copy(t.Context(), CopyPlace{made.ID, marker}, out, CopyOptions{}) },
		"cp in": func() error {
			return e.Copy(t.Context(), CopyPlace{Path: marker}, CopyPlace{made.ID, marker + ".new"}, CopyOptions{})
		},
		"cp to tar": func() error { return e.CopyOut(t.Context(), CopyPlace{made.ID, marker}, CopyOptions{}, &b) },
		"export":    func() error { return e.Export(t.Context(), made.ID, &b) },
		"exec -u": func() error {
			_, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"id"}, User: "root"})
			return err
		},
		"ipc": func() error { _, err := e.Run(t.Context(), joins, Stdio{}); return err },
	} {
		if err := look(); !errors.Is(err, runtime.ErrHidden) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if b > 0 {
		t.Error("something of the host came out")
	}
	for _, left := range []string{out.Path, marker + ".new"} {
		if _, err := os.Lstat(left); err == nil {
			t.Errorf("%s was made", left)
		}
	}
	if err := e.Kill(t.Context(), made.ID, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	mustState(t, e, made.ID, "stopped")
}

// few counts what is written, and takes no more than a little: a whole host is much.
type few int

func (f *few) Write(p []byte) (int, error) {
	if *f += few(len(p)); *f > 1<<20 {
		return 0, errors.New("it does not end")
	}
	return len(p), nil
}

// TestForeignNetworks plugs in, counts, connects and joins by the network namespace that
// the runtime's process is in.
func TestForeignNetworks(t *testing.T) {
	e := foreignEngine(t)
	c := withRunc(t, "while :; do sleep 1; done")
	c.Network = network.Default
	c.Security.Sysctls = map[string]string{"net.ipv4.ip_default_ttl": "33"}
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(args ...string) string {
		var out bytes.Buffer
		if code, err := execTo(t, e, made.ID, &out, ExecOptions{Args: args}); code != 0 || err != nil {
			t.Errorf("%q: %d, %v", args, code, err)
		}
		return out.String()
	}
	if ttl := ask("cat", "/proc/sys/net/ipv4/ip_default_ttl"); ttl != "33\n" {
		t.Errorf("sysctl %q", ttl)
	}
	if text, _ := os.ReadFile("/proc/sys/net/ipv4/ip_default_ttl"); string(text) == "33\n" {
		t.Error("the sysctl is the host's")
	}
	if stats, err := e.Stats(t.Context(), made.ID); err != nil || len(stats.Network) != 1 || stats.Network[0].Interface != "eth0" {
		t.Errorf("stats %+v, %v", stats.Network, err)
	}
	if _, err := e.Networks().Create(t.Context(), "more", network.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Connect(t.Context(), made.ID, NetworkEndpoint{Network: "more"}); err != nil {
		t.Fatal(err)
	}
	if dev := ask("cat", "/proc/net/dev"); !strings.Contains(dev, "eth1") {
		t.Errorf("after connect: %s", dev)
	}
	if err := e.Disconnect(t.Context(), made.ID, "more"); err != nil {
		t.Fatal(err)
	}
	if dev := ask("cat", "/proc/net/dev"); strings.Contains(dev, "eth1") {
		t.Errorf("after disconnect: %s", dev)
	}
	for _, runtime := range []string{"", c.Runtime} { // both kinds join it
		j := sh("cat /proc/sys/net/ipv4/ip_default_ttl")
		j.Network, j.Runtime = NetworkContainer+made.Name, runtime
		if ttl := output(t, e, j); ttl != "33\n" {
			t.Errorf("joined with runtime %q: %q", runtime, ttl)
		}
	}
	h := withRunc(t, "ls -l /proc/self/ns/net")
	h.Network = NetworkHost
	if own, err := os.Readlink("/proc/self/ns/net"); err != nil || !strings.Contains(output(t, e, h), own) {
		t.Errorf("network host is not %s (%v)", own, err)
	}
}

func TestForeignRefusals(t *testing.T) {
	e := foreignEngine(t)
	runc := needRunc(t)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*ContainerConfig){
		"init":                func(c *ContainerConfig) { c.Init = true },
		"domainname":          func(c *ContainerConfig) { c.Domainname = "example" },
		"propagation rshared": func(c *ContainerConfig) { c.Mounts = []Mount{{Source: "/tmp", Target: "/x", Propagation: "rshared"}} },
		"below read-only": func(c *ContainerConfig) {
			c.Mounts = []Mount{{Source: "/tmp", Target: "/x", ReadOnly: true, ReadOnlyTree: true}}
		},
		"pid container:x":      func(c *ContainerConfig) { c.Namespaces.PID = "container:x" },
		"cgroupns container:x": func(c *ContainerConfig) { c.Namespaces.Cgroup = "container:x" },
		"not-a-runtime":        func(c *ContainerConfig) { c.Runtime = "not-a-runtime" },
		"absolute path":        func(c *ContainerConfig) { c.Runtime = "bin/runc" },
		"/nowhere/runc":        func(c *ContainerConfig) { c.Runtime = "/nowhere/runc" },
		"permission denied":    func(c *ContainerConfig) { c.Runtime = plain },
	} {
		c := sh("true")
		c.Runtime = runc
		change(&c)
		if _, err := e.Run(t.Context(), c, Stdio{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if list, err := e.List(t.Context(), true, nil); err != nil || len(list) > 0 {
		t.Errorf("containers are left: %v, %v", list, err)
	}
}
