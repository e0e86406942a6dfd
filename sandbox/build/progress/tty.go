package progress

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	drawEvery = 100 * time.Millisecond
	windowMax = 6 // lines of output that are shown of a running step
	windowMin = 2
)

// tty draws the steps as a table that it draws again while they run, as buildx
// does: a line for each step, and below those that run the end of their output.
// The cursor is hidden only while a frame is written, and the terminal's modes
// are left alone: whatever ends the build leaves a terminal that works.
type tty struct {
	mu    sync.Mutex
	out   io.Writer
	size  func() (width, height int)
	color bool
	start time.Time

	steps    []*ttyStep
	byNumber map[int]*ttyStep
	total    int
	warnings []string
	notes    string

	drawn []int // the width of each line on the screen
	live  bool  // run draws
	stop  chan struct{}
	ended chan struct{}
}

type ttyStep struct {
	name       string
	start, end time.Time
	state      Kind // Started while it runs
	lines      []string
	partial    bool // the last of them has no end yet
}

func newTTY(f *os.File) *tty {
	t := makeTTY(f, func() (int, int) {
		w, h, err := term.GetSize(int(f.Fd()))
		if err != nil || w <= 0 || h <= 0 {
			return 80, 24
		}
		return w, h
	})
	t.color, t.live = os.Getenv("NO_COLOR") == "", true
	go t.run()
	return t
}

func makeTTY(out io.Writer, size func() (int, int)) *tty {
	return &tty{out: out, size: size, start: time.Now(), byNumber: map[int]*ttyStep{}, stop: make(chan struct{}), ended: make(chan struct{})}
}

// run draws until Close.
func (t *tty) run() {
	defer close(t.ended)
	tick := time.NewTicker(drawEvery)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
			t.mu.Lock()
			t.draw(time.Now(), false)
			t.mu.Unlock()
		}
	}
}

// Event takes note of an event; it is seen with the next frame.
func (t *tty) Event(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byNumber[e.Step]
	switch e.Kind {
	case Planned:
		t.total = e.Total
	case Note:
		t.notes += e.Text
	case Started:
		s = &ttyStep{name: clean(e.Name), start: e.Time, state: Started}
		t.byNumber[e.Step] = s
		t.steps = append(t.steps, s)
	case Warning:
		t.warnings = append(t.warnings, e.Text)
	case Output:
		if s != nil {
			s.write(e)
		}
	case Cached, Done, Failed, Canceled:
		if s != nil {
			s.end, s.state, s.lines = e.Time, e.Kind, nil
		}
	}
}

// write keeps the end of a step's output.
func (s *ttyStep) write(e Event) {
	text := strings.TrimRight(e.Text, "\r")
	text = clean(text[strings.LastIndexByte(text, '\r')+1:]) // what a terminal would show of the line
	if s.partial {
		s.lines = s.lines[:len(s.lines)-1]
	}
	s.partial = e.Partial
	if strings.TrimSpace(text) == "" && !e.Partial {
		return
	}
	s.lines = append(s.lines, text)
	if len(s.lines) > windowMax {
		s.lines = slices.Delete(s.lines, 0, len(s.lines)-windowMax)
	}
}

// Close draws everything a last time, and below it warnings and notes.
func (t *tty) Close() {
	close(t.stop)
	if t.live {
		<-t.ended
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.draw(time.Now(), true)
	_, _ = io.WriteString(t.out, ending(t.warnings, t.notes))
}

// row is one line of a frame.
type row struct {
	text string
	code string // of its colour
}

// The colours of buildx.
const (
	blue, yellow, red, faint = "34", "33", "31", "2"
)

// draw writes a frame over the one before.
func (t *tty) draw(now time.Time, last bool) {
	width, height := t.size()
	rows := t.frame(now, width, height, last)
	var b strings.Builder
	b.WriteString("\x1b[?25l")
	if up := min(t.above(width), height-1); up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	b.WriteString("\r")
	t.drawn = t.drawn[:0]
	for _, r := range rows {
		if t.color && r.code != "" {
			fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m\x1b[K\n", r.code, r.text)
		} else {
			b.WriteString(r.text + "\x1b[K\n")
		}
		t.drawn = append(t.drawn, columns(r.text))
	}
	b.WriteString("\x1b[J\x1b[?25h")
	_, _ = io.WriteString(t.out, b.String())
}

// above is how many lines the frame on the screen takes: more than it was
// drawn with if the terminal has become narrower.
func (t *tty) above(width int) (n int) {
	for _, w := range t.drawn {
		n += max(1, (w+width-1)/width)
	}
	return n
}

// frame lays a table out for a size. The last one is as long as it is.
func (t *tty) frame(now time.Time, width, height int, last bool) []row {
	over, failed := 0, false
	for _, s := range t.steps {
		if s.state != Started {
			over++
		}
		failed = failed || s.state == Failed || s.state == Canceled
	}
	head := fmt.Sprintf("[+] Building %.1fs (%d/%d)", now.Sub(t.start).Seconds(), over, max(t.total, len(t.steps)))
	if last && !failed {
		head = fmt.Sprintf("[+] Building %.1fs (%d/%d) FINISHED", now.Sub(t.start).Seconds(), over, len(t.steps))
	}
	rows := []row{{text: fit(head, width-1)}}
	steps, window := t.steps, 0
	if !last {
		steps, window = t.choose(height - 2)
	}
	for _, s := range steps {
		rows = append(rows, s.row(now, width))
		for _, line := range s.lines[len(s.lines)-min(window, len(s.lines)):] {
			rows = append(rows, row{fit(" => => # "+line, width-1), faint})
		}
	}
	return rows
}

// choose picks what fits into room lines: the steps that run, then the latest
// of those that are over, and how many lines of output each may show.
func (t *tty) choose(room int) (steps []*ttyStep, window int) {
	running, speaking := 0, 0
	for _, s := range t.steps {
		if s.state == Started {
			running++
			if len(s.lines) > 0 {
				speaking++
			}
		}
	}
	if speaking > 0 {
		window = min(windowMax, (room-min(running+2, room))/speaking)
		if window < windowMin {
			window = 0
		}
	}
	for _, s := range t.steps {
		if s.state == Started {
			room -= min(window, len(s.lines))
		}
	}
	extra := max(0, room-running) // of those that are over
	shown := min(running, room)
	for _, s := range slices.Backward(t.steps) {
		if s.state == Started && shown > 0 {
			shown--
			steps = append(steps, s)
		} else if s.state != Started && extra > 0 {
			extra--
			steps = append(steps, s)
		}
	}
	slices.Reverse(steps)
	return steps, window
}

// row is the line of a step: name on the left, time on the right.
func (s *ttyStep) row(now time.Time, width int) row {
	end, name, code := s.end, s.name, blue
	switch s.state {
	case Started:
		end, code = now, ""
	case Cached:
		name = "CACHED " + name
	case Failed:
		name, code = "ERROR "+name, red
	case Canceled:
		name, code = "CANCELED "+name, yellow
	}
	timer := fmt.Sprintf(" %.1fs", end.Sub(s.start).Seconds())
	left := width - 1 - len(timer)
	if left < 12 {
		return row{fit(" => "+name, width-1), code}
	}
	text := fit(" => "+name, left)
	return row{text + strings.Repeat(" ", left-columns(text)) + timer, code}
}
