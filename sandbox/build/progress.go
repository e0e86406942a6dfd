package build

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// progress writes what happens as lines, in the form of BuildKit's plain
// progress: "#5 [build 2/4] RUN make", "#5 1.203 output", "#5 DONE 2.1s".
type progress struct {
	mu    sync.Mutex
	out   io.Writer
	count int
}

func newProgress(out io.Writer) *progress {
	if out == nil {
		out = io.Discard
	}
	return &progress{out: out}
}

// print writes lines. A log that cannot be written does not stop a build.
func (p *progress) print(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = fmt.Fprintf(p.out, format, args...)
}

func (p *progress) warn(msg string) { p.print("WARNING: %s\n", msg) }

// begin opens the next numbered part.
func (p *progress) begin(title string) *vertex {
	p.mu.Lock()
	p.count++
	v := &vertex{p: p, n: p.count, start: time.Now()}
	p.mu.Unlock()
	p.print("#%d %s\n", v.n, title)
	return v
}

const (
	tailLines = 20      // of a failed RUN's output are in its error
	maxLine   = 8 << 10 // bytes; a longer line is written in parts
)

// vertex is one numbered part. What is written to it comes out line by line.
type vertex struct {
	p     *progress
	n     int
	start time.Time

	mu   sync.Mutex
	line []byte
	tail []string
}

// Write takes output of any size and never fails.
func (v *vertex) Write(data []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := len(data)
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		part := data
		if end >= 0 {
			part = data[:end]
		}
		room := maxLine - len(v.line)
		switch {
		case len(part) > room:
			v.line = append(v.line, part[:room]...)
			data = data[room:]
			v.flush()
		case end >= 0:
			v.line = append(v.line, part...)
			data = data[end+1:]
			v.flush()
		default:
			v.line = append(v.line, part...)
			data = nil
		}
	}
	return n, nil
}

// flush prints the line that is waiting. v.mu is held.
func (v *vertex) flush() {
	text := string(bytes.TrimSuffix(v.line, []byte("\r")))
	v.line = v.line[:0]
	if len(v.tail) == tailLines {
		v.tail = append(v.tail[:0], v.tail[1:]...)
	}
	v.tail = append(v.tail, text)
	v.p.print("#%d %.3f %s\n", v.n, time.Since(v.start).Seconds(), text)
}

// rest prints a last line that has no end, and returns the last lines.
func (v *vertex) rest() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.line) > 0 {
		v.flush()
	}
	return v.tail
}

func (v *vertex) cached() { v.p.print("#%d CACHED\n\n", v.n) }

// end closes the part.
func (v *vertex) end(err error) {
	v.rest()
	if errors.Is(err, errCanceled) {
		v.p.print("#%d CANCELED\n\n", v.n)
		return
	}
	if err != nil {
		v.p.print("#%d ERROR: %v\n\n", v.n, err)
		return
	}
	v.p.print("#%d DONE %.1fs\n\n", v.n, time.Since(v.start).Seconds())
}
