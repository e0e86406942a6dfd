package attacks

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// run is an attack that needs no canary: exit code 42 tells.
func run(name string, args ...string) change { return func(b *box) { b.attack(name, args...) } }

// call makes one system call.
func call(number uintptr, args ...string) change {
	return run("syscall", append([]string{strconv.Itoa(int(number))}, args...)...)
}

// calls are stopped by the seccomp filter: the process has every capability that the
// kernel asks for, and host ids.
func calls() []attack {
	filtered := func(name, what, syscall, capability string, setup change) attack {
		a := attack{name: name, what: what, mitigation: "seccomp: " + syscall, setup: setup, off: allow(syscall)}
		if capability != "" {
			a.hostIDs, a.base = true, caps(capability)
		}
		return a
	}
	return []attack{
		filtered("mount", "mounts a file system", "mount", "SYS_ADMIN", run("mount", "tmpfs")),
		filtered("new mount interface", "fsopen(2), past filters that know mount(2) only", "fsopen", "SYS_ADMIN", call(unix.SYS_FSOPEN, "s:proc", "0")),
		filtered("unmount a mask", "takes the mask off a file of /proc", "umount2", "SYS_ADMIN", run("unmount", "/proc/timer_list")),
		filtered("pivot_root", "gives itself another root", "pivot_root", "SYS_ADMIN", call(unix.SYS_PIVOT_ROOT, "s:/nothing", "s:/nothing")),
		filtered("setns", "enters a namespace by a descriptor", "setns", "SYS_ADMIN", call(unix.SYS_SETNS, "-1", "0")),
		filtered("unshare a user namespace", "gets all capabilities in a namespace of its own, the start of most kernel exploits", "unshare", "", run("newuser", "unshare")),
		filtered("clone a user namespace", "the same by clone(2) with CLONE_NEWUSER", "clone", "", run("newuser", "clone")),
		filtered("clone3 a user namespace", "the same by clone3(2), whose flags no filter can read", "clone3", "", run("clone3")),
		filtered("shocker", "opens a file of the host by its handle", "open_by_handle_at", "DAC_READ_SEARCH", shocker),
		filtered("bpf", "loads a program into the kernel", "bpf", "SYS_ADMIN", call(unix.SYS_BPF, "0", "0", "0")),
		filtered("userfaultfd", "stops the kernel in the middle of a copy, which wins races", "userfaultfd", "", call(unix.SYS_USERFAULTFD, "1")),
		filtered("perf_event_open", "watches the kernel's counters (CVE-2013-2094 and many after)", "perf_event_open", "PERFMON", call(unix.SYS_PERF_EVENT_OPEN, "0", "0", "-1", "-1", "0")),
		filtered("io_uring", "a second way into the kernel that filters do not see", "io_uring_setup", "", call(unix.SYS_IO_URING_SETUP, "1", "0")),
		withKey(filtered("keyring of the user", "reads a key of another container: keyrings know users, not containers", "keyctl", "", nil), unix.KEY_SPEC_USER_KEYRING),
		withKey(attack{
			name: "session keyring", what: "reads a key of the session that the container was started from, which is open to all who inherit it", mitigation: "a session keyring of its own",
			base: allow("keyctl"), off: all(skip("join session keyring"), skip("open session keyring")),
		}, unix.KEY_SPEC_SESSION_KEYRING),
		execd(withKey(attack{
			name: "session keyring of an exec", what: "the same by a command that an administrator runs in the container", mitigation: "a session keyring of its own",
			base: allow("keyctl"), off: all(late(skip("join session keyring")), late(skip("open session keyring"))),
		}, unix.KEY_SPEC_SESSION_KEYRING)),
		filtered("add_key", "fills the key quota of the user's other containers", "add_key", "", call(unix.SYS_ADD_KEY, "0", "0", "0", "0", "0")),
		filtered("AF_ALG", "the kernel's cryptography by a socket (copy.fail)", "socket", "", call(unix.SYS_SOCKET, "38", "5", "0")),
		filtered("AF_VSOCK", "talks to the hypervisor past every network namespace", "socket", "", call(unix.SYS_SOCKET, "40", "1", "0")),
		filtered("terminal", "types commands on the terminal of whoever started it (TIOCSTI, CVE-2017-5226)", "ioctl", "SYS_ADMIN", terminal),
		filtered("personality", "switches address randomisation off for what it starts", "personality", "", call(unix.SYS_PERSONALITY, "0x40000")),
		filtered("kexec_load", "boots another kernel", "kexec_load", "SYS_BOOT", call(unix.SYS_KEXEC_LOAD, "0", "1000", "0", "0")),
		filtered("init_module", "loads a module into the kernel", "init_module", "SYS_MODULE", call(unix.SYS_INIT_MODULE, "0", "0", "0")),
		filtered("reboot", "stops the machine", "reboot", "SYS_BOOT", call(unix.SYS_REBOOT, "0", "0", "0", "0")),
		filtered("settimeofday", "sets the machine's clock", "settimeofday", "SYS_TIME", call(unix.SYS_SETTIMEOFDAY, "0", "0")),
		filtered("acct", "has the kernel write a file of its choice at each exit", "acct", "SYS_PACCT", call(unix.SYS_ACCT, "s:/nothing/there")),
		filtered("swapon", "gives the kernel memory of its own making", "swapon", "SYS_ADMIN", call(unix.SYS_SWAPON, "s:/nothing/there", "0")),
		filtered("quotactl", "changes quotas of the host's file systems", "quotactl", "SYS_ADMIN", call(unix.SYS_QUOTACTL, "-1", "s:/nothing", "0", "0")),
		filtered("kernel log", "reads the host's kernel log, with its addresses", "syslog", "SYSLOG", kernelLog),
		filtered("fanotify_init", "watches every file of a file system that it shares", "fanotify_init", "SYS_ADMIN", call(unix.SYS_FANOTIFY_INIT, "0", "0")),
		filtered("pidfd_getfd", "takes descriptors out of another process", "pidfd_getfd", "SYS_PTRACE", call(unix.SYS_PIDFD_GETFD, "-1", "0", "0")),
		foreign("i386 calls", "makes system calls of 32-bit programs, whose numbers a filter reads as others", "i386"),
		foreign("x32 calls", "the same with the numbers of the x32 ABI (CVE-2014-0038 was there)", "x32"),
		{
			name: "release_agent", what: "mounts a cgroup v1 hierarchy and names a program for the host's kernel to run (CVE-2022-0492)", mitigation: "seccomp: mount",
			setup: func(b *box) { b.attack("release", "attack"+b.ID) }, hostIDs: true,
			base: all(caps("SYS_ADMIN"), share(specs.CgroupNamespace)), off: allow("mount"), needs: cgroupV1,
		},
		{
			name: "fresh procfs", what: "mounts a procfs without masks in namespaces of its own", mitigation: "masked and read-only paths, which the kernel does not let a user namespace uncover",
			setup: run("freshproc"), base: allow("unshare", "clone", "mount"),
			off: func(b *box) { b.Spec.Linux.MaskedPaths, b.Spec.Linux.ReadonlyPaths = nil, nil },
		},
	}
}

// foreign is an attack by another ABI, which the kernel must have.
func foreign(name, what, abi string) attack {
	return attack{
		name: name, what: what, mitigation: "seccomp: the check of the architecture", dies: true,
		setup: run(abi), off: func(b *box) { b.Spec.Linux.Seccomp = nil },
		needs: func() string {
			cmd := exec.Command("/proc/self/exe", "attack", abi)
			if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != worked {
				return fmt.Sprintf("this machine has no system calls of %s (%v)", abi, err)
			}
			return ""
		},
	}
}

func cgroupV1() string {
	if data, err := os.ReadFile("/proc/cgroups"); err != nil || !strings.Contains(string(data), "devices") || !onV1("devices") {
		return "the machine has no cgroup v1 hierarchies"
	}
	return ""
}

func onV1(controller string) bool {
	_, err := os.Stat("/sys/fs/cgroup/" + controller + "/tasks")
	return err == nil
}

func shocker(b *box) {
	vol := b.t.TempDir()
	b.bind(vol, "/vol")
	args, err := handleOf(b.canary())
	must(b.t, err)
	b.attack("handle", args...)
	b.leaks()
}

func kernelLog(b *box) {
	there := eventually(5*time.Second, func() bool { // the kernel drops messages when there are many
		must(b.t, os.WriteFile("/dev/kmsg", []byte("<7>naru attack test "+b.token), 0))
		lines, err := kernelMessages()
		must(b.t, err)
		return strings.Contains(lines, b.token)
	})
	if !there {
		b.t.Error("the kernel's log does not take the canary")
	}
	b.attack("dmesg")
	b.leaks()
}

// withKey puts a key into a keyring of the tests.
func withKey(a attack, ring int) attack {
	a.hostIDs = ring == unix.KEY_SPEC_USER_KEYRING // another user namespace has other users, with keyrings of their own
	a.setup = func(b *box) {
		name := "naru-attack-" + b.ID
		id, err := unix.AddKey("user", name, []byte(b.token), ring)
		must(b.t, err)
		b.t.Cleanup(func() {
			if _, err := unix.KeyctlInt(unix.KEYCTL_UNLINK, id, ring, 0, 0); err != nil {
				b.t.Errorf("remove key: %v", err)
			}
		})
		if ring == unix.KEY_SPEC_USER_KEYRING { // without possession it is the user's right that counts
			const possessorAll, userAll = 0x3f000000, 0x3f0000
			must(b.t, unix.KeyctlSetperm(id, possessorAll|userAll))
		}
		b.attack("key", name, strconv.Itoa(ring))
		b.leaks()
	}
	return a
}

// execd runs the attack as one more process of a container.
func execd(a attack) attack {
	setup := a.setup
	a.setup = func(b *box) {
		setup(b)
		args := b.Spec.Process.Args
		b.attack("sleep", "30")
		b.drive = func() result {
			c, err := b.start()
			must(b.t, err)
			p := *b.Spec.Process
			p.Args = args
			b.steps = nil
			all(b.late...)(b)
			return b.exec(c, &p)
		}
	}
	return a
}

// privileges are stopped by what the process may not have.
func privileges() []attack {
	needs := func(name, what, capability string, hostIDs bool, setup, base change) attack {
		return attack{name: name, what: what, mitigation: "no CAP_" + capability, setup: setup, hostIDs: hostIDs, base: base, off: caps(capability)}
	}
	return []attack{
		needs("file by handle", "opens a file of the host by its handle, where the filter lets it", "DAC_READ_SEARCH", true, shocker, allow("open_by_handle_at")),
		needs("packet socket", "reads and forges every packet of its network (ARP, RA spoofing)", "NET_RAW", false, call(unix.SYS_SOCKET, "17", "3", "0x300"), nil),
		needs("raw socket", "forges addresses in IP packets", "NET_RAW", false, call(unix.SYS_SOCKET, "2", "3", "1"), nil),
		needs("interfaces", "changes its network's interfaces, routes and firewall", "NET_ADMIN", false, run("ifdown"), nil),
		needs("priority", "takes the processor from others by a negative nice value", "SYS_NICE", true, run("priority"), nil),
		needs("clock", "changes the speed of the machine's clock", "SYS_TIME", true, run("clock"), nil),
		withLoop(needs("device node", "makes a node for the machine's disk and reads it", "MKNOD", true, disk, allDevices)),
		needs("type on the terminal", "types commands on the terminal of whoever started it (TIOCSTI)", "SYS_ADMIN", true, terminal, allow("ioctl")),
	}
}

// programs are attacks by what a program of the image would get, or a user keep.
func programs() []attack {
	asUser := func(args ...string) change {
		return func(b *box) {
			b.file("secret", b.token, 0o600)
			b.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
			b.attack("run", append(args, "cat", "/secret")...)
			b.leaks()
		}
	}
	return []attack{
		{
			name: "set-user-id program", what: "becomes root by a set-user-id program of the image", mitigation: "no_new_privs",
			setup: asUser("/setuid"), off: newPrivileges,
		},
		{
			name: "file capabilities", what: "gets capabilities by a program of the image that has some", mitigation: "no_new_privs",
			setup: asUser("/filecaps"), hostIDs: true, off: newPrivileges,
		},
		{
			name: "inheritable capabilities", what: "gets capabilities that an engine left inheritable (CVE-2022-29162)", mitigation: "an empty inheritable set",
			setup: asUser("/inherit"), hostIDs: true, base: newPrivileges,
			off: func(b *box) { c := b.Spec.Process.Capabilities; c.Inheritable = c.Permitted },
		},
		{
			name: "bounding set", what: "regains all of root's capabilities by starting a program", mitigation: "the bounding set",
			setup: run("ifdown"), base: newPrivileges,
			off: func(b *box) {
				c := b.Spec.Process.Capabilities
				c.Bounding = append([]string{"CAP_NET_ADMIN"}, c.Bounding...)
			},
		},
		{
			refused: "out of range", name: "user id overflow", what: "asks for user 4294967295, which means \"as before\" to the kernel: root (CVE-2024-40635)", mitigation: "the check of ids",
			setup: func(b *box) { b.Spec.Process.User.UID = 1<<32 - 1; b.attack("root") },
			off:   all(func(b *box) { b.Spec.Process.User.UID = 1000 }, edit(every("set user id", noID))),
		},
		{
			name: "groups of the agent", what: "a plain user keeps the groups of who started the engine (CVE-2022-2989)", mitigation: "step: set groups",
			setup: func(b *box) {
				b.file("secret", b.token, 0o640)
				must(b.t, os.Chown(b.layer+"/secret", 0, hostGroup))
				b.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
				b.attack("setgroups", "/secret")
				b.leaks()
			},
			hostIDs: true, off: skip("set groups"),
		},
		{
			name: "chroot", what: "leaves a root made by chroot(2) the classic way", mitigation: "pivot_root instead of chroot",
			setup:   func(b *box) { b.attack("chroot", b.canary()); b.leaks() },
			hostIDs: true, base: all(caps("SYS_CHROOT"), allow("chroot"), besideRoot),
			off: all(edit(every("pivot_root", chrootHere)), skip("enter old root"), skip("drop old root")),
		},
	}
}

func withLoop(a attack) attack { a.needs = loops; return a }

// terminal gives the container a terminal of the host as standard input.
func terminal(b *box) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	must(b.t, err)
	b.t.Cleanup(func() { master.Close() })
	must(b.t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(b.t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(b.t, err)
	b.t.Cleanup(func() { slave.Close() })
	b.Stdin = slave
	b.attack("tiocsti")
}

// limits are stopped by a bound.
func limits() []attack {
	return []attack{
		{
			name: "fork bomb", what: "makes processes without end (here: 300)", mitigation: "pids.max",
			setup: run("fork"), off: func(b *box) { b.Spec.Linux.Resources.Pids = nil },
		},
		{
			dies: true, name: "thread bomb", what: "makes threads without end (here: 300)", mitigation: "pids.max",
			setup: run("threads"), off: func(b *box) { b.Spec.Linux.Resources.Pids = nil },
		},
		{
			dies: true, name: "memory", what: "takes all memory (here: 128 MiB)", mitigation: "the memory limit",
			setup: func(b *box) {
				limit := int64(64 << 20)
				b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
				b.attack("memory")
			},
			off: func(b *box) { b.Spec.Linux.Resources.Memory = nil },
		},
		{
			name: "memory by files", what: "takes all memory by files in /dev/shm, which outlive their writer (here: 80 MiB)", mitigation: "the size of /dev/shm",
			setup: run("fill", "/dev/shm/f"), off: all(withoutOption("/dev/shm", "size="), withOption("/dev/shm", "size=128m")),
		},
		{
			name: "memory by /dev", what: "the same in /dev", mitigation: "the size of /dev",
			setup: run("fill", "/dev/f"), off: all(withoutOption("/dev", "size="), withOption("/dev", "size=128m")),
		},
		{
			name: "memory by empty files", what: "takes the kernel's memory by files in /dev/shm without content, which no size counts (here: 20,000)", mitigation: "the number of files of /dev/shm",
			setup: run("files", "/dev/shm"), off: withoutOption("/dev/shm", "nr_inodes="),
		},
		{
			name: "memory by empty files in /dev", what: "the same in /dev", mitigation: "the number of files of /dev",
			setup: run("files", "/dev"), off: withoutOption("/dev", "nr_inodes="),
		},
		{
			dies: true, name: "memory of temporary files", what: "files in /dev/shm that no size stops are charged to the container", mitigation: "the memory limit",
			setup: func(b *box) {
				limit := int64(48 << 20)
				b.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
				b.attack("fill", "/dev/shm/f")
			},
			base: all(withoutOption("/dev/shm", "size="), withOption("/dev/shm", "size=128m")),
			off:  func(b *box) { b.Spec.Linux.Resources.Memory = nil },
		},
		{
			name: "log", what: "fills the disk with output (here: 8 MiB against a bound of 1 MiB)", mitigation: "the bound of the log",
			setup: func(b *box) {
				b.attack("flood")
				b.judge = func(result) bool {
					size := int64(0)
					for _, name := range []string{"/log", "/log.1"} {
						if info, err := os.Stat(b.Dir + name); err == nil {
							size += info.Size()
						}
					}
					return size > 1<<20+1<<16
				}
			},
			off: func(b *box) { b.LogMax = 64 << 20 },
		},
	}
}

// writableCgroup makes the view of a controller's directory writable.
func writableCgroup(controller string) change {
	return func(b *box) {
		if !onV1(controller) {
			withoutOption("/sys/fs/cgroup", "ro")(b)
			return
		}
		clearAttr("attach /sys/fs/cgroup/"+controller, unix.MOUNT_ATTR_RDONLY)(b)
	}
}

// hold is how long an attacker has to find a process in transit.
const hold = 300 * time.Millisecond
