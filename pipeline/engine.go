package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Reasons for which a deployment's context is cancelled (context.Cause).
var (
	// ErrShutdown: the agent ends. The deployment stays unfinished in the
	// journal, and the next agent goes on with it.
	ErrShutdown = errors.New("the agent is shutting down")
	// ErrCancelled: a person cancelled it.
	ErrCancelled = errors.New("cancelled")
	// ErrSuperseded: a newer commit waits.
	ErrSuperseded = errors.New("superseded by a newer deployment")
)

// SkipError ends a deployment as skipped: there is nothing to do.
type SkipError struct{ Reason string }

func (e *SkipError) Error() string { return e.Reason }

// Job is one deployment to run. App and Live count only at its first run: a
// resumed one goes on with what its journal says.
type Job struct {
	Deployment Deployment
	App        App
	Live       *Release // what is live; nil before the first
	Again      *Release // rollback: the release to run again
	Log        io.Writer
}

// Outcome is how a deployment ended. A State that is not final means that the
// agent is shutting down.
type Outcome struct {
	State   State
	Commit  string
	Release int
	Serves  int // the release that serves now; 0: none
	Err     error
}

// Engine runs deployments, one per app at a time; its fields are set once. All
// fields but Point are needed.
type Engine struct {
	Source   Source
	Builder  Builder
	Target   Target
	Router   Router
	Journal  Journal
	Releases Releases
	Scratch  string // directory for exported trees

	// Point is called at every moment at which being killed must do no harm:
	// "<step>:<phase>" after each journal entry and "<step>:did" between a Do
	// and its entry. Tests kill the process there. Nil: nothing.
	Point func(name string)
}

// Run runs, resumes or goes on undoing a deployment until it ends. It returns
// only after everything it started in this process has ended.
func (e *Engine) Run(ctx context.Context, job Job) Outcome {
	r, err := e.open(ctx, job)
	if err != nil {
		if interrupted(ctx) {
			return Outcome{State: Running}
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return Outcome{State: ending(err), Serves: number(job.Live), Err: err}
	}
	return r.run(ctx)
}

// run is one deployment in this process.
type run struct {
	e     *Engine
	id    string
	log   io.Writer
	facts Facts
	steps []Step
	done  map[string]Phase // last phase per step
	again bool             // another agent began this deployment
	cause error            // why undoing began
	end   State            // the final state if nothing has to be undone
}

// begin is the journal's first line: what was known before the first step.
const begin = "begin"

// open reads the journal, or writes its first line.
func (e *Engine) open(ctx context.Context, job Job) (*run, error) {
	r := &run{e: e, id: job.Deployment.ID, log: job.Log, done: map[string]Phase{}, end: Failed}
	past, err := e.Journal.Entries(ctx, r.id)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	if len(past) == 0 {
		old, err := e.Target.List(ctx, job.App.Name)
		if err != nil {
			return nil, fmt.Errorf("list replicas: %w", err)
		}
		r.facts = Facts{App: job.App, Live: job.Live, Old: serving(old, job.Live), Release: job.Again}
		if job.Again != nil {
			r.facts.App, r.facts.Image = job.Again.Config, job.Again.Image
			r.facts.Commit = Commit{Hash: job.Again.Commit, Subject: job.Again.Subject}
		}
		if err := r.record(ctx, begin, Done, nil); err != nil {
			return nil, err
		}
	}
	r.again = len(past) > 0
	for _, p := range past {
		r.facts, r.done[p.Step] = p.Facts, p.Phase
		if p.Phase == Failing {
			r.cause, r.end = errors.New(p.Error), p.End
		}
	}
	r.steps = Plan(r.facts, job.Deployment.Trigger)
	return r, nil
}

func (r *run) run(ctx context.Context) Outcome {
	if r.cause == nil {
		err := r.repair(ctx)
		if err == nil {
			err = r.forward(ctx)
		}
		if err != nil {
			if interrupted(ctx) {
				return Outcome{State: Running}
			}
			r.cause = err
		}
	}
	if r.cause == nil {
		return r.outcome(Live, nil)
	}
	return r.back(ctx)
}

// forward runs every step that is not done yet.
func (r *run) forward(ctx context.Context) error {
	for _, s := range r.steps {
		if r.done[s.Name] == Done {
			continue
		}
		stepCtx, stop := ctx, context.CancelFunc(func() {})
		if s.Switch {
			stepCtx, stop = onlyShutdown(ctx)
		}
		err := r.do(stepCtx, s)
		stop()
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) do(ctx context.Context, s Step) error {
	if err := context.Cause(ctx); err != nil {
		return r.fail(ctx, s, err)
	}
	if err := r.record(ctx, s.Name, Started, nil); err != nil {
		return err
	}
	began := time.Now()
	if err := s.Do(ctx, r); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return r.fail(ctx, s, err)
	}
	r.point(s.Name + ":did")
	if err := r.record(ctx, s.Name, Done, nil); err != nil {
		return err
	}
	r.say("%s: done in %s", s.Name, time.Since(began).Round(time.Millisecond))
	return nil
}

// fail journals that s failed, which is the point of no return: from here on,
// also after a kill, the deployment is undone. A shutdown is no failure.
func (r *run) fail(ctx context.Context, s Step, err error) error {
	if interrupted(ctx) {
		return err
	}
	r.end = ending(err)
	err = fmt.Errorf("%s: %w", s.Name, err)
	r.say("%v", err)
	return errors.Join(err, r.record(context.WithoutCancel(ctx), s.Name, Failing, err))
}

// back undoes every step that was begun, last one first.
func (r *run) back(ctx context.Context) Outcome {
	ctx, stop := onlyShutdown(ctx)
	defer stop()
	changed := false
	for i := len(r.steps) - 1; i >= 0; i-- {
		s := r.steps[i]
		phase, begun := r.done[s.Name]
		if !begun || s.Undo == nil {
			continue
		}
		changed = true
		if phase == Undone {
			continue
		}
		if err := r.undo(ctx, s); err != nil {
			if interrupted(ctx) {
				return Outcome{State: Running}
			}
			return r.outcome(Broken, errors.Join(r.cause, fmt.Errorf("undo %s: %w", s.Name, err)))
		}
	}
	if changed {
		return r.outcome(RolledBack, r.cause)
	}
	return r.outcome(r.end, r.cause)
}

// undoTries is how often an Undo is tried: what it needs (a port, a reload) may
// be busy for a moment, and giving up needs a person.
const undoTries = 3

func (r *run) undo(ctx context.Context, s Step) error {
	if err := r.record(ctx, s.Name, Undoing, nil); err != nil {
		return err
	}
	var err error
	for range undoTries {
		if err = s.Undo(ctx, r); err == nil || ctx.Err() != nil {
			break
		}
		r.say("undo %s: %v; trying again", s.Name, err)
	}
	if err != nil {
		return err
	}
	r.point(s.Name + ":undid")
	r.say("%s: undone", s.Name)
	return r.record(ctx, s.Name, Undone, nil)
}

// ending names the final state of a deployment that fails with err before
// anything was changed.
func ending(err error) State {
	var skip *SkipError
	switch {
	case errors.As(err, &skip):
		return Skipped
	case errors.Is(err, ErrCancelled):
		return Cancelled
	case errors.Is(err, ErrSuperseded):
		return Superseded
	}
	return Failed
}

func (r *run) outcome(s State, err error) Outcome {
	o := Outcome{State: s, Commit: r.facts.Commit.Hash, Release: number(r.facts.Release), Err: err}
	o.Serves = number(r.facts.Live)
	if s == Live {
		o.Serves = o.Release
	}
	return o
}

func (r *run) record(ctx context.Context, step string, p Phase, cause error) error {
	e := Entry{Step: step, Phase: p, Facts: r.facts, At: time.Now().UTC()}
	if cause != nil {
		e.Error, e.End = cause.Error(), r.end
	}
	if err := r.e.Journal.Record(ctx, r.id, e); err != nil {
		return fmt.Errorf("journal %s %s: %w", step, p, err)
	}
	r.done[step] = p
	r.point(step + ":" + string(p))
	return nil
}

func (r *run) point(name string) {
	if r.e.Point != nil {
		r.e.Point(name)
	}
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(r.log, format+"\n", args...)
}

// onlyShutdown returns a context that ends when ctx is cancelled by a shutdown,
// but not when a person or a newer commit cancels: a switch of traffic that has
// begun is finished or undone, never left.
func onlyShutdown(ctx context.Context) (context.Context, context.CancelFunc) {
	inner, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if interrupted(ctx) {
			cancel(ErrShutdown)
		}
	})
	return inner, func() { stop(); cancel(nil) }
}

func interrupted(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), ErrShutdown)
}

func number(r *Release) int {
	if r == nil {
		return 0
	}
	return r.Number
}
