package image

import (
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Event tells how far one part of a pull or push is, in Docker's words.
type Event struct {
	// Layer is the digest of the layer as it travels; empty: the event is
	// about the whole, and Status a line to print.
	Layer  digest.Digest
	Status string // "Downloading", "Pull complete", "Already exists", …
	// Current and Total are bytes; Total 0: not that kind of event.
	Current, Total int64
}

// progress hands events of several goroutines to one reader. Without one it
// writes a line for each change of a status.
type progress struct {
	mu   sync.Mutex
	tell func(Event)
}

func newProgress(tell func(Event), out io.Writer) *progress {
	if tell != nil {
		return &progress{tell: tell}
	}
	if out == nil {
		return &progress{tell: func(Event) {}}
	}
	last := map[digest.Digest]string{}
	return &progress{tell: func(e Event) {
		line := e.Status
		if e.Layer != "" {
			if last[e.Layer] == e.Status {
				return
			}
			last[e.Layer] = e.Status
			line = shortDigest(e.Layer) + ": " + e.Status
		}
		_, _ = fmt.Fprintln(out, line) // a reader that went away must not end the work
	}}
}

func (p *progress) event(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell(e)
}

func (p *progress) status(layer digest.Digest, status string) {
	p.event(Event{Layer: layer, Status: status})
}

func (p *progress) line(format string, args ...any) {
	p.event(Event{Status: fmt.Sprintf(format, args...)})
}

// reader counts what is read of a transfer of total bytes, from at on.
func (p *progress) reader(r io.Reader, status string, e Event) io.Reader {
	e.Status = status
	return &progressReader{r: r, p: p, e: e}
}

type progressReader struct {
	r io.Reader
	p *progress
	e Event
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if n > 0 {
		r.e.Current += int64(n)
		r.p.event(r.e)
	}
	return n, err
}

func shortDigest(d digest.Digest) string { return d.Encoded()[:12] }
