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
// it points to stays put: Go does not move heap objects, and keep holds them.
type Runner struct {
	calls   []call
	jumps   []Jump
	keep    []unsafe.Pointer
	scratch [ScratchSize]byte
	report  [8]byte
	// Regs are the registers; the caller fills those below FirstFD and the descriptors.
	Regs [NumRegs]uintptr
}

type sockFprog struct {
	len    uint16
	filter unsafe.Pointer
}

// Compile lays a program out for Run.
func Compile(p Program, fds []int) *Runner {
	r := &Runner{calls: make([]call, len(p))}
	for i, s := range p {
		c := &r.calls[i]
		c.number, c.out, c.skip, c.check = s.NR, s.Out, s.Skip, s.Check
		c.jump, c.jumps = uint16(len(r.jumps)), uint16(len(s.Jumps))
		r.jumps = append(r.jumps, s.Jumps...)
		for k, a := range s.Args[:min(len(s.Args), 6)] {
			c.args[k] = r.word(a)
			if a.Kind == Reg {
				c.regs |= 1 << k
			}
		}
	}
	for i, fd := range fds {
		r.Regs[FirstFD+i] = uintptr(fd)
	}
	return r
}

func (r *Runner) hold(p unsafe.Pointer) uintptr {
	r.keep = append(r.keep, p)
	return uintptr(p)
}

func (r *Runner) word(a Arg) uintptr {
	switch a.Kind {
	case Reg:
		return uintptr(a.Val % NumRegs)
	case Bytes:
		b := append(make([]byte, 0, len(a.Data)+1), a.Data...)
		return r.hold(unsafe.Pointer(unsafe.SliceData(b)))
	case Strings:
		vec := make([]unsafe.Pointer, len(a.Strings)+1)
		for i, s := range a.Strings {
			vec[i] = unsafe.Pointer(unsafe.SliceData(append([]byte(s), 0)))
		}
		return r.hold(unsafe.Pointer(unsafe.SliceData(vec)))
	case Filter:
		f := append(make([]byte, 0, len(a.Data)), a.Data...)
		return r.hold(unsafe.Pointer(&sockFprog{uint16(len(f) / 8), unsafe.Pointer(unsafe.SliceData(f))}))
	case Scratch:
		return uintptr(unsafe.Pointer(&r.scratch)) + uintptr(a.Val%ScratchSize)
	default:
		return uintptr(a.Val)
	}
}

// Run makes the calls in order; it returns the index and errno of the one that
// failed, or errno 0 at the end. It is safe in a child of a raw clone(2): it
// neither allocates nor grows the stack nor meets the scheduler.
//
//go:nosplit
//go:norace
func (r *Runner) Run() (int, syscall.Errno) {
	var sticky syscall.Errno
	for i := 0; i < len(r.calls); i++ {
		c := &r.calls[i]
		if c.number == Fail {
			return i, sticky
		}
		var a [6]uintptr
		for k := range a {
			a[k] = c.args[k]
			if c.regs&(1<<k) != 0 {
				a[k] = r.Regs[a[k]%NumRegs]
			}
		}
		res, _, errno := syscall.RawSyscall6(uintptr(c.number), a[0], a[1], a[2], a[3], a[4], a[5])
		if errno == syscall.EINTR {
			i-- // gate reads and opens are repeated; the list has no call that would not be
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
