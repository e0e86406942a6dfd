package seccomp

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// compare runs the program and the literal reading side by side.
func compare(t *testing.T, goarch string, p *specs.LinuxSeccomp, r *rand.Rand) {
	t.Helper()
	f, err := buildFor(goarch, p)
	if err != nil {
		t.Fatal(err)
	}
	archs, err := architectures(goarch, p.Architectures)
	if err != nil {
		t.Fatal(err)
	}
	var readings []reading
	for _, a := range archs {
		readings = append(readings, readLiterally(t, a, p))
	}
	vs := []uint64{0, 1, 5, 8, 1 << 32, 1<<64 - 1, r.Uint64(), uint64(r.Uint32())}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			vs = append(vs, a.Value, a.Value-1, a.Value+1, a.Value|1<<32, a.Value^1<<40, a.ValueTwo, a.ValueTwo|^a.Value, uint64(uint32(a.Value)))
		}
	}
	for _, n := range interesting(p, r) {
		for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, 0} {
			d := data{number: n, arch: arch}
			for i := range d.args {
				d.args[i] = vs[r.IntN(len(vs))]
			}
			want := uint32(unix.SECCOMP_RET_KILL_PROCESS)
			for _, reading := range readings {
				if reading.arch.audit == arch && n >= reading.arch.bit {
					want = reading.decide(d)
				}
			}
			if got, _ := interpret(t, f.Program, d); got != want {
				t.Fatalf("%+v: got %#x, want %#x of %+v", d, got, want, p)
			}
		}
	}
}

// interesting are numbers that the policy names, on any architecture, their
// neighbours, and others.
func interesting(p *specs.LinuxSeccomp, r *rand.Rand) []uint32 {
	all := []uint32{0, 102, 117, 600, 0xeffff, 0xf0000, 0xf0005, x32Bit - 1, x32Bit, x32Bit + 1, x32Bit + 600, 1 << 31, 1<<32 - 1}
	for range 40 {
		all = append(all, r.Uint32N(480), x32Bit+r.Uint32N(550))
	}
	for _, s := range p.Syscalls {
		for _, a := range slices.Concat(family("amd64"), family("arm64")) {
			for range min(len(s.Names), 3) {
				if n, ok := a.number(s.Names[r.IntN(len(s.Names))]); ok {
					all = append(all, n-1, n, n+1)
				}
			}
		}
	}
	return all
}

// TestProgramsDecideAsThePolicyReads is the proof of the compiler: random policies,
// random calls.
func TestProgramsDecideAsThePolicyReads(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		goarch := []string{"amd64", "arm64"}[r.IntN(2)]
		compare(t, goarch, randomPolicy(r), r)
	}
}

func randomPolicy(r *rand.Rand) *specs.LinuxSeccomp {
	errnos := []*uint{nil, new(uint), new(uint)}
	*errnos[1], *errnos[2] = 38, 99
	action := func() (specs.LinuxSeccompAction, *uint) {
		a := Actions()[r.IntN(len(Actions()))]
		if a == specs.ActErrno || a == specs.ActTrace {
			return a, errnos[r.IntN(3)]
		}
		return a, nil
	}
	p := &specs.LinuxSeccomp{ListenerPath: "/run/agent"}
	for p.DefaultAction == "" || p.DefaultAction == specs.ActNotify {
		p.DefaultAction, p.DefaultErrnoRet = action()
	}
	for _, a := range []specs.Arch{specs.ArchX86, specs.ArchX32, specs.ArchARM, specs.ArchMIPS} {
		if r.IntN(2) == 0 {
			p.Architectures = append(p.Architectures, a)
		}
	}
	few := []string{"socket", "ioctl", "clone", "read", "ipc", "semop", "socketcall", "accept4", "set_tls", "nosuchcall"}
	for range r.IntN(20) {
		s := specs.LinuxSyscall{}
		s.Action, s.ErrnoRet = action()
		for range 1 + r.IntN(12) {
			name := table[r.IntN(len(table))].name
			if r.IntN(3) == 0 {
				name = few[r.IntN(len(few))]
			}
			if name != "write" {
				s.Names = append(s.Names, name)
			}
		}
		for range r.IntN(5) {
			a := specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Op: Operators()[r.IntN(7)], Value: r.Uint64() >> r.IntN(64)}
			if r.IntN(4) == 0 {
				a.Value = []uint64{0, 1, 1<<64 - 1, 1 << 32, 1<<32 - 1}[r.IntN(5)]
			}
			a.ValueTwo = a.Value & r.Uint64()
			s.Args = append(s.Args, a)
		}
		if len(s.Names) > 0 {
			p.Syscalls = append(p.Syscalls, s)
		}
	}
	return p
}

// Many small ranges need jumps longer than one instruction reaches.
func TestManyRanges(t *testing.T) {
	errno := uint(99)
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 2))
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86, specs.ArchX32, specs.ArchARM}}
		for _, e := range table {
			if r.IntN(2) == 0 {
				p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{e.name}, Action: specs.ActErrno, ErrnoRet: &errno})
			}
		}
		compare(t, []string{"amd64", "arm64"}[seed%2], p, r)
	}
}

func TestDefaultPolicy(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	for _, goarch := range []string{"amd64", "arm64"} {
		compare(t, goarch, Default(nil), r)
		compare(t, goarch, Default([]string{"CAP_SYS_ADMIN", "CAP_SYSLOG", "CAP_SYS_CHROOT"}), r)
		compare(t, goarch, Default(nil, specs.ArchX86, specs.ArchX32, specs.ArchARM), r)
	}
}

// The answers that matter, by name.
func TestDefaultVerdicts(t *testing.T) {
	eperm := unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	for _, goarch := range []string{"amd64", "arm64"} {
		f, err := buildFor(goarch, Default(nil))
		if err != nil {
			t.Fatal(err)
		}
		native := family(goarch)[0]
		ask := func(name string, args ...uint64) uint32 {
			n, ok := native.number(name)
			if !ok {
				t.Fatalf("%s has no number", name)
			}
			d := data{number: n, arch: native.audit}
			copy(d.args[:], args)
			got, _ := interpret(t, f.Program, d)
			return got
		}
		for name, want := range map[string]uint32{"read": unix.SECCOMP_RET_ALLOW, "execve": unix.SECCOMP_RET_ALLOW, "clone3": enosys, "listns": enosys} {
			if got := ask(name); got != want {
				t.Errorf("%s: %s: got %#x, want %#x", goarch, name, got, want)
			}
		}
		for _, name := range strings.Fields("bpf mount umount2 unshare setns keyctl add_key request_key io_uring_setup io_uring_enter io_uring_register " +
			"userfaultfd perf_event_open open_by_handle_at kexec_load init_module finit_module move_mount fsopen fsmount fsconfig fspick open_tree " +
			"mount_setattr chroot pivot_root swapon reboot quotactl acct settimeofday syslog nfsservctl") {
			if got := ask(name); got != eperm {
				t.Errorf("%s: %s: got %#x", goarch, name, got)
			}
		}
		for family, want := range map[uint64]uint32{unix.AF_INET: unix.SECCOMP_RET_ALLOW, unix.AF_UNIX: unix.SECCOMP_RET_ALLOW, unix.AF_NETLINK: unix.SECCOMP_RET_ALLOW,
			unix.AF_ALG: eperm, unix.AF_VSOCK: eperm, 4: eperm, 46: eperm, 1 << 32: eperm} {
			if got := ask("socket", family); got != want {
				t.Errorf("%s: socket of family %d: got %#x, want %#x", goarch, family, got, want)
			}
		}
		for _, flag := range []uint64{unix.CLONE_NEWNS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET} {
			if got := ask("clone", flag|17); got != eperm {
				t.Errorf("%s: clone with %#x: got %#x", goarch, flag, got)
			}
		}
		for request, want := range map[uint64]uint32{unix.TCGETS: unix.SECCOMP_RET_ALLOW, unix.TIOCSTI: eperm, 1<<32 | unix.TIOCSTI: eperm, unix.TIOCLINUX: eperm} {
			if got := ask("ioctl", 0, request); got != want {
				t.Errorf("%s: ioctl %#x: got %#x", goarch, request, got)
			}
		}
		for _, d := range []data{{number: 11, arch: unix.AUDIT_ARCH_I386}, {arch: unix.AUDIT_ARCH_ARM}, {arch: 0}} {
			if got, _ := interpret(t, f.Program, d); got != unix.SECCOMP_RET_KILL_PROCESS {
				t.Errorf("%s: foreign call %+v: %#x", goarch, d, got)
			}
		}
	}
}

// The kernel walks the path once per number: it must be a logarithm.
func TestPathIsShort(t *testing.T) {
	f, err := buildFor("amd64", Default(nil))
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	for n := range uint32(480) {
		if slices.Contains([]uint32{16, 41, 56, 135}, n) {
			continue // ioctl, socket, clone, personality look at arguments
		}
		_, steps := interpret(t, f.Program, data{number: n, arch: unix.AUDIT_ARCH_X86_64})
		longest = max(longest, steps)
	}
	if longest > 14 {
		t.Errorf("the longest path has %d instructions", longest)
	}
	t.Logf("%d instructions, longest path %d", len(f.Program)/8, longest)
}

func TestBadPoliciesNameTheField(t *testing.T) {
	one, many := uint(1), uint(4096)
	rule := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		if s.Names == nil {
			s.Names = []string{"read"}
		}
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{s}}
	}
	for want, p := range map[string]*specs.LinuxSeccomp{
		`default: action: "" is not known`:                          {},
		`default: errnoRet: 1: action SCMP_ACT_ALLOW takes`:         {DefaultAction: specs.ActAllow, DefaultErrnoRet: &one},
		`defaultAction: "SCMP_ACT_NOTIFY"`:                          {DefaultAction: specs.ActNotify, ListenerPath: "/x"},
		`syscalls[0]: errnoRet: 4096: action SCMP_ACT_ERRNO takes`:  rule(specs.LinuxSyscall{Action: specs.ActErrno, ErrnoRet: &many}),
		`syscalls[0]: action: "SCMP_ACT_X" is not known`:            rule(specs.LinuxSyscall{Action: "SCMP_ACT_X"}),
		`syscalls[0]: names`:                                        rule(specs.LinuxSyscall{Action: specs.ActErrno, Names: []string{}}),
		`syscalls[0]: args[0].index: 6`:                             rule(specs.LinuxSyscall{Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}),
		`syscalls[0]: args[0].op: "SCMP_CMP_X"`:                     rule(specs.LinuxSyscall{Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "SCMP_CMP_X"}}}),
		`syscalls[0]: SCMP_ACT_NOTIFY of write`:                     rule(specs.LinuxSyscall{Action: specs.ActNotify, Names: []string{"write"}}),
		`listenerPath: missing`:                                     rule(specs.LinuxSyscall{Action: specs.ActNotify}),
		`listenerMetadata: "x": without a listenerPath`:             {DefaultAction: specs.ActAllow, ListenerMetadata: "x"},
		`flags[0]: "SECCOMP_FILTER_FLAG_NEW_LISTENER" is not known`: {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NEW_LISTENER"}},
		`architectures[0]: "amd64" is not known`:                    {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"amd64"}},
	} {
		if _, err := Build(p); err == nil || !strings.Contains(err.Error(), "compile seccomp policy: "+want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestFlagsAndListener(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/run/agent.sock", ListenerMetadata: "m", Flags: Flags()}
	if !slices.Contains(p.Flags, specs.LinuxSeccompFlagLog) {
		t.Fatal("not even LOG of Linux 4.14:", p.Flags)
	}
	f, err := Build(p)
	if err != nil || f.Listener || f.ListenerPath != "" || f.Flags != unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_LOG|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW {
		t.Errorf("without a rule that notifies: %+v, %v", f, err)
	}
	p.Syscalls = []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}
	f, err = Build(p)
	if err != nil || !f.Listener || f.ListenerPath != p.ListenerPath || f.ListenerMetadata != "m" || f.Flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
		t.Errorf("with one: %+v, %v", f, err)
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	for b.Loop() {
		if _, err := Build(Default(nil)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoad loads the default policy: as it is compiled, and as the chain of
// comparisons that libseccomp writes.
func BenchmarkLoad(b *testing.B) {
	tree, err := Build(Default(nil))
	if err != nil {
		b.Fatal(err)
	}
	for name, prog := range map[string][]byte{"tree": tree.Program, "chain": chain()} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				done := make(chan error)
				go func() {
					runtime.LockOSThread() // and no unlocking: the thread ends with its filter
					_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
					b.StartTimer()
					err := load(prog, 0)
					b.StopTimer()
					done <- err
				}()
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
