package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/term"

	"naru/sandbox/image"
)

// bars draws the progress of layers on a terminal: a line for each, rewritten
// in place. It is told of events by one goroutine at a time.
type bars struct {
	w     io.Writer
	width func() int
	order []digest.Digest
	lines map[digest.Digest]image.Event
	drawn int // lines on the screen that the next drawing replaces
	last  time.Time
}

func newBars(w io.Writer) *bars {
	return &bars{w: w, lines: map[digest.Digest]image.Event{}, width: func() int {
		if f, ok := w.(*os.File); ok {
			if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
				return width
			}
		}
		return 80
	}}
}

func (b *bars) tell(e image.Event) {
	if e.Layer == "" { // a line that stays, above the bars that still move
		b.erase()
		if b.settled() {
			b.draw()
			b.drawn, b.order = 0, nil
		}
		fmt.Fprintln(b.w, e.Status)
		b.draw()
		return
	}
	old, known := b.lines[e.Layer]
	if !known {
		b.order = append(b.order, e.Layer)
	}
	b.lines[e.Layer] = e
	const often = 100 * time.Millisecond
	if known && old.Status == e.Status && time.Since(b.last) < often {
		return
	}
	b.erase()
	b.draw()
}

// settled says whether no bar will change any more.
func (b *bars) settled() bool {
	for _, layer := range b.order {
		switch status := b.lines[layer].Status; {
		case strings.HasSuffix(status, " complete"), strings.HasSuffix(status, "lready exists"), status == "Pushed", strings.HasPrefix(status, "Mounted from"):
		default:
			return false
		}
	}
	return true
}

func (b *bars) end() {
	b.erase()
	b.draw()
	b.drawn = 0
}

// erase moves up to the first bar and clears from there on (ECMA-48, CUU and ED).
func (b *bars) erase() {
	if b.drawn > 0 {
		fmt.Fprintf(b.w, "\x1b[%dA\x1b[J", b.drawn)
	}
	b.drawn = 0
}

func (b *bars) draw() {
	width := b.width()
	for _, layer := range b.order {
		line := []rune(barLine(b.lines[layer]))
		fmt.Fprintln(b.w, string(line[:min(len(line), width-1)])) // a wrapped line could not be replaced
	}
	b.drawn, b.last = len(b.order), time.Now()
}

func barLine(e image.Event) string {
	line := shortID(e.Layer.String()) + ": " + e.Status
	if e.Total <= 0 {
		return line
	}
	const cells = 50
	full := int(min(cells, e.Current*cells/e.Total))
	bar := strings.Repeat("=", full)
	if full < cells {
		bar += ">" + strings.Repeat(" ", cells-full-1)
	}
	return fmt.Sprintf("%s [%s] %s/%s", line, bar, humanSize(e.Current), humanSize(e.Total))
}
