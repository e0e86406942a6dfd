package sandbox

import (
	"context"
	"errors"
	"maps"
	"strconv"
	"sync"
	"time"

	"naru/sandbox/events"
	"naru/sandbox/runtime"
)

// emit records what has happened to a container, with pairs of attributes beside
// its name, image and labels. What cannot be written down has happened all the
// same: no operation fails for it.
func (e *Engine) emit(r *record, action string, pairs ...string) {
	e.emitAt(r, time.Now().UTC(), action, pairs...)
}

func (e *Engine) emitAt(r *record, at time.Time, action string, pairs ...string) {
	if r.Step {
		return
	}
	attributes := map[string]string{}
	maps.Copy(attributes, r.Config.Labels)
	attributes["name"], attributes["image"] = r.Name, r.Config.Image
	for i := 0; i+1 < len(pairs); i += 2 {
		attributes[pairs[i]] = pairs[i+1]
	}
	_ = e.log.Append(events.Event{Time: at, Action: action, ID: r.ID, Attributes: attributes})
}

// emitID is emit for who has no record at hand.
func (e *Engine) emitID(id, action string, pairs ...string) {
	if r, err := e.load(id); err == nil {
		e.emit(r, action, pairs...)
	}
}

// emitEnd records an end at its own time: it may be noticed late.
func (e *Engine) emitEnd(r *record, exit runtime.Exit) {
	at := exit.At.UTC()
	if exit.OOM || exit.OOMKills > 0 { // the end by it, or only some process before the end
		e.emitAt(r, at, "oom", "kills", strconv.Itoa(exit.OOMKills))
	}
	code := strconv.Itoa(exit.Code)
	if !exit.Known {
		code = "unknown"
	}
	e.emitAt(r, at, "die", "exitCode", code)
}

// Events hands the events of containers to each: those that are on record, and
// with Follow those to come. There is no daemon to notice that a detached container
// has ended: whoever looks first records it, with its true time. While somebody
// follows, that is the follower.
func (e *Engine) Events(ctx context.Context, q events.Query, each func(events.Event) error) error {
	if !q.Follow {
		return e.log.Read(ctx, q, each)
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &endWatcher{e: e, watched: map[string]bool{}}
	defer w.done.Wait()
	defer cancel()
	running, err := e.List(ctx, false, nil)
	if err != nil {
		return err
	}
	for _, c := range running {
		w.watch(ctx, c.ID)
	}
	keep := q.Keep
	q.Keep = func(ev events.Event) bool {
		if ev.Action == "start" {
			w.watch(ctx, ev.ID) // also what the caller does not want to see
		}
		return keep == nil || keep(ev)
	}
	return e.log.Read(ctx, q, each)
}

// endWatcher waits for the ends of containers.
type endWatcher struct {
	e       *Engine
	mu      sync.Mutex
	watched map[string]bool
	done    sync.WaitGroup
}

func (w *endWatcher) watch(ctx context.Context, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watched[id] {
		return
	}
	w.watched[id] = true
	w.done.Go(func() {
		for ended := true; ended; { // again, should it have been started again at once
			ended, _ = w.e.watchEnd(ctx, id) // an error: it has gone, or somebody else has seen it
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watched, id)
	})
}

// watchEnd returns when a container has ended and that is on record; ended is
// false when it did not run.
func (e *Engine) watchEnd(ctx context.Context, id string) (ended bool, err error) {
	r, err := e.load(id)
	if err != nil {
		return false, err
	}
	rt, err := e.open(id)
	if rt == nil || err != nil {
		return false, err
	}
	ran := rt.State() != runtime.Stopped
	_, err = rt.Wait(ctx)
	if err = errors.Join(err, rt.Close()); err != nil {
		return false, err
	}
	return ran, e.sawEnd(ctx, r)
}
