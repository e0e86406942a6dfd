package events

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newLog(t *testing.T, bound int64) *Log {
	return New(filepath.Join(t.TempDir(), "events"), bound)
}

func event(n int) Event {
	return Event{Time: time.Unix(int64(n), 0).UTC(), Action: "start", ID: strconv.Itoa(n)}
}

func all(t *testing.T, l *Log, q Query) string {
	t.Helper()
	var ids []string
	if err := l.Read(t.Context(), q, func(e Event) error { ids = append(ids, e.ID); return nil }); err != nil {
		t.Fatal(err)
	}
	return strings.Join(ids, " ")
}

func TestReadSelects(t *testing.T) {
	l := newLog(t, Bound)
	if got := all(t, l, Query{}); got != "" {
		t.Errorf("an empty log has %q", got)
	}
	for n := range 6 {
		if err := l.Append(event(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append(event(5)); err != nil { // as after a crash
		t.Fatal(err)
	}
	for want, q := range map[string]Query{
		"0 1 2 3 4 5": {}, "3 4 5": {Since: time.Unix(3, 0)}, "0 1": {Until: time.Unix(1, 0)},
		"4": {Keep: func(e Event) bool { return e.ID == "4" }},
	} {
		if got := all(t, l, q); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestEveryCut cuts the log at every byte: the events before are there, and the next
// one is too.
func TestEveryCut(t *testing.T) {
	l := newLog(t, Bound)
	for n := range 3 {
		if err := l.Append(event(n)); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range whole {
		if err := os.WriteFile(l.path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.Append(event(9)); err != nil {
			t.Fatal(err)
		}
		want := strings.Repeat("x", strings.Count(string(whole[:cut]), "\n"))
		got := strings.Fields(all(t, l, Query{}))
		if len(got) == 0 || got[len(got)-1] != "9" || len(got)-1 < len(want) {
			t.Errorf("cut at %d: %v", cut, got)
		}
	}
}

func TestBoundAndRotation(t *testing.T) {
	const bound = 4000
	l := newLog(t, bound)
	for n := range 500 {
		if err := l.Append(event(n)); err != nil {
			t.Fatal(err)
		}
		size := int64(0)
		for _, path := range []string{l.path, l.older()} {
			if info, err := os.Stat(path); err == nil {
				size += info.Size()
			}
		}
		if size > bound+100 {
			t.Fatalf("the log has %d bytes", size)
		}
	}
	got := strings.Fields(all(t, l, Query{}))
	if len(got) < 10 || got[len(got)-1] != "499" {
		t.Errorf("left: %v", got)
	}
	if err := l.Append(Event{Action: "big", ID: "b", Attributes: map[string]string{"x": strings.Repeat("y", lineMax)}}); err != nil {
		t.Fatal(err)
	}
	if got := all(t, l, Query{Keep: func(e Event) bool { return e.Action == "big" }}); got != "b" {
		t.Errorf("an event that is too large: %q", got)
	}
}

// TestFollowersLoseNothing has several writers and a follower over many rotations.
func TestFollowersLoseNothing(t *testing.T) {
	l := newLog(t, 64<<10)
	const writers, each = 4, 300
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	seen, enough := map[string]bool{}, errors.New("enough")
	var written, read atomic.Int64
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		first := true
		done <- l.Read(ctx, Query{Follow: true}, func(e Event) error {
			if first {
				first = false
				close(started)
			}
			seen[e.ID] = true
			read.Add(1)
			if len(seen) == writers*each+1 {
				return enough
			}
			return nil
		})
	}()
	if err := l.Append(Event{Action: "start", ID: "first"}); err != nil {
		t.Fatal(err)
	}
	<-started
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				if err := l.Append(Event{Action: "start", ID: fmt.Sprint(w, "-", n)}); err != nil {
					t.Error(err)
				}
				written.Add(1)
				for written.Load()-read.Load() > 300 && ctx.Err() == nil { // it may fall behind one file, not two
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	if err := <-done; !errors.Is(err, enough) {
		t.Errorf("%d of %d events were seen: %v", len(seen), writers*each+1, err)
	}
}
