package cgroup

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// assembler writes eBPF instructions (kernel documentation bpf/standardization/instruction-set).
type assembler struct{ code []byte }

func (a *assembler) emit(op, regs byte, off int16, imm int32) {
	var in [8]byte
	in[0], in[1] = op, regs
	binary.NativeEndian.PutUint16(in[2:], uint16(off))
	binary.NativeEndian.PutUint32(in[4:], uint32(imm))
	a.code = append(a.code, in[:]...)
}

// The eBPF operations that are used; register numbers are in the second byte,
// destination in the low half.
const (
	bpfLoadWord   = 0x61 // dst = *(u32 *)(src + off)
	bpfAndImm     = 0x54 // 32 bit
	bpfShiftRight = 0x74
	bpfMove       = 0xbc
	bpfMoveImm    = 0xb4
	bpfJumpNE     = 0x56 // 32 bit compare with imm
	bpfJumpEQ     = 0x16
	bpfExit       = 0x95
)

// deviceProgram decides on struct bpf_cgroup_dev_ctx {access<<16|type, major,
// minor}: registers r2 type, r3 access, r4 major, r5 minor. Rules are tried from
// the last to the first. Each kind of access (read, write, mknod) is decided by the
// first rule that names it: an allow rule crosses what it grants off r3, and nothing
// left is a yes; a deny rule that touches what is left is a no; so is the end.
func deviceProgram(rules []deviceRule) []byte {
	a := &assembler{}
	a.emit(bpfLoadWord, 2|1<<4, 0, 0)
	a.emit(bpfMove, 3|2<<4, 0, 0)
	a.emit(bpfAndImm, 2, 0, 0xffff)
	a.emit(bpfShiftRight, 3, 0, 16)
	a.emit(bpfLoadWord, 4|1<<4, 4, 0)
	a.emit(bpfLoadWord, 5|1<<4, 8, 0)
	for i := len(rules) - 1; i >= 0; i-- {
		if rules[i].everything() {
			a.verdict(rules[i].allow)
			return a.code // the kernel refuses what cannot be reached
		}
		a.rule(rules[i])
	}
	a.verdict(false)
	return a.code
}

func (a *assembler) verdict(allow bool) {
	v := int32(0)
	if allow {
		v = 1
	}
	a.emit(bpfMoveImm, 0, 0, v)
	a.emit(bpfExit, 0, 0, 0)
}

// rule appends tests that jump over its verdict when they do not match.
func (a *assembler) rule(d deviceRule) {
	body := &assembler{}
	var fixups []int
	test := func(op, reg byte, imm int32) {
		fixups = append(fixups, len(body.code)/8)
		body.emit(op, reg, 0, imm)
	}
	switch d.kind {
	case 'b':
		test(bpfJumpNE, 2, unix.BPF_DEVCG_DEV_BLOCK)
	case 'c':
		test(bpfJumpNE, 2, unix.BPF_DEVCG_DEV_CHAR)
	}
	if d.major >= 0 {
		test(bpfJumpNE, 4, int32(d.major))
	}
	if d.minor >= 0 {
		test(bpfJumpNE, 5, int32(d.minor))
	}
	if d.allow {
		body.emit(bpfAndImm, 3, 0, allAccess&^d.bits)
		test(bpfJumpNE, 3, 0)
	} else {
		body.emit(bpfMove, 1|3<<4, 0, 0)
		body.emit(bpfAndImm, 1, 0, d.bits)
		test(bpfJumpEQ, 1, 0)
	}
	body.verdict(d.allow)
	end := len(body.code) / 8
	for _, at := range fixups {
		binary.NativeEndian.PutUint16(body.code[at*8+2:], uint16(end-at-1))
	}
	a.code = append(a.code, body.code...)
}
