package step

import (
	"runtime"
	"syscall"
	"unsafe"
)

// sysClone3 is the same number on every architecture (clone3(2)).
const sysClone3 = 435

// Clone flags that package syscall does not name, clone(2).
const (
	ClonePidfd      = 0x1000
	CloneIntoCgroup = 0x200000000
	CloneNewCgroup  = 0x2000000
	CloneNewTime    = 0x80
	CloneFiles      = 0x400 // the child shares the table of descriptors
)

// cloneArgs is struct clone_args of linux/sched.h, CLONE_ARGS_SIZE_VER2.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// Clone forks the calling thread into a child that runs r and exits; the child
// shares no memory. cgroup is a cgroup2 directory descriptor, or -1.
// It returns the pid and a pidfd, close-on-exec.
//
// All signals are blocked around the call, so that no Go signal handler can run
// in the child, which has no Go runtime: the program must unblock them at its end.
func Clone(flags uint64, cgroup int, r *Runner) (pid, pidfd int, errno syscall.Errno) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	args := &r.clone
	*args = cloneArgs{flags: flags | ClonePidfd, pidfd: uint64(uintptr(unsafe.Pointer(&r.fd))), exitSignal: uint64(syscall.SIGCHLD)}
	if cgroup >= 0 {
		args.flags |= CloneIntoCgroup
		args.cgroup = uint64(cgroup)
	}
	full, old := ^uint64(0), uint64(0)
	sigmask(&full, &old)
	p, errno := cloneAndRun(args, r)
	sigmask(&old, nil)
	runtime.KeepAlive(r)
	return p, int(r.fd), errno
}

//go:nosplit
//go:norace
func cloneAndRun(args *cloneArgs, r *Runner) (int, syscall.Errno) {
	p, _, errno := syscall.RawSyscall(sysClone3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if errno != 0 || p != 0 {
		return int(p), errno
	}
	r.RunAndExit()
	return 0, 0
}

func sigmask(set, old *uint64) {
	const setmask = 2 // SIG_SETMASK
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, setmask, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
}
