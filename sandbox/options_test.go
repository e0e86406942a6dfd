package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
	"naru/sandbox/runtime/seccomp"
)

func TestOptionsReachTheContainer(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	score := 500
	for _, test := range []struct {
		name   string
		change func(*ContainerConfig)
		script string
		want   string
	}{
		{"capabilities", func(c *ContainerConfig) { c.Security.CapDrop, c.Security.CapAdd = []string{"ALL"}, []string{"kill"} }, "grep -E 'Cap(Bnd|Eff)' /proc/self/status", "CapEff:\t0000000000000020\nCapBnd:\t0000000000000020\n"},
		{"new privileges", func(c *ContainerConfig) { c.Security.NewPrivileges = true }, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0\n"},
		{"no seccomp", func(c *ContainerConfig) { c.Security.NoSeccomp = true }, "grep Seccomp: /proc/self/status", "Seccomp:\t0\n"},
		{"seccomp profile", func(c *ContainerConfig) {
			c.Security.Seccomp = &seccomp.Profile{DefaultAction: specs.ActAllow, Syscalls: []seccomp.ProfileRule{{LinuxSyscall: specs.LinuxSyscall{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}}}
		}, "mkdir /tmp/x 2>/dev/null || echo no", "no\n"},
		{"seccomp flags", func(c *ContainerConfig) {
			c.Security.Seccomp = &seccomp.Profile{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}}
		}, "grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
		{"paths", func(c *ContainerConfig) { c.Security.ShowPaths = true }, "grep -c ' /proc/' /proc/self/mounts", "0\n"},
		{"sysctl", func(c *ContainerConfig) { c.Security.Sysctls = map[string]string{"kernel.shmmax": "4096"} }, "cat /proc/sys/kernel/shmmax", "4096\n"},
		{"ulimit", func(c *ContainerConfig) {
			c.Resources.Ulimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 99, Hard: 100}}
		}, "ulimit -Sn; ulimit -Hn", "99\n100\n"},
		{"oom score", func(c *ContainerConfig) { c.Resources.OOMScoreAdj = &score }, "cat /proc/self/oom_score_adj", "500\n"},
		{"shm size", func(c *ContainerConfig) { c.Resources.ShmSize = 1 << 20 }, "grep -c '/dev/shm .*size=1024k' /proc/self/mounts", "1\n"},
		{"processors", func(c *ContainerConfig) { c.Resources.CpusetCPUs = "0" }, "grep Cpus_allowed_list /proc/self/status", "Cpus_allowed_list:\t0\n"},
		{"tmpfs", func(c *ContainerConfig) {
			c.Mounts = []Mount{{Target: "/t", Tmpfs: true, Options: []string{"size=1m", "mode=700"}}}
		}, "stat -c %a /t; grep ' /t ' /proc/self/mounts | grep -c 'noexec.*size=1024k'", "700\n1\n"},
		{"tmpfs to execute", func(c *ContainerConfig) { c.Mounts = []Mount{{Target: "/t", Tmpfs: true, Options: []string{"exec"}}} }, "grep ' /t ' /proc/self/mounts | grep -c noexec", "0\n"},
		{"read-only bind", func(c *ContainerConfig) { c.Mounts = []Mount{{Source: dir, Target: "/h", ReadOnly: true}} }, "cat /h/file; touch /h/x 2>/dev/null || echo no", "of the host\nno\n"},
		{"empty volume", func(c *ContainerConfig) {
			c.Mounts = []Mount{{Source: "fresh", Target: "/srv/data", Volume: true, NoCopy: true}}
		}, "ls /srv/data", ""},
		{"groups", func(c *ContainerConfig) { c.GroupAdd = []string{"extra", "77"} }, "id -G", "0 2000 77\n"},
		{"domain name", func(c *ContainerConfig) { c.Domainname = "dom" }, "cat /proc/sys/kernel/domainname", "dom\n"},
		{"device", func(c *ContainerConfig) {
			c.Security.Devices = []Device{{Source: "/dev/null", Target: "/dev/nil", Access: "rw"}}
		}, "echo x > /dev/nil && test -c /dev/nil && echo yes", "yes\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := sh(test.script)
			test.change(&c)
			exit, out := runToEnd(t, e, c)
			if test.name == "groups" {
				fields := strings.Fields(out)
				slices.Sort(fields)
				out = strings.Join(fields, " ") + "\n"
			}
			if out != test.want {
				t.Errorf("got %q (%+v), want %q", out, exit, test.want)
			}
		})
	}
}

// TestPropagation mounts on the host what a running container is to see, or not.
func TestPropagation(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	// A mount of its own, so that no other one is touched.
	if err := errors.Join(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"), unix.Mount("", dir, "", unix.MS_SHARED, "")); err != nil {
		t.Skip("no mounts here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for want, kind := range map[string]string{"0": "", "1": "rslave"} {
		at := filepath.Join(dir, "at"+want)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		c := sh("echo ready; while test ! -e /h/go" + want + "; do sleep 0.01; done; grep -c ' /h/at" + want + " ' /proc/self/mounts")
		c.Mounts, c.UserNS = []Mount{{Source: dir, Target: "/h", Propagation: kind}}, userNSOnTmpfs(t)
		made := runReady(t, e, c)
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "go"+want), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(t.Context(), made.ID); err != nil {
			t.Fatal(err)
		}
		if out := logOf(t, e, made.ID); out != "ready\n"+want+"\n" {
			t.Errorf("propagation %q: %q", kind, out)
		}
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}
}

// userNSOnTmpfs is for a bind of a tmpfs, whose ids a kernel before 6.3 cannot map.
func userNSOnTmpfs(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if major < 6 || major == 6 && minor < 3 {
		return UserNSHost
	}
	return UserNSAuto
}

func TestSharedNamespaces(t *testing.T) {
	e := newEngine(t)
	inode := func(c ContainerConfig, kind string) string {
		c.Args = []string{"stat", "-Lc", "%i", "/proc/self/ns/" + kind}
		return strings.TrimSpace(output(t, e, c))
	}
	own := func(kind string) string {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Trim(strings.TrimPrefix(link, kind+":"), "[]")
	}
	shared := sh("")
	shared.Namespaces = Namespaces{IPC: "host", PID: "host", UTS: "host", Cgroup: "host"}
	for _, kind := range []string{"ipc", "pid", "uts", "cgroup"} {
		if got := inode(shared, kind); got != own(kind) {
			t.Errorf("%s host: %s, want %s", kind, got, own(kind))
		}
		if got := inode(sh(""), kind); got == own(kind) {
			t.Errorf("%s: it is the host's without being asked", kind)
		}
	}
	guarded, err := e.Run(t.Context(), sh("sleep 60"), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	join := sh("true")
	join.Namespaces.IPC = "container:" + guarded.Name
	if guarded.Config.UserNS == UserNSAuto && e.userNS() {
		if _, err := e.Run(t.Context(), join, Stdio{}); err == nil || !strings.Contains(err.Error(), "--userns host") {
			t.Errorf("join behind a user namespace: %v", err)
		}
	}
	open := sh("sleep 60")
	open.UserNS = UserNSHost
	other, err := e.Run(t.Context(), open, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	join.Namespaces.IPC = "container:" + other.Name
	first, err := os.Readlink("/proc/" + strconv.Itoa(other.Pid) + "/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	if got := inode(join, "ipc"); !strings.Contains(first, got) {
		t.Errorf("joined ipc namespace %s, want %s", got, first)
	}
}

// TestSessionKeyring looks for the session keyring that a container and its commands share;
// that it is theirs, and nobody else's, is shown by the attacks.
func TestSessionKeyring(t *testing.T) {
	e := newEngine(t)
	const list = "grep -o '^[0-9a-f]* .*_ses[.]'$HOSTNAME /proc/keys | sed 's/ .*_ses/ _ses/'"
	c := sh(list + "; echo ready; sleep 60")
	c.Security.ShowPaths, c.UserNS = true, UserNSHost // /proc/keys is masked, and shows keys of mapped users only
	made := runReady(t, e, c)
	seen, rest, _ := strings.Cut(logOf(t, e, made.ID), "\n")
	if !strings.Contains(seen, " _ses."+made.ID[:12]) || rest != "ready\n" {
		t.Errorf("the container sees %q", seen+" "+rest)
	}
	for range 2 {
		code, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"sh", "-c", "test \"$(" + list + ")\" = '" + seen + "'"}})
		if code != 0 || err != nil {
			t.Errorf("a command made another keyring: %d, %v", code, err)
		}
	}
}

// TestExecIsNoLessConfined runs a command in containers that have less than the
// default.
func TestExecIsNoLessConfined(t *testing.T) {
	e := newEngine(t)
	c := sh("sleep 600")
	c.User = "plain"
	c.Security.CapDrop = []string{"ALL"}
	c.Security.Seccomp = &seccomp.Profile{DefaultAction: specs.ActAllow, Syscalls: []seccomp.ProfileRule{{LinuxSyscall: specs.LinuxSyscall{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}}}
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	for script, user := range map[string]string{"grep -q 'CapEff:.0*$' /proc/self/status": "0", "! mkdir /tmp/x": "0", "! mkdir /tmp/y": ""} {
		code, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"sh", "-c", script}, User: user})
		if err != nil || code != 0 {
			t.Errorf("%q as %q: %d, %v", script, user, code, err)
		}
	}
}

// TestExecIsNoMoreConfined runs a command in a container without a policy.
func TestExecIsNoMoreConfined(t *testing.T) {
	e := newEngine(t)
	c := sh("sleep 600")
	c.Security.NoSeccomp = true
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	code, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"grep", "-q", "Seccomp:.0", "/proc/self/status"}})
	if err != nil || code != 0 {
		t.Errorf("a command in a container without a policy has one: %d, %v", code, err)
	}
}

func TestRefusedOptions(t *testing.T) {
	for name, change := range map[string]func(*ContainerConfig){
		"sysctl kernel.core_pattern": func(c *ContainerConfig) { c.Security.Sysctls = map[string]string{"kernel.core_pattern": "|/x"} },
		"the network of others": func(c *ContainerConfig) {
			c.Network, c.Security.Sysctls = NetworkHost, map[string]string{"net.ipv4.ip_forward": "1"}
		},
		`unknown capability "FLY"`: func(c *ContainerConfig) { c.Security.CapAdd = []string{"FLY"} },
		"added and dropped": func(c *ContainerConfig) {
			c.Security.CapAdd, c.Security.CapDrop = []string{"ALL"}, []string{"ALL"}
		},
		"is no device":     func(c *ContainerConfig) { c.Security.Devices = []Device{{"/etc/passwd", "/dev/x", "rwm"}} },
		"directly in /dev": func(c *ContainerConfig) { c.Security.Devices = []Device{{"/dev/null", "/etc/x", "rwm"}} },
		`listenerPath "/run/a"`: func(c *ContainerConfig) {
			c.Security.Seccomp = &seccomp.Profile{DefaultAction: specs.ActAllow, ListenerPath: "/run/a", Syscalls: []seccomp.ProfileRule{{LinuxSyscall: specs.LinuxSyscall{Names: []string{"mkdir"}, Action: specs.ActNotify}}}}
		},
		`ipc "mine"`:         func(c *ContainerConfig) { c.Namespaces.IPC = "mine" },
		"a host name cannot": func(c *ContainerConfig) { c.Namespaces.UTS, c.Hostname = "host", "h" },
		`option "suid,dev"`: func(c *ContainerConfig) {
			c.Mounts = []Mount{{Target: "/t", Tmpfs: true, Options: []string{"suid,dev"}}}
		},
		"a tmpfs has no": func(c *ContainerConfig) { c.Mounts = []Mount{{Target: "/t", Tmpfs: true, Source: "x"}} },
		`propagation "shared"`: func(c *ContainerConfig) {
			c.Mounts = []Mount{{Source: "v", Target: "/v", Volume: true, Propagation: "shared"}}
		},
		"set of cpus":          func(c *ContainerConfig) { c.Resources.CpusetCPUs = "2-1" },
		"block io weight 5":    func(c *ContainerConfig) { c.Resources.BlkioWeight = 5 },
		"it needs a memory":    func(c *ContainerConfig) { c.Resources.MemorySwap = -1 },
		"exclude each other":   func(c *ContainerConfig) { c.CPUs, c.Resources.CPUQuota = 1, 50000 },
		"oom score adjustment": func(c *ContainerConfig) { n := 1001; c.Resources.OOMScoreAdj = &n },
	} {
		c := ContainerConfig{Image: "busybox"}
		change(&c)
		if err := c.complete(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want an error with %q, got %v", name, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	standard := runtime.DefaultProcess().Capabilities.Bounding
	for _, test := range []struct {
		add, drop, want []string
	}{
		{nil, nil, standard},
		{[]string{"ALL"}, nil, knownCapabilities()},
		{nil, []string{"all"}, []string{}},
		{[]string{"net_admin"}, []string{"ALL"}, []string{"CAP_NET_ADMIN"}},
		{[]string{"CAP_CHOWN"}, nil, standard},
		{nil, []string{"chown"}, standard[1:]},
	} {
		if got, err := capabilities(test.add, test.drop); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("add %v drop %v: %v, %v; want %v", test.add, test.drop, got, err, test.want)
		}
	}
}

func TestDefinedContainerWaitsForStart(t *testing.T) {
	e := newEngine(t)
	c, err := e.Define(t.Context(), sh("echo ran"))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := reopen(t, e)
	if got := mustState(t, again, c.ID, "created"); got.Pid != 0 {
		t.Errorf("a defined container has process %d", got.Pid)
	}
	if err := again.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if exit, err := again.Wait(t.Context(), c.ID); err != nil || exit.Code != 0 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	if out := logOf(t, again, c.ID); out != "ran\n" {
		t.Errorf("output %q", out)
	}
	mustState(t, again, c.ID, "stopped")
	if err := again.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustState(t, again, c.ID, "stopped")
}

// reopen is another process's view of the same root.
func reopen(t *testing.T, e *Engine) *Engine {
	t.Helper()
	again, err := Open(Options{Root: e.root, Run: e.run})
	if err != nil {
		t.Fatal(err)
	}
	return again
}
