package oci_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/oci"
	"naru/sandbox/runtime"
	"naru/sandbox/runtime/cgroup"
	"naru/sandbox/runtime/launch"
)

// creatorEnv makes the test program the creator of one container.
const creatorEnv = "NARU_TEST_OCI_CREATOR"

func TestMain(m *testing.M) {
	launch.Main()
	if bundle := os.Getenv(creatorEnv); bundle != "" {
		r := oci.Runtime{Root: filepath.Join(filepath.Dir(bundle), "state")}
		if err := r.Create(context.Background(), oci.CreateOptions{ID: "c", Bundle: bundle}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := oci.Adopt(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// bed is a runtime with one bundle.
type bed struct {
	oci.Runtime
	t      *testing.T
	bundle string
	config *specs.Spec
	out    *os.File
	warned []string
}

// newBed makes a bundle whose root is a busybox; change may change its config.
func newBed(t *testing.T, change func(*specs.Spec)) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("no busybox for a root file system")
	}
	dir := t.TempDir()
	b := &bed{t: t, bundle: filepath.Join(dir, "bundle"), config: oci.DefaultConfig()}
	b.Runtime = oci.Runtime{Root: filepath.Join(dir, "state"), Warn: func(m string) { b.warned = append(b.warned, m) }}
	bin := filepath.Join(b.bundle, "rootfs", "bin")
	b.must(os.MkdirAll(bin, 0o755))
	program, err := os.ReadFile(busybox)
	b.must(err)
	b.must(os.WriteFile(filepath.Join(bin, "busybox"), program, 0o755))
	for _, name := range []string{"sh", "cat", "sleep", "tty", "stty", "id", "true"} {
		b.must(os.Symlink("busybox", filepath.Join(bin, name)))
	}
	b.config.Process.Terminal = false
	b.config.Process.Rlimits = nil
	if change != nil {
		change(b.config)
	}
	b.write()
	b.out, err = os.Create(filepath.Join(dir, "out"))
	b.must(err)
	t.Cleanup(func() {
		b.out.Close()
		if err := b.Delete(context.Background(), "c", true); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(b.Root); err == nil && len(left) > 0 {
			t.Errorf("%s is left", left[0].Name())
		}
	})
	return b
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) write() {
	b.t.Helper()
	text, err := json.Marshal(b.config)
	b.must(err)
	b.must(os.WriteFile(filepath.Join(b.bundle, "config.json"), text, 0o644))
}

func (b *bed) create() error {
	return b.Create(b.t.Context(), oci.CreateOptions{ID: "c", Bundle: b.bundle, IO: oci.IO{Stdout: b.out, Stderr: b.out}})
}

// run creates and starts the container and returns its exit code.
func (b *bed) run() int {
	b.t.Helper()
	b.must(b.create())
	child, err := b.Child(b.status().Pid)
	b.must(err)
	b.must(b.Start(b.t.Context(), "c"))
	return b.wait(child)
}

func (b *bed) wait(child *oci.Child) int {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	code, err := child.Wait(ctx)
	b.must(err)
	return code
}

func (b *bed) status() specs.State {
	b.t.Helper()
	c, err := b.Open("c")
	b.must(err)
	defer c.Close()
	return c.State
}

func (b *bed) output() string {
	b.t.Helper()
	text, err := os.ReadFile(b.out.Name())
	b.must(err)
	return string(text)
}

func sh(script string) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Process.Args = []string{"sh", "-c", script}; s.Root.Readonly = false }
}

func TestLifecycle(t *testing.T) {
	b := newBed(t, sh("echo ran; exit 7"))
	b.config.Annotations = map[string]string{"a": "b"}
	b.write()
	pidFile := filepath.Join(t.TempDir(), "pid")
	b.must(b.Create(t.Context(), oci.CreateOptions{ID: "c", Bundle: b.bundle, PidFile: pidFile, IO: oci.IO{Stdout: b.out}}))
	s := b.status()
	if s.Status != specs.StateCreated || s.Bundle != b.bundle || s.Annotations["a"] != "b" {
		t.Errorf("state after create: %+v", s)
	}
	if text, err := os.ReadFile(pidFile); err != nil || string(text) != strconv.Itoa(s.Pid) {
		t.Errorf("pid file %q, %v; the pid is %d", text, err, s.Pid)
	}
	if b.output() != "" {
		t.Error("the program ran before start")
	}
	if err := b.create(); !errors.Is(err, oci.ErrExists) {
		t.Errorf("second create: %v", err)
	}
	child, err := b.Child(s.Pid)
	b.must(err)
	b.must(b.Start(t.Context(), "c"))
	if code := b.wait(child); code != 7 || b.output() != "ran\n" {
		t.Errorf("exit code %d, output %q", code, b.output())
	}
	if s := b.status(); s.Status != specs.StateStopped || s.Pid != 0 {
		t.Errorf("state at the end: %+v", s)
	}
	if err := b.Start(t.Context(), "c"); !errors.Is(err, oci.ErrState) {
		t.Errorf("second start: %v", err)
	}
	b.must(b.Delete(t.Context(), "c", false))
	if _, err := b.Open("c"); !errors.Is(err, oci.ErrNotExist) {
		t.Errorf("after delete: %v", err)
	}
}

func TestRunningIsNotDeleted(t *testing.T) {
	b := newBed(t, sh("trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done"))
	b.must(b.create())
	child, err := b.Child(b.status().Pid)
	b.must(err)
	b.must(b.Start(t.Context(), "c"))
	b.eventually("output", func() bool { return b.output() == "up\n" })
	if err := b.Delete(t.Context(), "c", false); !errors.Is(err, oci.ErrState) {
		t.Errorf("delete of a running container: %v", err)
	}
	b.must(b.Pause(t.Context(), "c"))
	if s := b.status(); s.Status != "paused" {
		t.Errorf("status %s", s.Status)
	}
	b.must(b.Resume(t.Context(), "c"))
	b.must(b.Kill(t.Context(), "c", unix.SIGTERM, false))
	if code := b.wait(child); code != 3 {
		t.Errorf("exit code %d", code)
	}
}

func (b *bed) eventually(what string, ok func() bool) {
	b.t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("no %s: output %q", what, b.output())
		}
	}
}

func TestCreatedEndsBySignal(t *testing.T) {
	b := newBed(t, sh("true"))
	b.must(b.create())
	child, err := b.Child(b.status().Pid)
	b.must(err)
	b.must(b.Kill(t.Context(), "c", unix.SIGTERM, false))
	if code := b.wait(child); code != 137 {
		t.Errorf("exit code %d", code)
	}
}

func TestExec(t *testing.T) {
	b := newBed(t, sh("sleep 30"))
	b.must(b.create())
	b.must(b.Start(t.Context(), "c"))
	c, err := b.Open("c")
	b.must(err)
	defer c.Close()
	p, err := c.Process()
	b.must(err)
	p.Args, p.User, p.Cwd = []string{"sh", "-c", "id -u; cat /proc/1/cmdline | tr '\\0' ' '; cat <&3; exit 9"}, specs.User{UID: 12}, "/bin"
	p.Capabilities = nil
	r, w, err := os.Pipe()
	b.must(err)
	fmt.Fprint(w, "handed over")
	w.Close()
	pid, err := b.Exec(t.Context(), "c", oci.ExecOptions{Process: p, IO: oci.IO{Stdout: b.out, Stderr: b.out, Preserve: []*os.File{r}}})
	b.must(err)
	r.Close()
	child, err := b.Child(pid)
	b.must(err)
	if code := b.wait(child); code != 9 || b.output() != "12\nhanded over" && !strings.HasSuffix(b.output(), "handed over") || !strings.HasPrefix(b.output(), "12\n") {
		t.Errorf("exit code %d, output %q", code, b.output())
	}
	p.Args = []string{"nowhere"}
	_, err = b.Exec(t.Context(), "c", oci.ExecOptions{Process: p})
	var start *runtime.StartError
	if !errors.As(err, &start) || start.Code() != 127 || !strings.Contains(err.Error(), "executable file not found in $PATH") {
		t.Errorf("exec of nothing: %v", err)
	}
	pids, err := b.Processes("c")
	if err != nil || len(pids) == 0 {
		t.Errorf("processes %v, %v", pids, err)
	}
}

func TestTerminal(t *testing.T) {
	b := newBed(t, sh("tty; stty size; test -c /dev/console && echo console"))
	b.config.Process.Terminal = true
	b.config.Process.ConsoleSize = &specs.Box{Height: 33, Width: 77}
	b.write()
	if err := b.create(); err == nil || !strings.Contains(err.Error(), "process.terminal") {
		t.Errorf("a terminal for nobody: %v", err)
	}
	var master *os.File
	take := func(f *os.File) error { master = f; return nil }
	b.must(b.Create(t.Context(), oci.CreateOptions{ID: "c", Bundle: b.bundle, IO: oci.IO{Console: take}}))
	b.must(b.Start(t.Context(), "c"))
	text, _ := io.ReadAll(master) // EIO, when the last slave is closed
	master.Close()
	if want := "/dev/pts/0\r\n33 77\r\nconsole\r\n"; string(text) != want {
		t.Errorf("terminal says %q, want %q", text, want)
	}
}

// hookBed has hooks of all kinds that append their kind and status to a file.
func hookBed(t *testing.T) (*bed, string) {
	b := newBed(t, sh("echo program >>/order"))
	order := filepath.Join(b.bundle, "rootfs", "order")
	busybox := filepath.Join(b.bundle, "rootfs", "bin", "busybox")
	hook := func(name, program, file string) []specs.Hook {
		script := `s=$(cat); case $s in *'"id":"c"'*) ;; *) exit 1;; esac; echo ` + name + ` $(echo "$s" | sed 's/.*"status":"\([a-z]*\)".*/\1/') >>` + file
		return []specs.Hook{{Path: program, Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin"}}}
	}
	b.config.Hooks = &specs.Hooks{
		//lint:ignore SA1019 prestart is deprecated in the specification, and Docker's
		Prestart: hook("prestart", busybox, order), CreateRuntime: hook("createRuntime", busybox, order),
		CreateContainer: hook("createContainer", busybox, order), StartContainer: hook("startContainer", "/bin/busybox", "/order"),
		Poststart: hook("poststart", busybox, order), Poststop: hook("poststop", busybox, order),
	}
	if err := os.Symlink("busybox", filepath.Join(b.bundle, "rootfs", "bin", "sed")); err != nil {
		t.Fatal(err)
	}
	b.write()
	return b, order
}

func TestHooks(t *testing.T) {
	b, order := hookBed(t)
	b.run()
	b.must(b.Delete(t.Context(), "c", false))
	text, err := os.ReadFile(order)
	b.must(err)
	got := strings.ReplaceAll(string(text), "program\n", "") // it and poststart go side by side
	want := "prestart created\ncreateRuntime created\ncreateContainer created\nstartContainer created\npoststart running\npoststop stopped\n"
	if got != want || !strings.Contains(string(text), "startContainer created\nprogram") && !strings.Contains(string(text), "poststart running\nprogram") {
		t.Errorf("hooks ran as\n%swant\n%s", text, want)
	}
}

func TestHookFails(t *testing.T) {
	b, order := hookBed(t)
	b.config.Hooks.CreateContainer[0].Args[2] = "echo because >&2; exit 4"
	b.write()
	err := b.create()
	if err == nil || !strings.Contains(err.Error(), "hooks.createContainer[0]") || !strings.Contains(err.Error(), "because") {
		t.Errorf("error %v", err)
	}
	if _, err := b.Open("c"); !errors.Is(err, oci.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	text, err := os.ReadFile(order)
	if err != nil || !strings.HasSuffix(string(text), "poststop stopped\n") {
		t.Errorf("hooks ran as %q, %v", text, err)
	}
	one := 1
	b.config.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "30"}, Timeout: &one}}}
	b.write()
	if err := b.create(); err == nil || !strings.Contains(err.Error(), "timeout of 1 s") {
		t.Errorf("error %v", err)
	}
}

// TestKilledCreator kills a creator while its container waits for a hook.
func TestKilledCreator(t *testing.T) {
	b := newBed(t, sh("true"))
	pids := filepath.Join(t.TempDir(), "pids")
	b.must(unix.Mkfifo(pids, 0o600))
	busybox, _ := exec.LookPath("busybox")
	b.config.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: busybox, Args: []string{"sh", "-c", "cat >" + pids + "; echo >>" + pids + "; sleep 5"}}}}
	b.config.Linux.CgroupsPath = fmt.Sprintf("/naru-test-oci-%d", os.Getpid())
	b.write()
	creator := exec.Command("/proc/self/exe")
	creator.Env = append(os.Environ(), creatorEnv+"="+b.bundle)
	b.must(creator.Start())
	state, err := os.ReadFile(pids)
	b.must(err)
	var s specs.State
	b.must(json.Unmarshal(state, &s))
	pidfd, err := unix.PidfdOpen(s.Pid, 0)
	b.must(err)
	defer unix.Close(pidfd)
	b.must(creator.Process.Kill())
	creator.Wait()
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 5000); n != 1 {
		t.Errorf("the init goes on without its creator: %v", err)
	}
	var ws unix.WaitStatus
	unix.Wait4(s.Pid, &ws, 0, nil) // ours now
	b.config.Hooks = nil
	b.write()
	if code := b.run(); code != 0 {
		t.Errorf("the id cannot be used again: exit code %d", code)
	}
}

func TestJoinNamespaces(t *testing.T) {
	b := newBed(t, sh("sleep 30"))
	b.must(b.create())
	b.must(b.Start(t.Context(), "c"))
	pid := b.status().Pid
	files := map[specs.LinuxNamespaceType]string{specs.PIDNamespace: "pid", specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.CgroupNamespace: "cgroup"}
	other := newBed(t, func(s *specs.Spec) {
		s.Process.Args = []string{"sh", "-c", "cd /proc/self/ns; for n in pid net ipc uts cgroup; do ls -l $n | sed 's/.* //'; done"}
		s.Root.Readonly, s.Hostname, s.Linux.Sysctl = false, "", nil
		for i := range s.Linux.Namespaces {
			if f := files[s.Linux.Namespaces[i].Type]; f != "" {
				s.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, f)
			}
		}
	})
	for _, name := range []string{"ls", "sed"} {
		other.must(os.Symlink("busybox", filepath.Join(other.bundle, "rootfs", "bin", name)))
	}
	if code := other.run(); code != 0 {
		t.Fatalf("exit code %d: %s", code, other.output())
	}
	for _, n := range []string{"pid", "net", "ipc", "uts", "cgroup"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, n))
		if err != nil || !strings.Contains(other.output(), link) {
			t.Errorf("%s namespace is not %s: %v\n%s", n, link, err, other.output())
		}
	}
}

func TestUserNamespaceAndTime(t *testing.T) {
	b := newBed(t, sh("cat /proc/self/uid_map /proc/self/timens_offsets; echo >/tmp/x && echo written"))
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300000, Size: 65536}}
	b.config.Linux.UIDMappings, b.config.Linux.GIDMappings = ids, ids
	b.config.Linux.Namespaces = append(b.config.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace}, specs.LinuxNamespace{Type: specs.TimeNamespace})
	b.config.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1000}}
	b.config.Linux.Sysctl = nil
	b.config.Mounts = append(b.config.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"})
	b.write()
	b.must(os.Mkdir(filepath.Join(b.bundle, "rootfs", "tmp"), 0o755))
	for _, d := range []string{"proc", "dev", "sys"} {
		b.must(os.MkdirAll(filepath.Join(b.bundle, "rootfs", d), 0o755))
	}
	for dir := b.bundle; dir != "/"; dir = filepath.Dir(dir) { // TempDir is for its owner alone
		if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&1 == 0 {
			b.must(os.Chmod(dir, 0o711))
		}
	}
	if code := b.run(); code != 0 || !strings.Contains(b.output(), "300000") || !strings.Contains(b.output(), "1000") || !strings.HasSuffix(b.output(), "written\n") {
		t.Errorf("exit code %d, output %q", code, b.output())
	}
}

// TestRecycledPid shows that a record whose pid now is another process's is of a stopped container.
func TestRecycledPid(t *testing.T) {
	b := newBed(t, sh("true"))
	b.run()
	file := filepath.Join(b.Root, "c", "state.json")
	var rec map[string]any
	text, err := os.ReadFile(file)
	b.must(err)
	b.must(json.Unmarshal(text, &rec))
	victim := exec.Command("sleep", "30")
	b.must(victim.Start())
	defer victim.Wait()
	defer victim.Process.Kill()
	rec["init"].(map[string]any)["pid"] = victim.Process.Pid
	text, err = json.Marshal(rec)
	b.must(err)
	b.must(os.WriteFile(file, text, 0o600))
	if s := b.status(); s.Status != specs.StateStopped {
		t.Errorf("status %s", s.Status)
	}
	if err := b.Kill(t.Context(), "c", unix.SIGKILL, false); !errors.Is(err, oci.ErrState) {
		t.Errorf("kill: %v", err)
	}
	b.must(b.Delete(t.Context(), "c", true))
	if err := victim.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the other process is gone: %v", err)
	}
}

func TestUpdateAndEvents(t *testing.T) {
	host, err := cgroup.Detect()
	if err != nil || !host.Has("pids") {
		t.Skipf("no pids controller: %v", err)
	}
	b := newBed(t, sh("sleep 30"))
	b.must(b.create())
	b.must(b.Start(t.Context(), "c"))
	limit := int64(77)
	b.must(b.Update("c", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}))
	var got oci.Event
	b.must(b.Events(t.Context(), "c", 0, func(e oci.Event) error { got = e; return nil }))
	if got.Type != "stats" || got.Data.Pids.Limit != 77 || got.Data.Pids.Current == 0 {
		t.Errorf("event %+v", got)
	}
}
