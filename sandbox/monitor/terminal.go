package monitor

import "syscall"

// takeTerminal takes the master of a terminal from a process that waits at its
// gate, and checks what it is: were the image able to put something else at
// /dev/pts/ptmx, we would talk to that (CVE-2025-52565).
func takeTerminal(pidfd int) (int, string, syscall.Errno) {
	const sysPidfdGetfd = 438
	r, _, e := syscall.Syscall(sysPidfdGetfd, uintptr(pidfd), TerminalFD, 0)
	if e != 0 {
		return None, "take the terminal (pidfd_getfd)", e
	}
	fd := int(r)
	if !isMaster(fd) {
		syscall.Close(fd)
		return None, "check the terminal", syscall.ENXIO
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return None, "check the terminal", syscall.Errno(errnoOf(err))
	}
	return fd, "", 0
}

// isMaster says whether a descriptor is the multiplexer of a devpts, pts(4).
func isMaster(fd int) bool {
	const devptsMagic, ptmx = 0x1cd1, 5<<8 | 2
	var fs syscall.Statfs_t
	var st syscall.Stat_t
	return syscall.Fstatfs(fd, &fs) == nil && fs.Type == devptsMagic &&
		syscall.Fstat(fd, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFCHR && st.Rdev == ptmx
}

// connect puts a pipe between a terminal and the log: from there on a byte is in the
// terminal, in the pipe or in the file, whenever we are killed, as splice(2) takes and
// gives in one call (ttys can that since Linux 5.11).
func (m *monitor) connect(master int) (string, syscall.Errno) {
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return "make a pipe for the terminal", syscall.Errno(errnoOf(err))
	}
	m.out[0].in, m.feeder = m.mem.keep(keptOut, pipe[0]), m.mem.keep(keptTerminal, pipe[1])
	m.master = m.mem.keep(keptIn, master)
	m.input.fd = m.master
	return "", 0
}

// feed moves what the terminal shows into its pipe.
func (m *monitor) feed() {
	const move, nonblock = 1, 2 // SPLICE_F_MOVE, SPLICE_F_NONBLOCK
	n, _, e := syscall.Syscall6(syscall.SYS_SPLICE, uintptr(m.master), 0, uintptr(m.feeder), 0, MaxData, move|nonblock)
	switch {
	case e == syscall.EINTR || e == syscall.EAGAIN:
	case e == syscall.EINVAL: // not by splice
		k, err := syscall.Read(m.master, m.msg[:])
		if err == nil && k > 0 {
			syscall.Write(m.feeder, m.msg[:k])
		} else if err != syscall.EAGAIN && err != syscall.EINTR {
			m.master = None
		}
	case e != 0 || n == 0:
		// Nobody has the terminal open now. It is not closed, as that would send
		// SIGHUP; the input keeps it.
		m.master = None
	}
}
