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
