package build

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"time"

	"naru/sandbox/build/progress"
)

// reporter tells the world outside what happens in a build.
type reporter struct {
	mu    sync.Mutex
	send  func(progress.Event)
	plain *progress.Plain // nil: nobody reads lines
	count int

	warned map[string]bool
}

func newReporter(o Options) *reporter {
	r := &reporter{send: o.Progress}
	if o.Out == nil {
		return r
	}
	r.plain = progress.NewPlain(o.Out)
	r.send = func(e progress.Event) {
		r.plain.Event(e)
		if o.Progress != nil {
			o.Progress(e)
		}
	}
	return r
}

// tell sends an event that happens now.
func (r *reporter) tell(e progress.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.send != nil {
		e.Time = time.Now()
		r.send(e)
	}
}

// warn says something once, though it may hold for several platforms.
func (r *reporter) warn(msg string) {
	r.mu.Lock()
	again := r.warned[msg]
	if r.warned == nil {
		r.warned = map[string]bool{}
	}
	r.warned[msg] = true
	r.mu.Unlock()
	if !again {
		r.tell(progress.Event{Kind: progress.Warning, Text: msg})
	}
}

// planned says how many parts there are going to be: those of the stages, and
// one each for the Dockerfile and the export.
func (r *reporter) planned(p *plan) {
	total := 2
	for _, st := range p.stages {
		total += st.total
	}
	r.tell(progress.Event{Kind: progress.Planned, Total: total})
}

// begin opens the next numbered part.
func (r *reporter) begin(title string) *vertex {
	r.mu.Lock()
	r.count++
	v := &vertex{r: r, n: r.count, start: time.Now()}
	r.mu.Unlock()
	v.tell(progress.Started, title)
	return v
}

// close explains how the build ended.
func (r *reporter) close(err error) {
	if text := Explain(err); text != "" {
		r.tell(progress.Event{Kind: progress.Note, Text: text})
	}
	if r.plain != nil {
		r.plain.Close()
	}
}

const (
	tailLines    = 20      // of a failed RUN's output are in its error
	maxLine      = 8 << 10 // bytes; a longer line is written in parts
	partialEvery = 100 * time.Millisecond
)

// vertex is one numbered part. What is written to it comes out line by line.
type vertex struct {
	r     *reporter
	n     int
	start time.Time

	mu      sync.Mutex
	line    []byte
	partial time.Time // when line was last shown without its end
	tail    []string
}

func (v *vertex) tell(k progress.Kind, text string) {
	e := progress.Event{Kind: k, Step: v.n, Text: text}
	if k == progress.Started {
		e.Name, e.Text = text, ""
	}
	v.r.tell(e)
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
			v.peek()
		}
	}
	return n, nil
}

// peek shows a line that has no end yet, such as a bar or a question.
// v.mu is held.
func (v *vertex) peek() {
	if now := time.Now(); now.Sub(v.partial) >= partialEvery {
		v.partial = now
		v.r.tell(progress.Event{Kind: progress.Output, Step: v.n, Text: string(v.line), Partial: true})
	}
}

// flush sends the line that is waiting. v.mu is held.
func (v *vertex) flush() {
	text := string(bytes.TrimSuffix(v.line, []byte("\r")))
	v.line = v.line[:0]
	if len(v.tail) == tailLines {
		v.tail = append(v.tail[:0], v.tail[1:]...)
	}
	v.tail = append(v.tail, text)
	v.tell(progress.Output, text)
}

// rest sends a last line that has no end, and returns the last lines.
func (v *vertex) rest() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.line) > 0 {
		v.flush()
	}
	return v.tail
}

func (v *vertex) cached() { v.tell(progress.Cached, "") }

// end closes the part.
func (v *vertex) end(err error) {
	v.rest()
	switch {
	case err == nil:
		v.tell(progress.Done, "")
	case errors.Is(err, context.Canceled), errors.Is(err, errCanceled):
		v.tell(progress.Canceled, "")
	default:
		v.tell(progress.Failed, err.Error())
	}
}
