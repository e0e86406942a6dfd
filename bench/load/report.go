package load

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// Loss is a way to lose a request.
type Loss string

// The ways. A request is counted in one of them only.
const (
	Refused     Loss = "refused"         // the dial failed
	ResetReused Loss = "reset on reused" // a kept connection ended without a byte of an answer
	ResetNew    Loss = "reset on new"    // the same on a connection's first request
	ServerError Loss = "5xx"             // a complete answer with a status from 500 up
	ShortBody   Loss = "short body"      // an answer that began and did not end as it said, or a request body that arrived cut
	TimedOut    Loss = "timeout"         // nothing within Options.Timeout
)

// Seen is when one version answered.
type Seen struct {
	Count       int64
	First, Last time.Time
}

// Report counts one run.
type Report struct {
	Sent       int64 // requests, with those whose dial failed
	OK         int64
	Posts      int64
	Dials      int64          // connections made
	ClosedIdle int64          // kept connections that the server had closed before we wrote: no loss
	Statuses4  int64          // answers 400–499: counted OK, but seldom meant
	Lost       map[Loss]int64 // by way
	Versions   map[string]Seen
	Examples   []string // the first few losses
	Took       time.Duration
	Slowest    time.Duration
}

// Losses is the number of lost requests.
func (r Report) Losses() int64 {
	var n int64
	for _, v := range r.Lost {
		n += v
	}
	return n
}

// Ceiling is the upper 95 % bound of the loss rate, in requests per million; with
// no loss in n requests that is 3/n.
func (r Report) Ceiling() float64 {
	if r.Sent == 0 {
		return 1e6
	}
	lost := float64(r.Losses())
	// Poisson: 3 for none; the normal approximation is close enough for the rest.
	bound := 3.0
	if lost > 0 {
		bound = lost + 2 + 1.65*math.Sqrt(lost)
	}
	return bound / float64(r.Sent) * 1e6
}

// String is one line, and one more for each example of a loss.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests (%d with a body) on %d connections in %v: %d lost", r.Sent, r.Posts, r.Dials, r.Took.Round(time.Millisecond), r.Losses())
	for _, way := range slices.Sorted(maps.Keys(r.Lost)) {
		fmt.Fprintf(&b, ", %d %s", r.Lost[way], way)
	}
	fmt.Fprintf(&b, " (95%% below %.0f per million); %d closed idle, slowest %v; versions", r.Ceiling(), r.ClosedIdle, r.Slowest.Round(time.Millisecond))
	for _, v := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(&b, " %s:%d", v, r.Versions[v].Count)
	}
	if r.Statuses4 > 0 {
		fmt.Fprintf(&b, "; %d answers were 4xx", r.Statuses4)
	}
	for _, e := range r.Examples {
		fmt.Fprintf(&b, "\n  %s", e)
	}
	return b.String()
}

// tally is the report while it grows.
type tally struct {
	limit int64
	stop  context.CancelFunc

	mu     sync.Mutex
	report Report
}

type outcome struct {
	answer answer
	err    error
	reused bool
	took   time.Duration
	body   int
}

func (t *tally) dialled() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.Dials++
}

func (t *tally) closedIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.ClosedIdle++
}

func (t *tally) dialFailed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent()
	t.lose(Refused, err)
}

func (t *tally) sent() {
	t.report.Sent++
	if t.limit > 0 && t.report.Sent >= t.limit {
		t.stop()
	}
}

func (t *tally) lose(way Loss, err error) {
	t.report.Lost[way]++
	if len(t.report.Examples) < 5 {
		t.report.Examples = append(t.report.Examples, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), way, err))
	}
}

func (t *tally) count(o outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sent()
	r := &t.report
	if o.body > 0 {
		r.Posts++
	}
	r.Slowest = max(r.Slowest, o.took)
	switch {
	case o.err == nil && o.answer.status >= 500:
		t.lose(ServerError, fmt.Errorf("status %d", o.answer.status))
	case o.err == nil:
		r.OK++
		if o.answer.status >= 400 {
			r.Statuses4++
		}
		seen := r.Versions[o.answer.version]
		seen.Count++
		seen.Last = time.Now()
		if seen.First.IsZero() {
			seen.First = seen.Last
		}
		r.Versions[o.answer.version] = seen
	case isTimeout(o.err):
		t.lose(TimedOut, o.err)
	case o.answer.begun || errors.Is(o.err, errShort):
		t.lose(ShortBody, o.err)
	case o.reused:
		t.lose(ResetReused, o.err)
	default:
		t.lose(ResetNew, o.err)
	}
}
