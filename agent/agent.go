// Package agent decides when something is deployed. It owns the durable queue,
// one lane per app, the schedules, recovery after a crash, and reconciliation.
//
// The life of one deployment: Submit stores it, together with the delivery that
// asked for it, and returns when both are on disk; what waited for the same app
// is superseded, what runs is cancelled unless it has begun to switch traffic.
// The app's lane wakes up, takes it from the store, and runs it with the
// pipeline's engine, whose journal and log go to the store; then it compares
// what runs with the live release once more. An agent that starts goes on with
// what the one before left running, brings every live release back up, and
// only then takes what waits.
//
// Ownership: a lane's goroutine is the only one that deploys or reconciles its
// app, so the two never overlap. Run waits for all goroutines it has started.
package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"naru/agent/store"
	"naru/configs"
	"naru/pipeline"
)

var (
	// ErrUnknownApp says that no app of that name is configured.
	ErrUnknownApp = errors.New("unknown app")
	// ErrFinished says that a deployment has ended and cannot be cancelled.
	ErrFinished = errors.New("the deployment has ended")
	// ErrNoRelease says that there is no such release to roll back to.
	ErrNoRelease = errors.New("no such release to roll back to")
)

// Options are what an Agent needs; all but Builds and Prune are required.
type Options struct {
	Config configs.Config
	Engine *pipeline.Engine // Journal and Releases may be nil: the store is taken
	Store  *store.Store
	Log    *zap.Logger
	Builds int // builds of all apps that may run at once; 0: one
	// Prune removes the app's images but those in keep, by digest. It is called
	// when none of the app's deployments runs. Nil: nothing is removed.
	Prune func(ctx context.Context, app string, keep []string) (removed []string, err error)
}

// Agent runs the deployments of all apps.
type Agent struct {
	store  *store.Store
	engine pipeline.Engine // copied and completed for each run
	log    *zap.Logger
	root   string
	builds chan struct{} // one token per build under way
	prune  func(ctx context.Context, app string, keep []string) (removed []string, err error)
	ready  atomic.Bool

	mu        sync.Mutex
	apps      map[string]App
	lanes     map[string]*lane
	start     func(*lane) // starts a lane's goroutine; nil unless Run is active
	schedules []*schedule
	changed   chan struct{} // holds one token when schedules has changed
}

// Times of housekeeping.
const (
	reconcileEvery = time.Minute
	minute         = time.Minute
	keepRecords    = 30 * 24 * time.Hour // deliveries, journals and logs
)

// New makes an agent; Run starts it. Submit may be called before: what is
// submitted waits in the store.
func New(o Options) (*Agent, error) {
	a := &Agent{
		store: o.Store, engine: *o.Engine, log: o.Log, root: o.Config.Root, prune: o.Prune,
		builds: make(chan struct{}, max(o.Builds, 1)), lanes: map[string]*lane{}, changed: make(chan struct{}, 1),
	}
	a.engine.Journal, a.engine.Releases = o.Store, o.Store
	a.engine.Builder = limitedBuilder{Builder: o.Engine.Builder, slots: a.builds}
	if err := a.configure(o.Config, nil); err != nil {
		return nil, err
	}
	return a, a.adopt(context.Background())
}

// configure makes the apps of c, and those that are kept, the current ones with
// their schedules.
func (a *Agent) configure(c configs.Config, kept []App) error {
	apps := map[string]App{}
	for _, conf := range c.Apps {
		apps[conf.App.Name] = newApp(conf)
	}
	for _, app := range kept {
		if _, taken := apps[app.Name]; !taken {
			apps[app.Name] = app
		}
	}
	var schedules []*schedule
	for name, app := range apps {
		for _, s := range app.Triggers.Schedules {
			sched, err := parseSchedule(s)
			if err != nil {
				return fmt.Errorf("app %s: schedule %q: %w", name, s.Cron, err)
			}
			sched.app = name
			schedules = append(schedules, sched)
		}
		a.warnOfSecret(app)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.apps, a.schedules = apps, schedules
	for name := range apps {
		a.addLane(name)
	}
	select {
	case a.changed <- struct{}{}:
	default:
	}
	return nil
}

// warnOfSecret says before the first webhook that it will be refused.
func (a *Agent) warnOfSecret(app App) {
	if app.Triggers.Webhook == nil {
		return
	}
	if _, err := a.WebhookSecret(app); err != nil {
		a.log.Warn("webhooks of the app will be refused", zap.String("app", app.Name), zap.Error(err))
	}
}

// adopt gives a lane to every app that the store knows something unfinished or
// live of, configured or not: an app whose file has a typo must stay up.
func (a *Agent) adopt(ctx context.Context) error {
	unfinished, err := a.store.Unfinished(ctx)
	if err != nil {
		return err
	}
	live, err := a.store.LiveReleases(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range live {
		a.addLane(r.App)
	}
	for _, d := range unfinished {
		l := a.addLane(d.App)
		if d.State == pipeline.Running {
			l.unfinished = append(l.unfinished, d)
		}
	}
	return nil
}

// addLane returns the lane of an app. The caller holds a.mu.
func (a *Agent) addLane(app string) *lane {
	l := a.lanes[app]
	if l == nil {
		l = &lane{a: a, app: app, log: a.log.With(zap.String("app", app)), wake: make(chan struct{}, 1)}
		a.lanes[app] = l
		if a.start != nil {
			a.start(l)
		}
	}
	return l
}

func (a *Agent) lane(app string) *lane {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lanes[app]
}

// Run works until ctx ends. Deployments under way are then left as a kill would
// leave them, for the next agent to go on with. Run returns when everything it
// started has ended. The caller holds the Lock of the data directory.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	// The group must not run empty while lanes may still be added.
	g.Go(func() error { return a.housekeep(ctx) })
	a.mu.Lock()
	a.start = func(l *lane) { g.Go(func() error { l.loop(ctx); return nil }) }
	for _, l := range a.lanes {
		a.start(l)
	}
	a.mu.Unlock()
	a.ready.Store(true)
	a.log.Info("agent started", zap.Int("apps", len(a.Apps())))
	err := g.Wait()
	a.ready.Store(false)
	a.log.Info("agent stopped", zap.Error(err))
	return err
}

// Ready reports whether Run is active.
func (a *Agent) Ready() bool { return a.ready.Load() }

// Reload makes the apps of c the current ones: those that are new get a lane,
// the others are deployed with their new config from the next deployment on. An
// app that came from one of the broken files stays as it is. One that is gone keeps
// running and takes no more deployments. Of the agent's own settings nothing
// changes.
func (a *Agent) Reload(c configs.Config, broken []string) error {
	var kept []App
	for _, app := range a.Apps() {
		if slices.Contains(broken, app.File) {
			kept = append(kept, app)
		}
	}
	if err := a.configure(c, kept); err != nil {
		return err
	}
	a.log.Info("config reloaded", zap.Int("apps", len(a.Apps())))
	return nil
}

// housekeep runs the schedules and forgets old records until ctx ends.
func (a *Agent) housekeep(ctx context.Context) error {
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.start = nil
	}()
	ticks := a.newCron(ctx)
	defer func() { <-ticks.Stop().Done() }()
	tick := time.NewTicker(minute)
	defer tick.Stop()
	var forgot time.Time
	for {
		ticks.follow(a.currentSchedules())
		if now := time.Now(); now.Sub(forgot) > 24*time.Hour {
			forgot = now
			if err := a.store.Forget(ctx, now.Add(-keepRecords)); err != nil && ctx.Err() == nil {
				a.log.Warn("forget old records", zap.Error(err))
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-a.changed:
		}
	}
}

func (a *Agent) currentSchedules() []*schedule {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.schedules
}

// Submit asks for a deployment of an app and returns when it, and the delivery
// that caused it (or nil), are durable. A delivery that was accepted before comes
// back as Repeated with the deployment of then.
func (a *Agent) Submit(ctx context.Context, app string, t pipeline.Trigger, from *store.Delivery) (store.Accepted, error) {
	if _, ok := a.App(app); !ok {
		return store.Accepted{}, fmt.Errorf("%w %q", ErrUnknownApp, app)
	}
	return a.lane(app).submit(ctx, t, from)
}

// Rollback asks for a deployment of an older release, t.Release, again; 0 is the
// newest kept one before the live one. The error is ErrNoRelease when it does not
// exist, is pruned, was never live, or is the live one.
func (a *Agent) Rollback(ctx context.Context, app string, t pipeline.Trigger, from *store.Delivery) (store.Accepted, error) {
	l := a.lane(app)
	if l == nil {
		return store.Accepted{}, fmt.Errorf("%w %q", ErrUnknownApp, app)
	}
	if from != nil {
		// What a repeated request asked for was valid then.
		from.App = app
		if got, err := a.store.Known(ctx, *from); err != nil || got.Repeated {
			return got, err
		}
	}
	r, err := a.rollbackTo(ctx, app, t.Release)
	if err != nil {
		return store.Accepted{}, err
	}
	t.Kind, t.Release, t.Commit = pipeline.Rollback, r.Number, ""
	return l.submit(ctx, t, from)
}

func (a *Agent) rollbackTo(ctx context.Context, app string, number int) (store.Release, error) {
	if number == 0 {
		r, err := a.store.Previous(ctx, app)
		if errors.Is(err, store.ErrNotFound) {
			err = fmt.Errorf("%w: %s has no kept release before the live one", ErrNoRelease, app)
		}
		return r, err
	}
	r, err := a.store.Release(ctx, app, number)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return r, fmt.Errorf("%w: %s has no release %d", ErrNoRelease, app, number)
	case err != nil:
		return r, err
	case r.Live:
		return r, fmt.Errorf("%w: release %d of %s is live", ErrNoRelease, number, app)
	case !r.Kept:
		return r, fmt.Errorf("%w: release %d of %s was never live or is pruned", ErrNoRelease, number, app)
	}
	return r, nil
}

// Cancel ends a deployment that waits, or asks one that runs to end. One that has
// begun to switch traffic goes on to its end. ErrFinished if it has ended.
func (a *Agent) Cancel(ctx context.Context, id, by string) (pipeline.Deployment, error) {
	d, err := a.store.Deployment(ctx, id)
	if err != nil {
		return d, err
	}
	l := a.lane(d.App)
	if l == nil || d.State.Final() {
		return d, ErrFinished
	}
	return l.cancelOne(ctx, id, by)
}

func newID() (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", fmt.Errorf("make id: %w", err)
	}
	return id.String(), nil
}
