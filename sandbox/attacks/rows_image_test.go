package attacks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
	"naru/sandbox/runtime/launch/step"
)

// rootOf is the register that holds the detached root.
func rootOf(p step.Program) step.Arg {
	for _, s := range p {
		if s.Name == "attach root" {
			return s.Args[0]
		}
	}
	panic("no step attaches the root")
}

// mounts are attacks by images whose links lead a mount or a write elsewhere.
func mounts() []attack {
	elsewhere := func(name, path, link string, magic int64, what string) attack {
		return attack{
			name: name, what: what, mitigation: "RESOLVE_NO_SYMLINKS for " + path, refused: "open " + path,
			setup: func(b *box) {
				b.file(link+"/x", "", 0o644)
				b.link(path, link)
				b.attack("procat", link, fmt.Sprint(magic))
			},
			off: unresolved("open "+path, unix.RESOLVE_NO_SYMLINKS),
		}
	}
	return []attack{
		elsewhere("/proc is a link", "/proc", "/tmp/p", unix.PROC_SUPER_MAGIC, "an image decides where procfs is, and so what is written to \"/proc\" (CVE-2019-19921)"),
		elsewhere("/sys is a link", "/sys", "/tmp/s", unix.SYSFS_MAGIC, "the same with sysfs (CVE-2023-27561)"),
		elsewhere("/dev is a link", "/dev", "/tmp/d", unix.TMPFS_MAGIC, "the same with /dev and its nodes (CVE-2026-41579)"),
		{
			name: "race in a shared volume", what: "another container swaps a directory of a shared volume for a link between check and mount (CVE-2021-30465); here it always wins", mitigation: "mounting on a descriptor, not on a path",
			setup: race, off: edit(mountByPath),
		},
		{
			name: "sysctl through a link", what: "an image leads the engine's write of a sysctl to a file of the host (CVE-2025-52881)", mitigation: "a procfs of the engine's own, without links",
			setup: func(b *box) {
				b.link("proc/sys/net/ipv4/ip_unprivileged_port_start", b.canary())
				b.link("proc/sys/net/ipv4/ping_group_range", b.canary())
				b.attack("sleep", "0")
				b.overwrites()
			},
			hostIDs: true, off: edit(sysctlInRoot),
		},
		{
			name: "null device of the image", what: "an image puts a link where the engine takes the null device for its masks (CVE-2025-31133)", mitigation: "masks of a null device of the engine's own",
			setup: func(b *box) {
				b.file("etc/secret", b.token, 0o644)
				b.link("dev/null", "/etc/secret")
				b.attack("cat", "/proc/timer_list")
				b.leaks()
			},
			base: withoutDev, off: edit(nullOfImage),
		},
	}
}

// places are attacks by where something is to be mounted, or made.
func places() []attack {
	confine := uint64(unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS)
	return []attack{
		{
			refused: "open /vol", name: "volume through a link", what: "a link at a volume's place makes directories on the host (CVE-2024-45310, CVE-2022-23648)", mitigation: "RESOLVE_IN_ROOT",
			setup: func(b *box) {
				b.link("vol", b.host)
				b.bind(b.t.TempDir(), "/vol/made")
				b.attack("sleep", "0")
				b.judge = exists(filepath.Join(b.host, "made"))
			},
			hostIDs: true, off: unresolved("open /vol/made", confine),
		},
		{
			name: "volume at ..", what: "a volume's place with many \"..\" makes directories on the host (VOLUME ../.., CVE-2022-23648)", mitigation: "RESOLVE_IN_ROOT",
			setup: func(b *box) {
				place := "/" + strings.Repeat("../", 40) + b.host[1:] + "/made"
				b.bind(b.t.TempDir(), place)
				b.attack("sleep", "0")
				b.judge = exists(filepath.Join(b.host, "made"))
			},
			hostIDs: true, base: besideRoot, off: unresolved("open /../", confine),
		},
		{
			refused: "open /vol", name: "volume through a link with ..", what: "the same by a link of the image", mitigation: "RESOLVE_IN_ROOT",
			setup: func(b *box) {
				b.link("vol", strings.Repeat("../", 40)+b.host[1:])
				b.bind(b.t.TempDir(), "/vol/made")
				b.attack("sleep", "0")
				b.judge = exists(filepath.Join(b.host, "made"))
			},
			hostIDs: true, base: besideRoot, off: unresolved("open /vol/made", confine),
		},
		{
			refused: "open /conf", name: "/etc/hosts through a link", what: "a link at /etc makes files on the host when the engine puts hosts there", mitigation: "RESOLVE_IN_ROOT",
			setup: func(b *box) {
				b.link("conf", b.host)
				b.bind(b.canary(), "/conf/hosts")
				b.attack("sleep", "0")
				b.judge = exists(filepath.Join(b.host, "hosts"))
			},
			hostIDs: true, off: unresolved("open /conf/hosts", confine),
		},
		{
			refused: "open /work", name: "working directory through a link", what: "a link at WORKDIR makes directories on the host", mitigation: "RESOLVE_IN_ROOT",
			setup: func(b *box) {
				b.link("work", b.host)
				b.Spec.Process.Cwd = "/work/made"
				b.attack("sleep", "0")
				b.judge = exists(filepath.Join(b.host, "made"))
			},
			hostIDs: true, off: unresolved("open /work/made", confine),
		},
	}
}

func exists(path string) func(result) bool {
	return func(result) bool { _, err := os.Lstat(path); return err == nil }
}

func race(b *box) {
	shared, second := b.t.TempDir(), b.t.TempDir()
	must(b.t, os.Mkdir(filepath.Join(shared, "x"), 0o755))
	must(b.t, os.Symlink("../proc", filepath.Join(shared, "evil")))
	must(b.t, os.WriteFile(filepath.Join(second, "token"), []byte(b.token), 0o644))
	b.bind(shared, "/vol")
	b.bind(second, "/vol/x")
	b.steps = append(b.steps, func(p step.Program) step.Program {
		root := rootOf(p)
		swap := step.Call("attacker swaps", unix.SYS_RENAMEAT2, root, step.S("vol/x"), root, step.S("vol/evil"), step.I(unix.RENAME_EXCHANGE))
		for i, s := range p {
			if s.Name == "attach /vol/x" {
				return append(p[:i:i], append(step.Program{swap}, p[i:]...)...)
			}
		}
		panic("no step attaches /vol/x")
	})
	b.attack("cat", "/proc/token")
	b.leaks()
}

// mountByPath follows links at the time of the mount, as mount(2) does.
func mountByPath(p step.Program) step.Program {
	root := rootOf(p)
	return every("attach /vol/x", func(s *step.Step) {
		if s.NR == unix.SYS_MOVE_MOUNT {
			s.Args[2], s.Args[3], s.Args[4] = root, step.S("vol/x"), step.I(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
		}
	})(p)
}

// sysctlInRoot writes sysctls below the image's root, as it is.
func sysctlInRoot(p step.Program) step.Program {
	root := rootOf(p)
	return every("sysctl net", func(s *step.Step) {
		if s.NR != unix.SYS_OPENAT2 {
			return
		}
		s.Args[0] = root
		s.Args[1] = step.S("proc/" + strings.TrimSuffix(string(s.Args[1].Data), "\x00"))
		how := make([]byte, 24)
		copy(how, s.Args[2].Data[:8])
		s.Args[2] = step.B(how)
	})(p)
}

// withoutDev leaves /dev to the image.
func withoutDev(b *box) {
	var kept []specs.Mount
	for _, m := range b.Spec.Mounts {
		if !strings.HasPrefix(m.Destination, "/dev") {
			kept = append(kept, m)
		}
	}
	b.Spec.Mounts = kept
}

// nullOfImage takes the null device for masks from the image.
func nullOfImage(p step.Program) step.Program {
	root := rootOf(p)
	return every("open /dev/null", func(s *step.Step) {
		how := make([]byte, 24)
		how[2] = unix.O_PATH >> 16
		how[16] = unix.RESOLVE_IN_ROOT
		*s = step.Call(s.Name, unix.SYS_OPENAT2, root, step.S("dev/null"), step.B(how), step.I(24)).Into(s.Out)
	})(p)
}

// descriptors are attacks by what the engine's processes hold.
func descriptors() []attack {
	return []attack{
		{
			name: "leaked descriptor", what: "uses a directory of the host that the engine left open (CVE-2024-21626)", mitigation: "step: close on exec",
			setup: func(b *box) {
				leak(b.host, "attach root")(b)
				b.attack("fds")
				b.leaks()
			},
			hostIDs: true, off: skip("close on exec"),
		},
		{
			name: "root of the host", what: "writes a file of the host's root through a descriptor that a mistake left open", mitigation: "the user namespace",
			setup: func(b *box) {
				leak(b.host, "attach root")(b)
				b.attack("writeat", fmt.Sprint(leakedFD))
				b.overwrites()
			},
			base: skip("close on exec"), off: sameIDs,
		},
		{
			refused: "check working directory", name: "WORKDIR /proc/self/fd/N", what: "starts in a directory of the host that the engine holds (CVE-2024-21626)", mitigation: "step: check working directory",
			setup: func(b *box) {
				leak(b.host, "attach root")(b)
				b.Spec.Process.Cwd = fmt.Sprint("/proc/self/fd/", leakedFD)
				b.attack("cat", "canary")
				b.leaks()
			},
			hostIDs: true, base: withoutWorkdir, off: skip("check working directory"),
		},
		{
			refused: "open /proc/self/fd", name: "making WORKDIR /proc/self/fd/N", what: "the same, while the engine makes the directory: a magic link leads out of any root", mitigation: "RESOLVE_NO_MAGICLINKS",
			setup: func(b *box) {
				leak(b.host, "attach root")(b)
				b.Spec.Process.Cwd = fmt.Sprintf("/proc/self/fd/%d/made", leakedFD)
				b.attack("sleep", "0")
				b.judge = exists(filepath.Join(b.host, "made"))
			},
			hostIDs: true, off: unresolved("open /proc/self/fd", unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS),
		},
		{
			refused: "check working directory", name: "exec in /proc/self/fd/N", what: "the same by the working directory of an exec (CVE-2024-21626)", mitigation: "step: check working directory",
			setup: execElsewhere, hostIDs: true, off: late(skip("check working directory")),
		},
		{
			name: "trace the exec helper", what: "opens the memory of a process that enters the container with all capabilities (CVE-2016-9962)", mitigation: "step: hide from ptrace",
			setup: helper, base: caps("SYS_PTRACE"), off: late(skip("hide from ptrace")),
		},
		{
			name: "overwrite the engine's program", what: "opens the running program for writing by /proc/self/exe (CVE-2019-5736)", mitigation: "the sealed memory file",
			setup: engineProgram, hostIDs: true, off: unsealed,
		},
	}
}

// withoutWorkdir does not make the working directory: "/" is opened instead.
func withoutWorkdir(b *box) {
	edit(every("open "+b.Spec.Process.Cwd, func(s *step.Step) { s.Args[1] = step.S(".") }))(b)
}

func execElsewhere(b *box) {
	b.attack("sleep", "30")
	b.drive = func() result {
		c, err := b.start()
		must(b.t, err)
		p := *b.Spec.Process
		p.Args = []string{"/attack", "attack", "cat", "canary"}
		p.Cwd = fmt.Sprint("/proc/self/fd/", leakedFD)
		b.steps = nil
		leak(b.host, "enter namespaces")(b)
		all(b.late...)(b)
		return b.exec(c, &p)
	}
	b.leaks()
}

// helper holds a process on its way into the container for a moment.
func helper(b *box) {
	b.attack("helper")
	b.drive = func() result {
		c, err := b.start()
		must(b.t, err)
		if !eventually(deadline, func() bool { data, _ := os.ReadFile(b.Dir + "/log"); return strings.Contains(string(data), "ready") }) {
			b.t.Error("the attacker did not start")
		}
		p := *b.Spec.Process
		p.Args = []string{"/attack", "attack", "write", "x", "/tmp/stop"}
		b.steps = nil
		before("become root of the user namespace", func(step.Step) []step.Step {
			return []step.Step{step.Call("hold", unix.SYS_NANOSLEEP, step.B(timespec(hold)), step.I(0))}
		})(b)
		all(b.late...)(b)
		b.exec(c, &p)
		return b.wait(c)
	}
}

// engineProgram gives the attacker what it would find behind /proc/self/exe: the
// program of this container's monitor.
func engineProgram(b *box) {
	b.Stdin = engineMemfd(b)
	b.attack("exe")
	b.judge = func(result) bool {
		start := make([]byte, 5)
		_, err := b.Stdin.ReadAt(start, 0)
		must(b.t, err)
		return string(start) == "pwned"
	}
}

// engineMemfd opens the memory file that this process runs its monitors from.
func engineMemfd(b *box) *os.File {
	m, err := runtime.StartMonitor(b.Cgroup + "x")
	must(b.t, err)
	must(b.t, m.Close(b.context()))
	links, err := filepath.Glob("/proc/self/fd/*")
	must(b.t, err)
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil && strings.HasPrefix(name, "/memfd:naru-init") {
			f, err := os.Open(link)
			must(b.t, err)
			b.t.Cleanup(func() { f.Close() })
			// While a monitor runs, ETXTBSY would stop the attack too; the seals always do.
			if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_WRITE == 0 {
				b.t.Errorf("seals %#x, %v", seals, err)
			}
			return f
		}
	}
	b.t.Fatal("no memory file of the engine is open")
	return nil
}

// unsealed is a program in a memory file as the engine's is, but for the seals.
func unsealed(b *box) {
	fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC)
	must(b.t, err)
	b.Stdin = os.NewFile(uintptr(fd), "unsealed")
	_, err = b.Stdin.WriteString("program")
	must(b.t, err)
}
