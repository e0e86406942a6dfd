package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"naru/sandbox"
)

// execution is one command in a running container.
type execution struct {
	engine  *sandbox.Engine
	ref     string // of the container
	flags   execFlags
	options sandbox.ExecOptions
}

// onPipes runs the command with our streams at the other end of pipes.
func (x execution) onPipes(ctx context.Context, env *Env) (int, error) {
	streams, err := openStreams(env, x.flags.stdin)
	if err != nil {
		return 0, engineError(err)
	}
	defer streams.drain()
	x.options.Stdin, x.options.Stdout, x.options.Stderr = streams.stdin, streams.stdout, streams.stderr
	return x.engine.Exec(ctx, x.ref, x.options)
}

// setSize sets the window of a terminal. Fd would make it a blocking file, also for
// the helper that reads it when we leave.
func setSize(master *os.File, rows, columns uint16) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}), err)
}

// onTerminal runs the command on a terminal of its own. When the person leaves it by
// the detach keys, the command goes on.
func (x execution) onTerminal(ctx context.Context, env *Env) (int, error) {
	f, o := x.flags, x.options
	keys, err := parseKeys(f.detachKeys)
	if err != nil {
		return 0, usage("%w", err)
	}
	left := make(chan struct{})
	s := &session{env: env, tty: true, keys: keys, leave: func() { close(left) }}
	fd, ours := s.terminal()
	if f.stdin && !ours {
		return 0, engineError(errors.New("the input device is not a TTY"))
	}
	if ours {
		if columns, rows, err := term.GetSize(fd); err == nil {
			o.Rows, o.Columns = uint16(rows), uint16(columns)
		}
	}
	restore, shown := func() {}, make(chan struct{})
	o.Terminal = func(master *os.File) {
		s.resize = func(rows, columns uint16) error {
			return setSize(master, rows, columns)
		}
		if f.stdin {
			s.to = master
		}
		restore, err = s.open()
		go func() {
			defer close(shown)
			_, _ = io.Copy(env.Stdout, master) // EIO is the end of a terminal, pts(4)
		}()
	}
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := x.engine.Exec(ctx, x.ref, o)
		ended <- result{code, err}
	}()
	select {
	case <-left:
		restore()
		return 0, nil
	case r := <-ended:
		select { // what a process in the background still writes is not waited for
		case <-shown:
		case <-time.After(drainTime / 4):
		}
		restore()
		return r.code, errors.Join(r.err, err)
	}
}
