package cli

import (
	"fmt"
	"io"
	"os"
)

// Env is what a command may touch of the world outside: main hands it down
// once, tests hand down their own.
type Env struct {
	Stdin          *os.File
	Stdout, Stderr io.Writer
	Root           string // data directory, --root or NARU_ROOT
	Run            string // run directory on tmpfs, --run or NARU_RUN
}

// ExitError carries the exit code that main must end with. Err is nil when the
// code says all there is to say, as for a container's own exit code.
type ExitError struct {
	Code int
	Err  error
}

// Error returns the reason, or the bare code where there is none.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns the reason, so that errors.Is sees through an exit code.
func (e *ExitError) Unwrap() error { return e.Err }
