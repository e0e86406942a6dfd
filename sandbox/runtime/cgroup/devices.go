package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limitDevices applies the rules in order, the last match decides: by the v1
// controller, or by a BPF program on the unified directory.
func (g *Group) limitDevices(r *specs.LinuxResources) error {
	if len(r.Devices) == 0 {
		return nil
	}
	m := g.host.V1["devices"]
	if m == "" {
		return attachDevices(g.UnifiedDir(), r.Devices)
	}
	for _, d := range r.Devices {
		file := "devices.deny"
		if d.Allow {
			file = "devices.allow"
		}
		if err := write(filepath.Join(m, g.path), file, ruleV1(d)); err != nil {
			return err
		}
	}
	return nil
}

func ruleV1(d specs.LinuxDeviceCgroup) string {
	if (d.Type == "" || d.Type == "a") && d.Major == nil && d.Minor == nil {
		return "a"
	}
	number := func(n *int64) string {
		if n == nil || *n < 0 {
			return "*"
		}
		return strconv.FormatInt(*n, 10)
	}
	return fmt.Sprintf("%s %s:%s %s", d.Type, number(d.Major), number(d.Minor), d.Access)
}

// attachDevices loads the program and attaches it to the fresh cgroup. It never
// asks what is attached: kernels 6.17 to 7.1 write past the buffer of BPF_PROG_QUERY.
func attachDevices(dir string, rules []specs.LinuxDeviceCgroup) error {
	if dir == "" {
		return errors.New("limit devices: the machine has no such cgroup controller")
	}
	prog, err := loadBPF(deviceProgram(rules))
	if err != nil {
		return fmt.Errorf("limit devices: load program: %w", err)
	}
	defer unix.Close(prog)
	cg, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("limit devices: %w", err)
	}
	defer cg.Close()
	attr := struct{ target, prog, kind, flags uint32 }{uint32(cg.Fd()), uint32(prog), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	_, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if e != 0 {
		return fmt.Errorf("limit devices: attach program: %w", e)
	}
	return nil
}

func loadBPF(code []byte) (int, error) {
	license := []byte("Apache-2.0\x00")
	attr := struct {
		kind, count   uint32
		code, license uint64
		rest          [12]uint64 // log, kernel version, flags, name…: zero
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code) / 8)}
	var pins runtime.Pinner // the kernel reads both by address
	defer pins.Unpin()
	pins.Pin(&code[0])
	pins.Pin(&license[0])
	attr.code, attr.license = uint64(uintptr(unsafe.Pointer(&code[0]))), uint64(uintptr(unsafe.Pointer(&license[0])))
	defer blockSignals()()
	fd, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if e != 0 {
		return -1, e
	}
	return int(fd), nil // close-on-exec by itself (bpf(2))
}

// blockSignals keeps every signal from the calling thread until the returned
// function runs. The verifier gives up with EAGAIN whenever one is pending, and
// the Go runtime sends its threads signals to preempt them, so that happens on any
// day; a blocked signal does not count as pending.
func blockSignals() (restore func()) {
	runtime.LockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old) // cannot fail with valid arguments
	return func() {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
		runtime.UnlockOSThread()
	}
}

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
// the last to the first; no match is a refusal.
func deviceProgram(rules []specs.LinuxDeviceCgroup) []byte {
	a := &assembler{}
	a.emit(bpfLoadWord, 2|1<<4, 0, 0)
	a.emit(bpfMove, 3|2<<4, 0, 0)
	a.emit(bpfAndImm, 2, 0, 0xffff)
	a.emit(bpfShiftRight, 3, 0, 16)
	a.emit(bpfLoadWord, 4|1<<4, 4, 0)
	a.emit(bpfLoadWord, 5|1<<4, 8, 0)
	for i := len(rules) - 1; i >= 0; i-- {
		if !a.rule(rules[i]) {
			return a.code // it decides always; the kernel refuses what cannot be reached
		}
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

// rule appends tests that jump over its verdict when they do not match. An allow
// rule matches accesses that it grants whole, a deny rule those it touches.
// It is false when the rule matches everything.
func (a *assembler) rule(d specs.LinuxDeviceCgroup) bool {
	body := &assembler{}
	var fixups []int
	test := func(op, reg byte, imm int32) {
		fixups = append(fixups, len(body.code)/8)
		body.emit(op, reg, 0, imm)
	}
	switch d.Type {
	case "b":
		test(bpfJumpNE, 2, unix.BPF_DEVCG_DEV_BLOCK)
	case "c":
		test(bpfJumpNE, 2, unix.BPF_DEVCG_DEV_CHAR)
	}
	if bits := accessBits(d.Access); bits != 7 {
		body.emit(bpfMove, 1|3<<4, 0, 0)
		if d.Allow {
			body.emit(bpfAndImm, 1, 0, 7&^bits)
			test(bpfJumpNE, 1, 0)
		} else {
			body.emit(bpfAndImm, 1, 0, bits)
			test(bpfJumpEQ, 1, 0)
		}
	}
	if d.Major != nil && *d.Major >= 0 {
		test(bpfJumpNE, 4, int32(*d.Major))
	}
	if d.Minor != nil && *d.Minor >= 0 {
		test(bpfJumpNE, 5, int32(*d.Minor))
	}
	body.verdict(d.Allow)
	end := len(body.code) / 8
	for _, at := range fixups {
		binary.NativeEndian.PutUint16(body.code[at*8+2:], uint16(end-at-1))
	}
	a.code = append(a.code, body.code...)
	return len(fixups) > 0
}

// accessBits reads "rwm"; none named means all.
func accessBits(s string) (bits int32) {
	for _, c := range s {
		switch c {
		case 'm':
			bits |= unix.BPF_DEVCG_ACC_MKNOD
		case 'r':
			bits |= unix.BPF_DEVCG_ACC_READ
		case 'w':
			bits |= unix.BPF_DEVCG_ACC_WRITE
		}
	}
	if bits == 0 {
		bits = 7
	}
	return bits
}
