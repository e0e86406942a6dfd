package runtime

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrState is returned by Open when state.json cannot be understood: it was damaged, or
// written by another version.
var ErrState = errors.New("container state is unreadable")

// ErrGone is returned by Open when the container's process no longer exists
// and its end was not recorded: it must be treated as stopped, exit unknown.
var ErrGone = errors.New("container is gone")

// ErrRunning is returned by Destroy while the container's process lives.
var ErrRunning = errors.New("container is running")

// ErrNotRunning is returned by Signal, Exec and Start when the container has ended.
var ErrNotRunning = errors.New("container is not running")

// StartError names the step of a start (or exec) that the kernel refused.
type StartError struct {
	// Step is the name in the list of steps, such as "execve" or "attach /proc".
	Step string
	// Err is the errno.
	Err error
}

// Error implements error.
func (e *StartError) Error() string { return fmt.Sprintf("start container: %s: %v", e.Step, e.Err) }

// Unwrap returns the errno.
func (e *StartError) Unwrap() error { return e.Err }

// Code is the exit code a shell would give: 127 when the program was not found,
// 126 when it could not be executed, 125 for every other step.
func (e *StartError) Code() int {
	if e.Step != stepExec {
		return 125
	}
	if errors.Is(e.Err, syscall.ENOENT) || errors.Is(e.Err, syscall.ENOTDIR) {
		return 127
	}
	return 126
}

// stepExec is the name of the last step of every program.
const stepExec = "execve"
