package runtime

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
)

// spawn starts the tiny program with one end of a control socket. cgroup is a
// cgroup2 directory to be born in, or nil.
func spawn(personality string, cgroup *os.File) (*client, error) {
	exe, err := tinyProgram()
	if err != nil {
		return nil, err
	}
	c, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   monitor.Environment(),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), theirs.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	}
	if cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(cgroup.Fd())
	}
	pid, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), []string{personality}, attr)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("start %s: %w", personality, err)
	}
	go reap(pid, pidfd)
	return c, nil
}

// reap waits for a child through the poller, without a thread of its own.
func reap(pid, pidfd int) {
	if pidfd >= 0 {
		w, err := newExitWaiter(pidfd)
		unix.Close(pidfd)
		if err == nil {
			w.wait()
			w.close()
		}
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// exitWaiter waits for the end of a process by its pidfd in Go's poller.
type exitWaiter struct{ f *os.File }

// newExitWaiter leaves the given descriptor to the caller.
func newExitWaiter(pidfd int) (*exitWaiter, error) {
	fd, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate pidfd: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // makes os.NewFile use the poller
		unix.Close(fd)
		return nil, fmt.Errorf("pidfd: %w", err)
	}
	return &exitWaiter{os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns when the process has ended (nil) or the waiter is closed.
func (w *exitWaiter) wait() error {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return ended(int(fd)) })
}

func (w *exitWaiter) close() { w.f.Close() }

// ended says whether the process behind a pidfd is a zombie or gone.
func ended(pidfd int) bool {
	p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}
