package seccomp

import (
	"fmt"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

type compiler struct {
	code  []unix.SockFilter
	deflt uint32
}

func (c *compiler) emit(op uint16, jt, jf uint8, k uint32) {
	c.code = append(c.code, unix.SockFilter{Code: op, Jt: jt, Jf: jf, K: k})
}

func (c *compiler) ret(v uint32) { c.emit(unix.BPF_RET|unix.BPF_K, 0, 0, v) }

// tree is a binary search; every leaf ends in a return.
func (c *compiler) tree(segs []segment) ([]unix.SockFilter, error) {
	if len(segs) == 1 {
		leaf := &compiler{deflt: c.deflt}
		if segs[0].rule == nil {
			leaf.ret(segs[0].verdict)
			return leaf.code, nil
		}
		err := leaf.arguments(segs[0].rule)
		return leaf.code, err
	}
	mid := len(segs) / 2
	left, err := c.tree(segs[:mid])
	if err != nil {
		return nil, err
	}
	right, err := c.tree(segs[mid:])
	if err != nil {
		return nil, err
	}
	node := &compiler{}
	if len(left) <= math.MaxUint8 {
		node.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, uint8(len(left)), 0, segs[mid].from)
	} else { // a conditional jump reaches 255 instructions
		node.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, 0, 1, segs[mid].from)
		node.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(len(left)))
	}
	return append(append(node.code, left...), right...), nil
}

// arguments tests each condition in order; the first that holds decides.
func (c *compiler) arguments(r *rule) error {
	for i, s := range r.conds {
		body := &compiler{}
		var misses []int // instructions whose failing branch leads to the next condition
		for _, a := range s.Args {
			m, err := body.compare(a)
			if err != nil {
				return err
			}
			misses = append(misses, m...)
		}
		body.ret(r.verdict[i])
		if len(body.code) > math.MaxUint8 {
			return fmt.Errorf("compile seccomp policy: too many arguments for one rule of %v", s.Names)
		}
		for _, at := range misses {
			in, off := &body.code[at], uint8(len(body.code)-at-1)
			if in.Jt == missMark {
				in.Jt = off
			}
			if in.Jf == missMark {
				in.Jf = off
			}
		}
		c.code = append(c.code, body.code...)
	}
	if r.fixed {
		c.ret(r.always)
	} else {
		c.ret(c.deflt)
	}
	return nil
}

// missMark stands for the jump to the next condition until its distance is known.
const missMark = math.MaxUint8

// compare emits a test of one 64-bit argument by its halves and returns the
// instructions that carry missMark.
func (c *compiler) compare(a specs.LinuxSeccompArg) ([]int, error) {
	if a.Index > 5 {
		return nil, fmt.Errorf("compile seccomp policy: argument %d does not exist", a.Index)
	}
	lo, hi := uint32(offArgs+8*a.Index), uint32(offArgs+8*a.Index+4) // both architectures are little endian
	load := func(off uint32) { c.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, off) }
	and := func(mask uint32) { c.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0, 0, mask) }
	jump := func(op uint16, jt, jf uint8, k uint32) int {
		c.emit(unix.BPF_JMP|op|unix.BPF_K, jt, jf, k)
		return len(c.code) - 1
	}
	vlo, vhi := uint32(a.Value), uint32(a.Value>>32)
	load(hi)
	switch a.Op {
	case specs.OpEqualTo:
		m := jump(unix.BPF_JEQ, 0, missMark, vhi)
		load(lo)
		return []int{m, jump(unix.BPF_JEQ, 0, missMark, vlo)}, nil
	case specs.OpNotEqual:
		jump(unix.BPF_JEQ, 0, 2, vhi)
		load(lo)
		return []int{jump(unix.BPF_JEQ, missMark, 0, vlo)}, nil
	case specs.OpMaskedEqual:
		and(vhi)
		m := jump(unix.BPF_JEQ, 0, missMark, uint32(a.ValueTwo>>32))
		load(lo)
		and(vlo)
		return []int{m, jump(unix.BPF_JEQ, 0, missMark, uint32(a.ValueTwo))}, nil
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		op := uint16(unix.BPF_JGT)
		if a.Op == specs.OpGreaterEqual {
			op = unix.BPF_JGE
		}
		jump(unix.BPF_JGT, 3, 0, vhi)
		m := jump(unix.BPF_JEQ, 0, missMark, vhi)
		load(lo)
		return []int{m, jump(op, 0, missMark, vlo)}, nil
	case specs.OpLessThan, specs.OpLessEqual:
		op := uint16(unix.BPF_JGE)
		if a.Op == specs.OpLessEqual {
			op = unix.BPF_JGT
		}
		m := jump(unix.BPF_JGT, missMark, 0, vhi)
		jump(unix.BPF_JEQ, 0, 2, vhi)
		load(lo)
		return []int{m, jump(op, missMark, 0, vlo)}, nil
	}
	return nil, fmt.Errorf("compile seccomp policy: operator %q is not supported", a.Op)
}
