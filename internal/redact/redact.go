// Package redact keeps secret values out of logs and error texts.
//
// A Writer stands between what a command prints and where it is kept. Each
// byte that belongs to an occurrence of a secret is replaced, and a run of
// such bytes becomes one Mask, whichever way the input was cut into writes:
// the tail that could still become a secret is held back until the next write
// or Close. The life of one write: every byte moves an Aho-Corasick automaton
// one state; the state's depth says how much of the tail is undecided, its
// match length says what to cover; all that is decided is written out.
//
// A secret is also found in the encodings of variants: in a URL, in a JSON
// string, in hexadecimal and, wherever in an encoded text it lies, in base64. Each
// long line of a secret of several lines counts by itself, since log readers
// cut at lines. What a program does to a secret on purpose, such as reversing it,
// is not found.
package redact

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// Mask is what is printed in the place of secret bytes.
const Mask = "***"

// minLine is the length in bytes from which a single line of a secret of
// several lines is a secret by itself; shorter ones ("}", "EOF") are common words.
const minLine = 8

var errClosed = errors.New("write to closed redacting writer")

// Writer masks secrets in what passes through it. It may be used by several
// goroutines; their writes are not mixed, but a secret cut between two
// goroutines' writes is found only when no other write came between.
type Writer struct {
	mu     sync.Mutex
	w      io.Writer
	find   *automaton
	state  int32
	held   []byte // undecided tail; its length is at least the depth of state
	cover  []bool // cover[i]: held[i] is part of a secret
	inMask bool   // the last byte decided was covered and its Mask is written
	err    error  // sticky
}

// NewWriter returns a Writer onto w that masks the secrets. Secrets of nothing
// but white space are left out. Close must be called at the end: it writes
// the tail and does not close w.
func NewWriter(w io.Writer, secrets ...string) *Writer {
	return &Writer{w: w, find: newAutomaton(variants(secrets))}
}

// String returns s with every secret masked.
func String(s string, secrets ...string) string {
	var out bytes.Buffer
	w := NewWriter(&out, secrets...)
	// A bytes.Buffer does not fail.
	_, _ = io.WriteString(w, s)
	_ = w.Close()
	return out.String()
}

// Write masks p and writes what is decided. The count is len(p) when the
// underlying writer took everything; after an error all writes fail with it.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	if w.find == nil {
		n, err := w.w.Write(p)
		w.err = err
		return n, err
	}
	for _, b := range p {
		w.held = append(w.held, b)
		w.cover = append(w.cover, false)
		w.state = w.find.next(w.state, b)
		n := len(w.cover)
		for i := n - int(w.find.nodes[w.state].match); i < n; i++ {
			w.cover[i] = true
		}
	}
	if err := w.emit(len(w.held) - int(w.find.nodes[w.state].depth)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close writes the held tail. The underlying writer stays open.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if errors.Is(w.err, errClosed) {
		return nil
	}
	if w.err != nil {
		return w.err
	}
	err := w.emit(len(w.held))
	w.err = errClosed
	return err
}

// emit writes the first n held bytes, masked, and forgets them.
func (w *Writer) emit(n int) error {
	out := make([]byte, 0, n)
	for i := range n {
		switch {
		case !w.cover[i]:
			out = append(out, w.held[i])
		case !w.inMask:
			out = append(out, Mask...)
		}
		w.inMask = w.cover[i]
	}
	w.held = append(w.held[:0], w.held[n:]...)
	w.cover = append(w.cover[:0], w.cover[n:]...)
	if len(out) == 0 {
		return nil
	}
	_, w.err = w.w.Write(out)
	return w.err
}
