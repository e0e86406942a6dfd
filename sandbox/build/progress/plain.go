package progress

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// When Plain turns from a step that still runs to another one.
const (
	blockTime = 5 * time.Second // after this, one that has waited is shown
	idleTime  = time.Second     // or after the shown one has said nothing for this
	mostBytes = 64 << 10        // or when as much waits: nothing is thrown away
)

// Plain writes events as lines: "#5 [build 2/4] RUN make", "#5 1.203 output",
// "#5 DONE 2.1s". While several steps run, lines of one are kept together; "#5
// ..." says that another one comes in between. A step that ends is shown at
// once.
type Plain struct {
	mu       sync.Mutex
	out      io.Writer
	steps    map[int]*plainStep
	order    []int // of those that run, by their start
	current  int   // the step whose lines are being shown; 0: none
	begun    time.Time
	spoken   time.Time
	printed  bool
	closed   bool
	timer    *time.Timer
	warnings []string
	notes    string
}

type plainStep struct {
	n       int
	name    string
	start   time.Time
	waiting []string // lines to be shown, without the step's number
	size    int
	shown   bool // its name was, once at least
	over    bool
}

// NewPlain returns a Plain that writes to out.
func NewPlain(out io.Writer) *Plain { return &Plain{out: out, steps: map[int]*plainStep{}} }

// Event shows an event now, or soon.
func (p *Plain) Event(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.Step == 0 {
		switch e.Kind {
		case Warning:
			p.warnings = append(p.warnings, e.Text)
		case Note:
			p.notes += e.Text
		}
		return
	}
	s := p.steps[e.Step]
	if e.Kind == Started {
		s = &plainStep{n: e.Step, name: e.Name, start: e.Time}
		p.steps[e.Step] = s
		p.order = append(p.order, e.Step)
	}
	if s == nil || e.Partial {
		return
	}
	s.add(e)
	p.choose(s, e.Time)
}

// add puts what an event says into the step's lines.
func (s *plainStep) add(e Event) {
	line := ""
	switch e.Kind {
	case Output:
		line = seconds(e.Time.Sub(s.start)) + " " + e.Text
	case Warning:
		line = "WARN: " + e.Text
	case Cached:
		line, s.over = "CACHED", true
	case Done:
		line, s.over = fmt.Sprintf("DONE %.1fs", e.Time.Sub(s.start).Seconds()), true
	case Failed:
		line, s.over = "ERROR: "+e.Text, true
	case Canceled:
		line, s.over = "CANCELED", true
	default:
		return
	}
	s.waiting = append(s.waiting, line)
	s.size += len(line)
}

// choose shows a step that something happened to, if it is its turn.
func (p *Plain) choose(s *plainStep, now time.Time) {
	switch {
	case p.current == 0, p.current == s.n, s.over:
		p.show(s, now)
		if p.current == 0 {
			p.next(now)
		}
	case s.size > mostBytes, now.Sub(p.begun) >= blockTime, now.Sub(p.spoken) >= idleTime:
		p.show(s, now)
	case p.timer == nil:
		p.timer = time.AfterFunc(idleTime, p.tick)
	}
}

// tick looks whether a step has waited long enough, when no event says so.
func (p *Plain) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = nil
	if p.closed {
		return
	}
	now := time.Now()
	if p.current == 0 || now.Sub(p.begun) >= blockTime || now.Sub(p.spoken) >= idleTime {
		p.next(now)
	}
	if p.busiest() != nil {
		p.timer = time.AfterFunc(idleTime, p.tick)
	}
}

// next shows the step that has most to say, if one has.
func (p *Plain) next(now time.Time) {
	if s := p.busiest(); s != nil {
		p.show(s, now)
	}
}

func (p *Plain) busiest() (most *plainStep) {
	for _, n := range p.order {
		s := p.steps[n]
		if n != p.current && (len(s.waiting) > 0 || !s.shown) && (most == nil || s.size > most.size) {
			most = s
		}
	}
	return most
}

// show prints all that is waiting of a step, which becomes the current one.
func (p *Plain) show(s *plainStep, now time.Time) {
	text := ""
	if p.current != s.n {
		if p.current != 0 {
			text = fmt.Sprintf("#%d ...\n", p.current)
		}
		if p.printed {
			text += "\n"
		}
		text += fmt.Sprintf("#%d %s\n", s.n, s.name)
		p.current, p.begun, s.shown = s.n, now, true
	}
	for _, line := range s.waiting {
		text += fmt.Sprintf("#%d %s\n", s.n, line)
	}
	p.print(text)
	p.spoken = now
	s.waiting, s.size = nil, 0
	if s.over {
		p.current = 0
		delete(p.steps, s.n)
		p.order = without(p.order, s.n)
	}
}

func without(list []int, n int) []int {
	var rest []int
	for _, x := range list {
		if x != n {
			rest = append(rest, x)
		}
	}
	return rest
}

func (p *Plain) print(text string) {
	p.printed = p.printed || text != ""
	_, _ = io.WriteString(p.out, text)
}

// flush shows all that waits.
func (p *Plain) flush(now time.Time) {
	for s := p.busiest(); s != nil; s = p.busiest() {
		p.show(s, now)
	}
}

// Close shows what still waits, the warnings, and the notes.
func (p *Plain) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.flush(time.Now())
	p.print(ending(p.warnings, p.notes))
}
