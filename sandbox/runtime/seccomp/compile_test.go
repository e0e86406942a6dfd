package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// call is struct seccomp_data.
type call struct {
	number, arch uint32
	args         [6]uint64
}

// run is the kernel's interpreter for the instructions that seccomp takes; it
// also returns how many were executed.
func run(t *testing.T, prog []byte, c call) (uint32, int) {
	t.Helper()
	data := binary.LittleEndian.AppendUint32(nil, c.number)
	data = binary.LittleEndian.AppendUint32(data, c.arch)
	data = append(data, make([]byte, 8)...)
	for _, a := range c.args {
		data = binary.LittleEndian.AppendUint64(data, a)
	}
	acc := uint32(0)
	for pc, n := 0, 1; ; pc, n = pc+1, n+1 {
		if (pc+1)*8 > len(prog) {
			t.Fatalf("the program runs past its end at %d", pc)
		}
		in := prog[pc*8:]
		k := binary.NativeEndian.Uint32(in[4:])
		var holds bool
		switch op := binary.NativeEndian.Uint16(in); op {
		case unix.BPF_RET | unix.BPF_K:
			return k, n
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = binary.LittleEndian.Uint32(data[k:])
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= k
			continue
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(k)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			holds = acc == k
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			holds = acc > k
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			holds = acc >= k
		default:
			t.Fatalf("unknown instruction %#x", op)
		}
		if holds {
			pc += int(in[2])
		} else {
			pc += int(in[3])
		}
	}
}

// decide is the policy read literally.
func decide(p *specs.LinuxSeccomp, c call) uint32 {
	deflt, _ := verdict(p.DefaultAction, p.DefaultErrnoRet)
	if c.arch != nativeArch {
		return unix.SECCOMP_RET_KILL_PROCESS
	}
	enosys := unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	if hasX32 && c.number >= x32Bit {
		return enosys
	}
	if c.number > Newest() {
		if p.DefaultAction == specs.ActErrno {
			return enosys
		}
		return deflt
	}
	always := deflt
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if n, ok := Number(name); !ok || n != c.number {
				continue
			}
			v, _ := verdict(s.Action, s.ErrnoRet)
			if len(s.Args) == 0 {
				always = v
			}
		}
	}
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if n, ok := Number(name); ok && n == c.number && len(s.Args) > 0 && argsHold(s.Args, c) {
				v, _ := verdict(s.Action, s.ErrnoRet)
				return v
			}
		}
	}
	return always
}

func argsHold(args []specs.LinuxSeccompArg, c call) bool {
	for _, a := range args {
		v, ok := c.args[a.Index], false
		switch a.Op {
		case specs.OpEqualTo:
			ok = v == a.Value
		case specs.OpNotEqual:
			ok = v != a.Value
		case specs.OpMaskedEqual:
			ok = v&a.Value == a.ValueTwo
		case specs.OpLessThan:
			ok = v < a.Value
		case specs.OpLessEqual:
			ok = v <= a.Value
		case specs.OpGreaterThan:
			ok = v > a.Value
		case specs.OpGreaterEqual:
			ok = v >= a.Value
		}
		if !ok {
			return false
		}
	}
	return true
}

func numbers() []uint32 {
	var all []uint32
	for n := range Newest() + 40 {
		all = append(all, n)
	}
	return append(all, x32Bit-1, x32Bit, x32Bit+1, 1<<31, 1<<32-1)
}

func values(r *rand.Rand, p *specs.LinuxSeccomp) []uint64 {
	vs := []uint64{0, 1, 1 << 32, 1<<64 - 1, r.Uint64()}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			vs = append(vs, a.Value, a.Value-1, a.Value+1, a.Value|1<<32, a.Value^1<<40)
		}
	}
	return vs
}

func compare(t *testing.T, p *specs.LinuxSeccomp) {
	t.Helper()
	prog, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	vs := values(r, p)
	for _, arch := range []uint32{nativeArch, unix.AUDIT_ARCH_I386, 0} {
		for _, n := range numbers() {
			for range 12 {
				c := call{number: n, arch: arch}
				for i := range c.args {
					c.args[i] = vs[r.IntN(len(vs))]
				}
				got, _ := run(t, prog, c)
				if want := decide(p, c); got != want {
					t.Fatalf("%+v: got %#x, want %#x", c, got, want)
				}
			}
		}
	}
}

func TestDefaultPolicy(t *testing.T) {
	compare(t, Default(nil))
	compare(t, Default([]string{"CAP_SYS_ADMIN", "CAP_SYSLOG", "CAP_SYS_CHROOT"}))
}

func TestEveryOperator(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	errno := uint(99)
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpMaskedEqual, specs.OpLessThan,
		specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual}
	for range 40 {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
		for _, e := range table {
			if r.IntN(2) == 0 { // many small ranges: jumps longer than 255
				p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{e.name}, Action: specs.ActErrno, ErrnoRet: &errno})
			}
		}
		for range 6 {
			a := specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Op: ops[r.IntN(len(ops))], Value: r.Uint64() >> r.IntN(64)}
			a.ValueTwo = a.Value & r.Uint64()
			b := a
			b.Index, b.Op = uint(r.IntN(6)), ops[r.IntN(len(ops))]
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{table[r.IntN(len(table))].name}, Action: specs.ActKillProcess, Args: []specs.LinuxSeccompArg{a, b}})
		}
		compare(t, p)
	}
}

// The answers that matter, by name.
func TestDefaultVerdicts(t *testing.T) {
	prog, err := Compile(Default(nil))
	if err != nil {
		t.Fatal(err)
	}
	eperm, enosys := unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM), unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)
	for name, want := range map[string]uint32{
		"read": unix.SECCOMP_RET_ALLOW, "execve": unix.SECCOMP_RET_ALLOW, "clone3": enosys, "bpf": eperm, "mount": eperm,
		"unshare": eperm, "setns": eperm, "keyctl": eperm, "add_key": eperm, "io_uring_setup": eperm, "userfaultfd": eperm,
		"perf_event_open": eperm, "open_by_handle_at": eperm, "kexec_load": eperm, "init_module": eperm, "move_mount": eperm,
		"fsopen": eperm, "open_tree": eperm, "mount_setattr": eperm, "chroot": eperm, "swapon": eperm, "reboot": eperm, "quotactl": eperm,
	} {
		n, ok := Number(name)
		if !ok {
			t.Errorf("%s has no number", name)
		}
		if got, _ := run(t, prog, call{number: n, arch: nativeArch}); got != want {
			t.Errorf("%s: got %#x, want %#x", name, got, want)
		}
	}
	socket, _ := Number("socket")
	for family, want := range map[uint64]uint32{unix.AF_INET: unix.SECCOMP_RET_ALLOW, unix.AF_UNIX: unix.SECCOMP_RET_ALLOW, unix.AF_ALG: eperm, unix.AF_VSOCK: eperm} {
		if got, _ := run(t, prog, call{number: socket, arch: nativeArch, args: [6]uint64{family}}); got != want {
			t.Errorf("socket of family %d: got %#x, want %#x", family, got, want)
		}
	}
	clone, _ := Number("clone")
	if got, _ := run(t, prog, call{number: clone, arch: nativeArch, args: [6]uint64{unix.CLONE_NEWUSER | 17}}); got != eperm {
		t.Errorf("clone(CLONE_NEWUSER): got %#x", got)
	}
}

// The kernel walks the path once per number: it must be a logarithm.
func TestPathIsShort(t *testing.T) {
	prog, err := Compile(Default(nil))
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	for n := range Newest() + 1 {
		if name := map[uint32]bool{56: true, 41: true, 135: true, 220: true, 198: true, 92: true, 16: true, 29: true}; name[n] {
			continue // clone, socket, personality, ioctl look at arguments
		}
		_, steps := run(t, prog, call{number: n, arch: nativeArch})
		longest = max(longest, steps)
	}
	if longest > 14 {
		t.Errorf("the longest path has %d instructions", longest)
	}
	t.Logf("%d instructions, longest path %d", len(prog)/8, longest)
}

func TestUnknownActionsAreRefused(t *testing.T) {
	if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActNotify}); err == nil {
		t.Error("SCMP_ACT_NOTIFY was accepted")
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	for b.Loop() {
		if _, err := Compile(Default(nil)); err != nil {
			b.Fatal(err)
		}
	}
}
