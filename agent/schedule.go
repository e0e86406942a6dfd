package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/robfig/cron/v3"
	"go.uber.org/zap"

	"naru/agent/store"
	"naru/configs"
	"naru/pipeline"
)

// schedule is one cron line of an app, with the traps of robfig/cron taken out:
// a zone inside the spec (which panics) is refused, days on which the clock jumps
// have exactly one run, and an "@every" is at least a minute.
type schedule struct {
	app  string
	text string // names it in the store: spec and zone
	zone *time.Location
	spec cron.Schedule
	wall bool       // runs at hours of the day, so counted on the wall clock
	mu   sync.Mutex // one look at a time
}

// starting is how late a missed run may still start; several become one.
const starting = time.Hour

// starBit marks a field that was written as "*" (robfig/cron, spec.go).
const starBit = 1 << 63

func parseSchedule(c configs.Schedule) (s *schedule, err error) {
	defer func() {
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("cron parser: %v", r)
		}
	}()
	if strings.Contains(c.Cron, "TZ=") {
		return nil, errors.New("the time zone is a key of its own, tz")
	}
	zone, err := time.LoadLocation(c.Zone)
	if err != nil {
		return nil, err
	}
	spec, err := cron.ParseStandard(c.Cron)
	if err != nil {
		return nil, err
	}
	s = &schedule{text: c.Cron + " " + zone.String(), zone: zone, spec: spec}
	switch spec := spec.(type) {
	case cron.ConstantDelaySchedule:
		if spec.Delay < time.Minute {
			return nil, errors.New("@every needs at least 1m")
		}
	case *cron.SpecSchedule:
		s.wall = spec.Hour&starBit == 0
		spec.Location = zone
		if s.wall {
			spec.Location = time.UTC
		}
	}
	if s.Next(time.Now()).IsZero() {
		return nil, errors.New("it never comes")
	}
	return s, nil
}

// Next returns the first run after t; it implements cron.Schedule. A schedule
// with hours is computed on a clock without jumps and then put into the zone: a
// time that a jump leaves out is shifted with it, one that comes twice counts once.
func (s *schedule) Next(t time.Time) time.Time {
	t = t.In(s.zone)
	if !s.wall {
		return s.spec.Next(t)
	}
	civil := time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
	// A run may have been shifted past t, so look from before any jump.
	civil = civil.Add(-2 * time.Hour)
	for {
		civil = s.spec.Next(civil)
		if civil.IsZero() {
			return civil
		}
		next := time.Date(civil.Year(), civil.Month(), civil.Day(), civil.Hour(), civil.Minute(), civil.Second(), 0, s.zone)
		if next.After(t) {
			return next
		}
	}
}

// due returns the newest run after last and not after now that may still start.
func (s *schedule) due(last, now time.Time) (at time.Time, ok bool) {
	if limit := now.Add(-starting); last.Before(limit) {
		last = limit
	}
	for next := s.Next(last); !next.IsZero() && !next.After(now); next = s.Next(next) {
		at, ok = next, true
	}
	return at, ok
}

// look submits a deployment if the schedule is due. The delivery's id names the
// run, so that a kill between the two writes does not make it run twice.
func (a *Agent) look(ctx context.Context, s *schedule, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, err := a.store.LastScheduled(ctx, s.app, s.text)
	if err != nil {
		return err
	}
	if last.IsZero() { // a new one: what was before does not count
		return a.store.SetScheduled(ctx, s.app, s.text, now)
	}
	at, ok := s.due(last, now)
	if !ok {
		if missed := s.Next(last); missed.IsZero() || missed.After(now) {
			return nil
		}
		a.log.Warn("scheduled run missed", zap.String("app", s.app), zap.String("schedule", s.text), zap.Time("last", last))
		return a.store.SetScheduled(ctx, s.app, s.text, now)
	}
	_, err = a.Submit(ctx, s.app, pipeline.Trigger{Kind: pipeline.Schedule, By: "schedule", Reason: s.text},
		&store.Delivery{Sender: "schedule", ID: s.text + " " + at.UTC().Format(time.RFC3339)})
	if err != nil {
		return err
	}
	return a.store.SetScheduled(ctx, s.app, s.text, at)
}

// NextRuns returns when the schedules of an app run next, in the config's order.
func (a *Agent) NextRuns(app string, now time.Time) (runs []time.Time) {
	for _, s := range a.currentSchedules() {
		if s.app == app {
			runs = append(runs, s.Next(now))
		}
	}
	return runs
}

// ticker wakes up each schedule at its time.
type ticker struct {
	*cron.Cron
	a       *Agent
	ctx     context.Context // of Run; jobs of the library take none
	current []*schedule
}

// newCron starts the library's goroutine; Stop ends it. Recover is the innermost
// wrapper: outside, a panic would take the slot of SkipIfStillRunning for ever.
func (a *Agent) newCron(ctx context.Context) *ticker {
	log := cronLog{a.log.Named("cron")}
	t := &ticker{a: a, ctx: ctx, Cron: cron.New(cron.WithLogger(log),
		cron.WithChain(cron.SkipIfStillRunning(log), cron.Recover(log)))}
	t.Start()
	return t
}

// follow makes list the schedules in force, and looks at each once: a run that was
// missed while the agent was down or the machine asleep is found here.
func (t *ticker) follow(list []*schedule) {
	if !slices.Equal(list, t.current) {
		for _, e := range t.Entries() {
			t.Remove(e.ID)
		}
		for _, s := range list {
			t.Schedule(s, cron.FuncJob(func() { t.look(s) }))
		}
		t.current = list
	}
	for _, s := range list {
		t.look(s)
	}
}

func (t *ticker) look(s *schedule) {
	if err := t.a.look(t.ctx, s, time.Now()); err != nil && t.ctx.Err() == nil {
		t.a.log.Error("scheduled deployment", zap.String("app", s.app), zap.String("schedule", s.text), zap.Error(err))
	}
}

// cronLog gives the library's words to zap.
type cronLog struct{ log *zap.Logger }

// Info implements cron.Logger.
func (l cronLog) Info(msg string, kv ...any) { l.log.Sugar().Debugw(msg, kv...) }

// Error implements cron.Logger.
func (l cronLog) Error(err error, msg string, kv ...any) {
	l.log.Sugar().Errorw(msg, append(kv, zap.Error(err))...)
}
