package step

import (
	"syscall"
	"unsafe"
)

// reaper is what Supervise needs: memory that is there before the fork.
type reaper struct {
	all    uint64 // every signal
	status int32
}

// run is the life of an init. All signals are blocked, as Clone left them: a
// blocked signal is queued even for the first process of a pid namespace, which
// loses those of default disposition otherwise (pid_namespaces(7)). Like Run it
// neither allocates nor meets the scheduler, and it never returns.
//
//go:nosplit
//go:norace
func (s *reaper) run(child uintptr) {
	const wnohang, sigchld = 1, uintptr(syscall.SIGCHLD)
	s.all = ^uint64(0)
	for {
		sig, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&s.all)), 0, 0, 8, 0, 0)
		if errno != 0 {
			continue
		}
		if sig != sigchld {
			syscall.RawSyscall(syscall.SYS_KILL, child, sig, 0)
			continue
		}
		for { // one SIGCHLD may stand for several
			pid, _, errno := syscall.RawSyscall6(syscall.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&s.status)), wnohang, 0, 0, 0)
			if errno != 0 || pid == 0 {
				break
			}
			if pid == child {
				s.exit()
			}
		}
	}
}

// exit ends as the child did: its code, or 128 and its signal, as a shell says it.
//
//go:nosplit
//go:norace
func (s *reaper) exit() {
	code := uintptr(s.status>>8) & 0xff
	if sig := uintptr(s.status) & 0x7f; sig != 0 {
		code = 128 + sig
	}
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}
