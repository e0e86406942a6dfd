package cli

import (
	"fmt"
	"io"
	"os"
	"time"
)

// drainTime bounds the wait for output after the end: a process in the
// background may hold the streams open for ever.
const drainTime = time.Second

// streams connects a container or an exec to this process by pipes. Our own
// descriptors are never handed in: what gets a terminal can type on it
// (ioctl_tty(2), TIOCSTI), and what gets a file can reopen it.
type streams struct {
	stdin, stdout, stderr *os.File // the ends for the container; stdin may be nil
	done                  []<-chan struct{}
}

// openStreams makes the pipes. Without input the container reads /dev/null.
func openStreams(env *Env, input bool) (*streams, error) {
	s := &streams{}
	var err error
	if s.stdout, err = s.output(env.Stdout); err == nil {
		s.stderr, err = s.output(env.Stderr)
	}
	if err == nil && input && env.Stdin != nil {
		s.stdin, err = inputPipe(env.Stdin)
	}
	if err != nil {
		s.drain()
		return nil, fmt.Errorf("open streams: %w", err)
	}
	return s, nil
}

func (s *streams) output(to io.Writer) (*os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	s.done = append(s.done, done)
	go func() {
		defer close(done)
		defer read.Close()
		if _, err := io.Copy(to, read); err != nil {
			_, _ = io.Copy(io.Discard, read) // our reader is gone; the container goes on
		}
	}()
	return write, nil
}

// inputPipe copies from until its end or, as nothing can interrupt a read of a
// terminal, until this process ends.
func inputPipe(from *os.File) (*os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() {
		defer write.Close()
		_, _ = io.Copy(write, from) // a container that reads no further is no error
	}()
	return read, nil
}

// started closes our copy of the container's input, whose reader is then the
// container alone. The ends for output stay: run copies into them.
func (s *streams) started() {
	if s.stdin != nil {
		_ = s.stdin.Close() // the reading end of a pipe: nothing can be lost
	}
	s.stdin = nil
}

// drain waits until all output is written here.
func (s *streams) drain() {
	s.started()
	for _, f := range []*os.File{s.stdout, s.stderr} {
		if f != nil {
			_ = f.Close() // a pipe: nothing can be lost
		}
	}
	limit := time.After(drainTime)
	for _, done := range s.done {
		select {
		case <-done:
		case <-limit:
			return
		}
	}
}
