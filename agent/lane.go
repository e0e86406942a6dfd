package agent

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"naru/agent/store"
	"naru/internal/redact"
	"naru/pipeline"
)

// lane is the queue of one app. Its goroutine (loop) is the only one that
// deploys or reconciles the app; others ask through the store, wake and mu.
type lane struct {
	a          *Agent
	app        string
	log        *zap.Logger
	wake       chan struct{}         // holds one token when something may wait
	unfinished []pipeline.Deployment // left running by the agent before; for loop

	// mu is held while the store's queue of this app changes, so that what
	// runs and what the store says agree.
	mu      sync.Mutex
	running pipeline.Deployment     // ID "": none
	ctx     context.Context         // of running; its cause says why it ends
	cancel  context.CancelCauseFunc // of running
	release func()                  // frees what ctx holds
	hurry   func()                  // ends a reconciliation soon; nil: none under way
}

// patience is how long a deployment waits for a reconciliation under way: long
// enough to start what a reboot ended, too short to wait for what never starts.
const patience = 5 * time.Second

// errHurry ends a reconciliation for a deployment.
var errHurry = errors.New("a deployment waits")

// loop is the lane's goroutine.
func (l *lane) loop(ctx context.Context) {
	for _, d := range l.unfinished {
		l.log.Info("deployment resumes", zap.String("deployment", d.ID), zap.String("step", d.Step))
		l.mu.Lock()
		l.hold(ctx, d)
		l.mu.Unlock()
		l.run(d)
	}
	l.unfinished = nil
	l.reconcile(ctx)
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		d, ok, err := l.begin(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			l.log.Error("take deployment", zap.Error(err))
		case ok:
			l.run(d)
			l.reconcile(ctx)
			l.prune(ctx)
			continue
		}
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-tick.C:
			l.reconcile(ctx)
		}
	}
}

// submit stores a deployment for this lane.
func (l *lane) submit(ctx context.Context, t pipeline.Trigger, from *store.Delivery) (store.Accepted, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id, err := newID()
	if err != nil {
		return store.Accepted{}, err
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	if from != nil {
		from.App, from.Received = l.app, now
		t.Delivery = from.ID
	}
	got, err := l.a.store.Enqueue(ctx, pipeline.Deployment{
		ID: id, App: l.app, Trigger: t, State: pipeline.Queued, Created: now,
	}, from)
	if err != nil || got.Repeated {
		return got, err
	}
	l.log.Info("deployment queued", zap.String("deployment", id), zap.String("trigger", string(t.Kind)), zap.String("by", t.By))
	if l.running.ID != "" && l.replaces(ctx, t) {
		l.cancel(pipeline.ErrSuperseded)
	}
	if l.hurry != nil {
		l.hurry()
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return got, nil
}

// replaces reports whether t makes the running deployment obsolete: it does
// unless both are known to be about the same commit, or t is a clock that knows
// of no newer one. The caller holds l.mu.
func (l *lane) replaces(ctx context.Context, t pipeline.Trigger) bool {
	switch {
	case t.Kind == pipeline.Rollback:
		return true
	case t.Commit == "":
		return t.Kind != pipeline.Schedule && t.Kind != pipeline.Poll
	}
	running := l.running.Trigger.Commit
	if d, err := l.a.store.Deployment(ctx, l.running.ID); err == nil && d.Commit != "" {
		running = d.Commit
	}
	return !sameCommit(running, t.Commit)
}

// sameCommit compares hashes of which one may be cut short.
func sameCommit(a, b string) bool {
	return a != "" && b != "" && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a))
}

// cancelOne cancels a deployment of this lane.
func (l *lane) cancelOne(ctx context.Context, id, by string) (pipeline.Deployment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running.ID == id {
		l.log.Info("deployment is cancelled", zap.String("deployment", id), zap.String("by", by))
		l.cancel(pipeline.ErrCancelled)
		return l.a.store.Deployment(ctx, id)
	}
	did, err := l.a.store.CancelWaiting(ctx, id, "cancelled by "+by)
	if err != nil {
		return pipeline.Deployment{}, err
	}
	d, err := l.a.store.Deployment(ctx, id)
	if err == nil && !did {
		err = ErrFinished
	}
	return d, err
}

// begin takes what waits, if anything does.
func (l *lane) begin(ctx context.Context) (pipeline.Deployment, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok, err := l.a.store.Begin(ctx, l.app)
	if ok {
		l.hold(ctx, d)
	}
	return d, ok, err
}

// hold makes d the running deployment, so that it can be cancelled from here
// on. The end of ctx, for whatever reason, is a shutdown to it. The caller
// holds l.mu.
func (l *lane) hold(ctx context.Context, d pipeline.Deployment) {
	runCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(pipeline.ErrShutdown) })
	l.running, l.ctx, l.cancel = d, runCtx, cancel
	l.release = func() { stop(); cancel(nil) }
}

// run carries the held deployment to its end, or until the agent shuts down.
func (l *lane) run(d pipeline.Deployment) {
	l.mu.Lock()
	ctx, release := l.ctx, l.release
	l.mu.Unlock()
	defer release()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.running, l.ctx, l.cancel, l.release = pipeline.Deployment{}, nil, nil, nil
	}()
	log := l.log.With(zap.String("deployment", d.ID))
	o, secrets := l.execute(ctx, d, log)
	o.State = ending(ctx, o.State)
	if !o.State.Final() {
		log.Info("deployment is left to the next agent")
		return
	}
	d.State, d.Commit, d.Release, d.Serves = o.State, o.Commit, o.Release, o.Serves
	if o.Err != nil {
		d.Error = redact.String(o.Err.Error(), secrets...)
	}
	log.Info("deployment ended", zap.String("state", string(d.State)), zap.String("commit", d.Commit),
		zap.Int("release", d.Release), zap.Int("serves", d.Serves), zap.String("error", d.Error),
		zap.Duration("took", time.Since(d.Started)))
	// If this fails the journal is whole still, and the next agent ends it.
	if err := l.a.store.Finish(context.WithoutCancel(ctx), d); err != nil {
		log.Error("store the end of a deployment", zap.Error(err))
	}
}

// ending corrects the state of a deployment that was called off before the
// engine could begin: that is no failure.
func ending(ctx context.Context, s pipeline.State) pipeline.State {
	if s != pipeline.Failed && s != "" {
		return s
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, pipeline.ErrShutdown):
		return pipeline.Running
	case errors.Is(cause, pipeline.ErrSuperseded):
		return pipeline.Superseded
	case errors.Is(cause, pipeline.ErrCancelled):
		return pipeline.Cancelled
	}
	return pipeline.Failed
}

// execute runs the engine. A panic ends the deployment, not the agent: else it
// would come again at every start and keep all apps down.
func (l *lane) execute(ctx context.Context, d pipeline.Deployment, log *zap.Logger) (o pipeline.Outcome, secrets []string) {
	job, app, err := l.job(ctx, d)
	secrets = l.a.secrets(app)
	if err != nil {
		o = pipeline.Outcome{State: pipeline.Failed, Commit: d.Commit, Err: err}
		if job.Live != nil {
			o.Serves = job.Live.Number
		}
		return o, secrets
	}
	lines := &lineWriter{put: func(line string) {
		log.Info("log", zap.String("line", line))
		if err := l.a.store.Log(context.WithoutCancel(ctx), d.ID, line); err != nil {
			log.Warn("store log", zap.Error(err))
		}
	}}
	masked := redact.NewWriter(lines, secrets...)
	job.Log = masked
	defer func() {
		if r := recover(); r != nil {
			log.Error("deployment panicked", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
			o = pipeline.Outcome{State: pipeline.Broken, Commit: d.Commit, Release: d.Release, Err: fmt.Errorf("internal error: %v", r)}
		}
		if err := masked.Close(); err != nil {
			log.Warn("close log", zap.Error(err))
		}
		lines.flush()
	}()
	engine := l.a.engine
	engine.Journal = maskedJournal{Journal: engine.Journal, secrets: secrets}
	if d.Trigger.Kind == pipeline.Webhook {
		engine.Source = lagSource{Source: engine.Source, want: d.Trigger.Commit}
	}
	return engine.Run(ctx, job), secrets
}

// job completes a deployment to what the engine needs.
func (l *lane) job(ctx context.Context, d pipeline.Deployment) (pipeline.Job, App, error) {
	job := pipeline.Job{Deployment: d, App: pipeline.App{Name: d.App}}
	app, configured := l.a.App(d.App)
	if configured {
		job.App = app.App
	}
	past, err := l.a.store.Entries(ctx, d.ID)
	if err != nil || len(past) > 0 {
		return job, app, err // a resumed one goes on with what its journal says
	}
	if job.Live, err = l.a.store.LiveRelease(ctx, d.App); err != nil {
		return job, app, err
	}
	if d.Trigger.Kind == pipeline.Rollback {
		r, err := l.a.store.Release(ctx, d.App, d.Trigger.Release)
		if err == nil && !r.Kept {
			err = fmt.Errorf("%w: release %d is pruned", ErrNoRelease, r.Number)
		}
		job.Again = &r.Release
		return job, app, err
	}
	if !configured {
		err = fmt.Errorf("%w %q", ErrUnknownApp, d.App)
	}
	return job, app, err
}

// reconcile makes what runs agree with the live release.
func (l *lane) reconcile(ctx context.Context) {
	live, err := l.a.store.LiveRelease(ctx, l.app)
	if err != nil && ctx.Err() == nil {
		l.log.Error("reconcile", zap.Error(err))
	}
	if err != nil || live == nil {
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.mu.Lock()
	var timer *time.Timer
	l.hurry = func() {
		if timer == nil {
			timer = time.AfterFunc(patience, func() { cancel(errHurry) })
		}
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.hurry = nil
		if timer != nil {
			timer.Stop()
		}
	}()
	app, _ := l.a.App(l.app)
	lines := &lineWriter{put: func(line string) { l.log.Debug("reconcile", zap.String("line", line)) }}
	masked := redact.NewWriter(lines, l.a.secrets(app)...)
	changes, err := l.compare(ctx, *live, masked)
	if err := masked.Close(); err != nil {
		l.log.Warn("close log", zap.Error(err))
	}
	lines.flush()
	for _, c := range changes {
		l.log.Info("reconciled", zap.Int("release", live.Number), zap.String("change", c))
	}
	if err != nil && ctx.Err() == nil {
		l.log.Warn("reconcile", zap.Int("release", live.Number), zap.Error(err))
	}
}

// prune removes the images that no kept release needs. The lane deploys nothing
// meanwhile, so no image of the app is between its build and its release.
func (l *lane) prune(ctx context.Context) {
	if l.a.prune == nil || ctx.Err() != nil {
		return
	}
	keep, err := l.a.store.NeededImages(ctx)
	var removed []string
	if err == nil {
		removed, err = l.a.prune(ctx, l.app, keep)
	}
	if len(removed) > 0 {
		l.log.Info("images removed that no kept release needs", zap.Strings("images", removed))
	}
	if err != nil && ctx.Err() == nil {
		l.log.Warn("prune images", zap.Error(err))
	}
}

// compare is Engine.Reconcile with panics as errors.
func (l *lane) compare(ctx context.Context, live pipeline.Release, log *redact.Writer) (changes []string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	engine := l.a.engine
	return engine.Reconcile(ctx, live, log)
}
