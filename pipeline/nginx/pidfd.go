package nginx

import (
	"context"
	"fmt"
	"os"
	"syscall"
)

// System calls that package syscall has no names for; the numbers are the same on
// every architecture (they came after the tables were unified).
const (
	sysPidfdSendSignal = 424
	sysPidfdOpen       = 434
	sysPidfdGetfd      = 438
)

// handle is a process held by a pidfd: what is verified after opening it stays
// true, because the pid cannot be given to another process unnoticed.
type handle struct {
	process
	fd int
}

func openProcess(pid int) (*handle, error) {
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(pid), 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, errno)
	}
	h := &handle{fd: int(fd)}
	p, _, ok := procStat(pid)
	if !ok {
		h.close()
		return nil, fmt.Errorf("process %d: %w", pid, syscall.ESRCH)
	}
	h.process = p
	return h, nil
}

func (h *handle) close() { _ = syscall.Close(h.fd) } // nothing to do about it

func (h *handle) signal(s syscall.Signal) error {
	_, _, errno := syscall.Syscall6(sysPidfdSendSignal, uintptr(h.fd), uintptr(s), 0, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("send %v to nginx %d: %w", s, h.pid, errno)
	}
	return nil
}

// getfd copies a descriptor out of the process (pidfd_getfd(2), Linux 5.6).
func (h *handle) getfd(fd int) (*os.File, error) {
	got, _, errno := syscall.Syscall(sysPidfdGetfd, uintptr(h.fd), uintptr(fd), 0)
	if errno != 0 {
		return nil, fmt.Errorf("pidfd_getfd %d of %d: %w", fd, h.pid, errno)
	}
	return os.NewFile(got, "listener"), nil
}

// wait returns when the process has ended or ctx has.
func (h *handle) wait(ctx context.Context) error {
	for h.alive() {
		if err := sleep(ctx, tick); err != nil {
			return err
		}
	}
	return nil
}
