package step

import (
	"syscall"
	"unsafe"
)

// call is a Step with every argument turned into a machine word.
type call struct {
	args   [6]uintptr
	regs   uint8 // bit i: args[i] is a register number
	check  Check
	out    int16
	skip   uint16
	jump   uint16 // first jump
	jumps  uint16 // number of jumps
	number uint32
}

// Runner is a compiled program with its registers. Its address and everything
// it points to stays put: Go does not move heap objects, keep holds those that
// were made for it, and the rest lies in the code.
type Runner struct {
	calls   []call
	jumps   []Jump
	keep    []unsafe.Pointer
	scratch [ScratchSize]byte
	report  [8]byte
	fd      int32     // where clone3(2) puts the pidfd
	clone   cloneArgs // here and not on a stack, which could move before the call
	reaper  reaper
	// Regs are the registers; the caller fills those below FirstFD and the descriptors.
	Regs [NumRegs]uintptr
}

type sockFprog struct {
	len    uint16
	filter unsafe.Pointer
}

// Compile lays a program out for Run; ok is false where the code is damaged.
// Arguments point into the code, which must not move or go as long as the Runner
// is used.
func Compile(code Code, fds []int) (r *Runner, ok bool) {
	d := &Decoder{Buf: code}
	r = &Runner{calls: make([]call, d.count())}
	r.jumps = make([]Jump, 0, d.count())
	for i := range r.calls {
		r.compile(d, &r.calls[i])
	}
	for i, fd := range fds {
		r.Regs[FirstFD+i] = uintptr(fd)
	}
	return r, !d.Bad
}

func (r *Runner) compile(d *Decoder, c *call) {
	d.Bytes() // the name
	c.number = d.U32()
	out := d.U32()
	c.out, c.skip, c.check = int16(out), uint16(out>>16), Check(d.U32())
	for k := range min(d.count(), len(c.args)) {
		c.args[k] = r.word(d, c, k)
	}
	c.jump, c.jumps = uint16(len(r.jumps)), uint16(d.count())
	for range c.jumps {
		r.jumps = append(r.jumps, Jump{On: int32(d.U32()), Skip: uint16(d.U32())})
	}
}

func (r *Runner) hold(p unsafe.Pointer) uintptr {
	r.keep = append(r.keep, p)
	return uintptr(p)
}

// word is argument k of c.
func (r *Runner) word(d *Decoder, c *call, k int) uintptr {
	switch kind := Kind(d.U32()); kind {
	case Reg:
		c.regs |= 1 << k
		return uintptr(d.U64() % NumRegs)
	case Bytes:
		return uintptr(unsafe.Pointer(unsafe.SliceData(d.Bytes())))
	case Strings:
		vec := make([]unsafe.Pointer, d.count()+1)
		for i := range len(vec) - 1 {
			vec[i] = unsafe.Pointer(unsafe.SliceData(d.Bytes()))
		}
		return r.hold(unsafe.Pointer(unsafe.SliceData(vec)))
	case Filter:
		f := d.Bytes()
		return r.hold(unsafe.Pointer(&sockFprog{uint16(len(f) / 8), unsafe.Pointer(unsafe.SliceData(f))}))
	case Scratch:
		return uintptr(unsafe.Pointer(&r.scratch)) + uintptr(d.U64()%ScratchSize)
	default:
		return uintptr(d.U64())
	}
}

// openat2(2) gives up with EAGAIN at a ".." when anything on the machine is renamed or mounted
// meanwhile; links of images have many. It is repeated, but not without end.
const openat2 = 437 // on all architectures

// Run makes the calls in order; it returns the index and errno of the one that
// failed, or errno 0 at the end. It is safe in a child of a raw clone(2): it
// neither allocates nor grows the stack nor meets the scheduler.
//
//go:nosplit
//go:norace
func (r *Runner) Run() (int, syscall.Errno) {
	var sticky syscall.Errno
	again := 10_000
	for i := 0; i < len(r.calls); i++ {
		c := &r.calls[i]
		if c.number == Fail {
			return i, sticky
		}
		if c.number == Again {
			i = int(c.skip) - 1
			continue
		}
		var a [6]uintptr
		for k := range a {
			a[k] = c.args[k]
			if c.regs&(1<<k) != 0 {
				a[k] = r.Regs[a[k]%NumRegs]
			}
		}
		if c.number == Supervise {
			r.reaper.run(a[0])
		}
		res, _, errno := syscall.RawSyscall6(uintptr(c.number), a[0], a[1], a[2], a[3], a[4], a[5])
		if errno == syscall.EINTR {
			i-- // gate reads and opens are repeated; the list has no call that would not be
			continue
		}
		if errno == syscall.EAGAIN && c.number == openat2 && again > 0 {
			again, i = again-1, i-1
			continue
		}
		skip, ok := r.outcome(c, res, errno)
		if !ok {
			if errno == 0 {
				errno = syscall.EPIPE
				if c.check&Absolute != 0 {
					errno = syscall.ENOENT
				}
			}
			return i, errno
		}
		if errno != 0 && c.check&Sticky != 0 && (sticky == 0 || errno == syscall.EACCES) {
			sticky = errno
		}
		i += skip
	}
	return len(r.calls), 0
}

// outcome says how many steps to skip, and whether the call counts as done.
//
//go:nosplit
//go:norace
func (r *Runner) outcome(c *call, res uintptr, errno syscall.Errno) (int, bool) {
	got := int32(res)
	if errno != 0 {
		got = -int32(errno)
	}
	for k := int(c.jump); k < int(c.jump)+int(c.jumps); k++ {
		if r.jumps[k].On == got {
			return int(r.jumps[k].Skip), true
		}
	}
	if errno != 0 || c.check&NonEmpty != 0 && res == 0 || c.check&Absolute != 0 && r.scratch[0] != '/' {
		return 0, false
	}
	if c.out >= 0 {
		r.Regs[uint16(c.out)%NumRegs] = res
	}
	return int(c.skip), true
}

// RunAndExit runs in the cloned child: a failure is reported on RegStatus as
// 'F', 0, index (2 bytes), errno (4 bytes), little endian; it never returns.
//
//go:nosplit
//go:norace
func (r *Runner) RunAndExit() {
	i, errno := r.Run()
	r.report = [8]byte{'F', 0, byte(i), byte(i >> 8), byte(errno), byte(errno >> 8), byte(errno >> 16), byte(errno >> 24)}
	syscall.RawSyscall(syscall.SYS_WRITE, r.Regs[RegStatus], uintptr(unsafe.Pointer(&r.report)), uintptr(len(r.report)))
	code := uintptr(125)
	if i == len(r.calls)-1 {
		code = 126
		if errno == syscall.ENOENT || errno == syscall.ENOTDIR {
			code = 127
		}
	}
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}
