package oci

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Adopt makes this process the parent of what Create and Exec leave behind, so that
// it can wait for it.
func Adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	return nil
}

// adoptTime bounds the wait for the helper between us and the process to be gone.
const adoptTime = 2 * time.Second

// Child is an adopted process.
type Child struct {
	pid, pidfd int
}

// Child finds a process that Exec returned, or a container's init, after Adopt.
func (r Runtime) Child(pid int) (*Child, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	return &Child{pid, fd}, nil
}

// Signal sends a signal; to a process that has ended it is no error.
func (c *Child) Signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(c.pidfd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Wait returns the exit code as a shell says it: 128 + n after signal n.
func (c *Child) Wait(ctx context.Context) (int, error) {
	defer unix.Close(c.pidfd)
	for {
		poll := []unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("wait for process: %w", err)
		}
		if n > 0 {
			break
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	for limit := time.Now().Add(adoptTime); ; time.Sleep(time.Millisecond) {
		var ws unix.WaitStatus
		_, err := unix.Wait4(c.pid, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err == nil && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		case err == nil:
			return ws.ExitStatus(), nil
		case time.Now().After(limit):
			return 0, fmt.Errorf("wait for process %d: %w", c.pid, err)
		}
	}
}
