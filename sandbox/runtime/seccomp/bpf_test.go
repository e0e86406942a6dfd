package seccomp

import (
	"encoding/binary"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// data is struct seccomp_data.
type data struct {
	number, arch uint32
	args         [6]uint64
}

// interpret is the kernel's interpreter for the instructions that seccomp takes; it
// also returns how many were executed.
func interpret(t *testing.T, prog []byte, d data) (uint32, int) {
	t.Helper()
	mem := binary.LittleEndian.AppendUint32(nil, d.number)
	mem = binary.LittleEndian.AppendUint32(mem, d.arch)
	mem = append(mem, make([]byte, 8)...)
	for _, a := range d.args {
		mem = binary.LittleEndian.AppendUint64(mem, a)
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
			acc = binary.LittleEndian.Uint32(mem[k:])
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

// reading is a policy for one architecture, by name and not by number.
type reading struct {
	arch   arch
	deflt  uint32
	rules  []readRule
	newest int64 // -1: no name
}

type readRule struct {
	number  uint32
	verdict uint32
	args    []specs.LinuxSeccompArg
	hidden  *multiplexer // behind a call of calls
}

// readLiterally shares the table with the compiler, and nothing else.
func readLiterally(t *testing.T, a arch, p *specs.LinuxSeccomp) reading {
	t.Helper()
	behind := multiplexed()
	out := reading{arch: a, deflt: must(t, p.DefaultAction, p.DefaultErrnoRet), newest: -1}
	for _, s := range p.Syscalls {
		v := must(t, s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			if n, ok := a.number(name); ok {
				if a.private == 0 || n < a.private {
					out.newest = max(out.newest, int64(n))
				}
				out.rules = append(out.rules, readRule{number: n, verdict: v, args: s.Args})
			}
			if m, ok := behind[name]; ok && a.name == specs.ArchX86 && (len(s.Args) == 0 || stricter(v, out.deflt)) {
				n, _ := a.number(m.call)
				out.rules = append(out.rules, readRule{number: n, verdict: v, hidden: &m})
			}
		}
	}
	return out
}

func (p reading) decide(d data) uint32 {
	if p.arch.name == specs.ArchX86_64 && d.number >= x32Bit {
		return enosys
	}
	for _, r := range p.rules {
		if r.number == d.number && len(r.args) == 0 && r.hidden == nil && r.verdict != p.deflt {
			return r.verdict
		}
	}
	for _, r := range p.rules {
		if r.number != d.number {
			continue
		}
		if r.hidden != nil && d.args[0]&r.hidden.mask&0xffffffff == r.hidden.value || len(r.args) > 0 && hold(r.args, d.args, p.arch.narrow) {
			return r.verdict
		}
	}
	own := p.arch.private != 0 && d.number >= p.arch.private
	if p.newest >= 0 && int64(d.number) > p.newest && !own && p.deflt&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		return enosys
	}
	return p.deflt
}

func must(t *testing.T, a specs.LinuxSeccompAction, errno *uint) uint32 {
	t.Helper()
	v, err := verdict(a, errno)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// hold asks all conditions, or any of them if two are of one argument.
func hold(args []specs.LinuxSeccompArg, values [6]uint64, narrow bool) bool {
	var count [6]int
	any, all, twice := false, true, false
	for _, a := range args {
		count[a.Index]++
		twice = twice || count[a.Index] > 1
		v, x, y := values[a.Index], a.Value, a.ValueTwo
		if narrow {
			v, x, y = uint64(uint32(v)), uint64(uint32(x)), uint64(uint32(y))
		}
		ok := false
		switch a.Op {
		case specs.OpEqualTo:
			ok = v == x
		case specs.OpNotEqual:
			ok = v != x
		case specs.OpMaskedEqual:
			ok = v&x == y
		case specs.OpLessThan:
			ok = v < x
		case specs.OpLessEqual:
			ok = v <= x
		case specs.OpGreaterThan:
			ok = v > x
		case specs.OpGreaterEqual:
			ok = v >= x
		}
		any, all = any || ok, all && ok
	}
	return all || twice && any
}
