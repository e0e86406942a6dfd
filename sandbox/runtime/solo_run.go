package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// State asks the kernel for the life stage of an init; Paused is not among the
// answers, that is for the cgroup to say. The pidfd is -1 for a stopped one.
func (s Solo) State() (State, int, error) {
	pidfd, err := s.Find()
	if errors.Is(err, ErrGone) {
		return Stopped, -1, nil
	}
	if err != nil {
		return "", -1, err
	}
	state := Running
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(s.Pid)+"/exe", &st); err == nil && fileID(&st) == s.Image {
		state = Created
	}
	if ended(pidfd) { // asked last: a pid that is free again would have answered before
		unix.Close(pidfd)
		return Stopped, -1, nil
	}
	return state, pidfd, nil
}

// fileID names a file on this machine.
func fileID(st *unix.Stat_t) string { return fmt.Sprintf("%d:%d", st.Dev, st.Ino) }

// StartSolo opens the gate of a created init and returns when execve has happened.
// The step that the kernel refused comes back as *StartError.
func StartSolo(ctx context.Context, stateDir string, s Solo) error {
	status, err := os.OpenFile(filepath.Join(stateDir, FileStatus), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer status.Close()
	state, pidfd, err := s.State()
	if err != nil {
		return err
	}
	if state == Stopped {
		return ErrNotRunning
	}
	defer unix.Close(pidfd)
	if state != Created {
		return ErrRunning
	}
	gate, err := os.OpenFile(filepath.Join(stateDir, FileGate), os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = gate.Write([]byte("S"))
	if err = errors.Join(err, gate.Close()); err != nil {
		return fmt.Errorf("open the gate: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { status.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return s.started(status)
}

// started reads the init's reports up to the end of the fifo: it has no writer any
// more when execve has closed it, or when the init is dead.
func (s Solo) started(status *os.File) error {
	execve := false
	var msg [8]byte
	for {
		n, err := status.Read(msg[:])
		switch {
		case n == len(msg) && msg[0] == 'X':
			execve = true
		case n == len(msg) && msg[0] == 'F':
			return s.refused(msg)
		case err == nil:
			return errors.New("internal error: unknown report from the init")
		case errors.Is(err, os.ErrDeadlineExceeded):
			return context.Canceled
		case execve:
			return nil
		default:
			return &StartError{Step: "start", Err: unix.ESRCH}
		}
	}
}

func (s Solo) refused(msg [8]byte) error {
	name, index := "unknown step", int(msg[2])|int(msg[3])<<8
	if index < len(s.Steps) {
		name = s.Steps[index]
	}
	errno := unix.Errno(uint32(msg[4]) | uint32(msg[5])<<8 | uint32(msg[6])<<16 | uint32(msg[7])<<24)
	return &StartError{Step: name, Err: errno}
}
