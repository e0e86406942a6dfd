package monitor

import (
	"syscall"
	"unsafe"
)

// sysPidfdSendSignal is the same number on every architecture.
const sysPidfdSendSignal = 424

func pidfdKill(fd, sig int) error {
	_, _, e := syscall.Syscall6(sysPidfdSendSignal, uintptr(fd), uintptr(sig), 0, 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h, PIDFD_INFO_SIZE_VER0.
type pidfdInfo struct {
	mask, cgroup    uint64
	pid, tgid, ppid uint32
	ids             [8]uint32
	exitCode        int32
}

const (
	pidfdGetInfo  = 0xc0000000 | 64<<16 | 0xff<<8 | 11 // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	pidfdInfoPid  = 1 << 0
	pidfdInfoExit = 1 << 3
)

// ExitStatus is the wait status of the process behind a pidfd that was opened
// while it lived, also when somebody else has reaped it (Linux 6.15,
// PIDFD_INFO_EXIT), or while its parent leaves it a zombie. ok is false while it
// lives, or on an older kernel.
func ExitStatus(pidfd int) (ws syscall.WaitStatus, ok bool) {
	info, err := infoOf(pidfd)
	if err == 0 && info.mask&pidfdInfoExit != 0 {
		return syscall.WaitStatus(info.exitCode), true
	}
	if err != 0 || info.pid == 0 {
		return 0, false
	}
	ws, ok = zombieStatus(int(info.pid))
	if !ok {
		return 0, false
	}
	// If it is not reaped even now, the pid was its own all the time.
	again, err := infoOf(pidfd)
	if err == 0 && again.mask&pidfdInfoExit != 0 {
		ws = syscall.WaitStatus(again.exitCode)
	}
	return ws, err == 0
}

func infoOf(pidfd int) (*pidfdInfo, syscall.Errno) {
	info := &pidfdInfo{mask: pidfdInfoExit | pidfdInfoPid}
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(info)))
	return info, e
}

// zombieStatus reads the last field of /proc/<pid>/stat, exit_code, which the
// kernel shows to root (proc_pid_stat(5)).
func zombieStatus(pid int) (syscall.WaitStatus, bool) {
	fd, err := openAt(-1, "/proc/"+itoa(pid)+"/stat", syscall.O_RDONLY, 0)
	if err != nil {
		return 0, false
	}
	defer syscall.Close(fd)
	var buf [1024]byte
	n, err := syscall.Read(fd, buf[:])
	if err != nil {
		return 0, false
	}
	b := buf[:n]
	name := n // end of the program's name, which may contain anything
	for i, c := range b {
		if c == ')' {
			name = i
		}
	}
	if name+2 >= n || b[name+2] != 'Z' {
		return 0, false
	}
	code, digits := 0, false
	for _, c := range b[name:] {
		switch {
		case c >= '0' && c <= '9':
			code, digits = code*10+int(c-'0'), true
		case c == ' ':
			code, digits = 0, false
		}
	}
	return syscall.WaitStatus(code), digits
}

// ExitCode is the exit code as a shell says it: 128 + n after signal n.
func ExitCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// CanAskExit says whether the kernel answers PIDFD_GET_INFO.
func CanAskExit(pidfd int) error {
	if _, e := infoOf(pidfd); e != 0 {
		return e
	}
	return nil
}
