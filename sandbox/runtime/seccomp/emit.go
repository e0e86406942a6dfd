package seccomp

import (
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data, seccomp(2).
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

type assembler struct{ code []unix.SockFilter }

func (c *assembler) emit(op uint16, jt, jf uint8, k uint32) {
	c.code = append(c.code, unix.SockFilter{Code: op, Jt: jt, Jf: jf, K: k})
}

func (c *assembler) load(offset uint32) { c.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offset) }

func (c *assembler) ret(v uint32) { c.emit(unix.BPF_RET|unix.BPF_K, 0, 0, v) }

// tree is a binary search; every leaf ends in a return.
func tree(segs []segment) []unix.SockFilter {
	node := &assembler{}
	if len(segs) == 1 {
		node.arguments(segs[0])
		return node.code
	}
	mid := len(segs) / 2
	left, right := tree(segs[:mid]), tree(segs[mid:])
	if len(left) <= math.MaxUint8 {
		node.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, uint8(len(left)), 0, segs[mid].from)
	} else { // a conditional jump reaches 255 instructions
		node.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, 0, 1, segs[mid].from)
		node.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(len(left)))
	}
	return append(append(node.code, left...), right...)
}

// arguments tests each condition in order; the first that holds decides.
func (c *assembler) arguments(s segment) {
	for _, cond := range s.conds {
		body := &assembler{}
		for _, a := range cond.args {
			body.compare(a, s.narrow)
		}
		if len(body.code) == 0 {
			c.ret(cond.verdict) // it always holds
			return
		}
		body.ret(cond.verdict)
		for at := range body.code { // six tests are far below 255 instructions
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
	c.ret(s.verdict)
}

// missMark stands for the jump to the next condition until its distance is known.
const missMark = math.MaxUint8

// compare emits a test of one argument by its halves; where it fails, it jumps to
// missMark. All architectures are little endian. On those of 32 bits the values are
// cut to that, so that -1 is -1 there too.
func (c *assembler) compare(a specs.LinuxSeccompArg, narrow bool) {
	t := halves{c: c, lo: offArgs + 8*uint32(a.Index), narrow: narrow}
	mask := uint64(math.MaxUint64)
	if narrow {
		mask = math.MaxUint32
	}
	v := a.Value & mask
	switch a.Op {
	case specs.OpEqualTo:
		t.equal(mask, v)
	case specs.OpMaskedEqual:
		t.equal(v, a.ValueTwo&mask)
	case specs.OpNotEqual:
		t.notEqual(v)
	case specs.OpGreaterThan:
		t.greater(unix.BPF_JGT, v)
	case specs.OpGreaterEqual:
		if v > 0 {
			t.greater(unix.BPF_JGE, v)
		}
	case specs.OpLessThan:
		t.less(unix.BPF_JGE, v)
	case specs.OpLessEqual:
		if v < mask {
			t.less(unix.BPF_JGT, v)
		}
	}
}

// halves writes tests of the 64 bits at lo, or of the first 32.
type halves struct {
	c      *assembler
	lo     uint32
	narrow bool
}

func (t halves) jump(op uint16, jt, jf uint8, k uint32) {
	t.c.emit(unix.BPF_JMP|op|unix.BPF_K, jt, jf, k)
}

// equal tests argument & mask == value, by the halves that the mask has.
func (t halves) equal(mask, value uint64) {
	half := func(at, mask, value uint32) {
		if mask == 0 && value == 0 {
			return
		}
		t.c.load(at)
		if mask != math.MaxUint32 {
			t.c.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0, 0, mask)
		}
		t.jump(unix.BPF_JEQ, 0, missMark, value)
	}
	half(t.lo+4, uint32(mask>>32), uint32(value>>32))
	half(t.lo, uint32(mask), uint32(value))
}

func (t halves) notEqual(v uint64) {
	if !t.narrow {
		t.c.load(t.lo + 4)
		t.jump(unix.BPF_JEQ, 0, 2, uint32(v>>32))
	}
	t.c.load(t.lo)
	t.jump(unix.BPF_JEQ, missMark, 0, uint32(v))
}

// greater tests > or, with BPF_JGE, >=.
func (t halves) greater(op uint16, v uint64) {
	if !t.narrow {
		t.c.load(t.lo + 4)
		t.jump(unix.BPF_JGT, 3, 0, uint32(v>>32))
		t.jump(unix.BPF_JEQ, 0, missMark, uint32(v>>32))
	}
	t.c.load(t.lo)
	t.jump(op, 0, missMark, uint32(v))
}

// less tests < by failing on BPF_JGE, or <= by failing on BPF_JGT.
func (t halves) less(fail uint16, v uint64) {
	if !t.narrow {
		t.c.load(t.lo + 4)
		t.jump(unix.BPF_JGT, missMark, 0, uint32(v>>32))
		t.jump(unix.BPF_JEQ, 0, 2, uint32(v>>32))
	}
	t.c.load(t.lo)
	t.jump(fail, missMark, 0, uint32(v))
}
