package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// StateRestarting is the State of a container between an end and the restart that
// its policy asks for.
const StateRestarting = "restarting"

// life is life.json: what is remembered of a container beyond one run of it. It is
// written under the container's lock.
type life struct {
	Restarts int           `json:"restarts"` // by its policy, since a person started it
	Delay    time.Duration `json:"delay"`    // before the next one, if it ends too soon
	Stopped  bool          `json:"stopped"`  // by a person
	Boot     string        `json:"boot"`     // in which that was
	Error    string        `json:"error,omitempty"`
}

const lifeFile = "life.json"

func (e *Engine) loadLife(id string) (life, error) {
	s := life{Delay: firstDelay}
	_, err := loadJSON(filepath.Join(e.dir(id), lifeFile), &s)
	return s, err
}

func (e *Engine) saveLife(id string, s life) error {
	s.Boot = e.boot
	return saveJSON(filepath.Join(e.dir(id), lifeFile), s)
}

// wants says whether the policy asks for a restart after an end. boot is true where
// the machine was started meanwhile: always then means also what a person stopped.
func (r Restart) wants(exit runtime.Exit, s life, booted bool) bool {
	switch r.Policy {
	case RestartAlways:
		return !s.Stopped || booted
	case RestartUnlessStopped:
		return !s.Stopped
	case RestartOnFailure:
		return !s.Stopped && exit.Code != 0 && (r.Max == 0 || s.Restarts < r.Max)
	}
	return false
}

// next is the state after one more restart.
func (s life) next(ran time.Duration) life {
	s.Restarts++
	s.Delay = min(2*s.Delay, maxDelay)
	if ran >= settledTime {
		s.Delay = 2 * firstDelay
	}
	s.Error = ""
	return s
}

// byHand forgets the restarts of a container that a person starts.
func (e *Engine) byHand(r *record) error {
	if !r.Config.Restart.wanted() {
		return nil
	}
	return e.saveLife(r.ID, life{Delay: firstDelay})
}

// markStopped keeps the policy from starting again what a person stops. The lock
// waits for a restart that is under way.
func (e *Engine) markStopped(ctx context.Context, r *record) error {
	if !r.Config.Restart.wanted() {
		return nil
	}
	l, err := e.lockContainer(ctx, r.ID)
	if err != nil {
		return err
	}
	defer l.Unlock()
	s, err := e.loadLife(r.ID)
	if err != nil {
		return err
	}
	s.Stopped = true
	return e.saveLife(r.ID, s)
}

// Called is what the program does that a monitor calls back (Options.Callback): it
// removes or restarts a container that has ended, and checks the health of one that
// runs. soon asks the monitor to call again after the start interval. It may be
// killed anywhere: the monitor calls again.
func (e *Engine) Called(ctx context.Context, id string) (soon bool, err error) {
	r, err := e.load(id)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c, err := e.view(r)
	if err != nil {
		return false, err
	}
	switch runtime.State(c.State) {
	case runtime.Stopped:
		if r.Config.Restart.wanted() {
			err = e.again(ctx, r)
		} else {
			err = e.sawEnd(ctx, r)
		}
	case runtime.Running:
		soon, err = e.probe(ctx, r, c)
	}
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return soon, err
}

// again settles the end of a container and starts it again if its policy says so.
func (e *Engine) again(ctx context.Context, r *record) error {
	l, err := e.lockContainer(ctx, r.ID)
	if err != nil {
		return err
	}
	if r, err = e.load(r.ID); err != nil { // its policy may be another one now
		l.Unlock()
		return err
	}
	return e.againLocked(ctx, r, l, false)
}

// againLocked owns the lock.
func (e *Engine) againLocked(ctx context.Context, r *record, l *lock, booted bool) error {
	defer l.Unlock()
	c, err := e.view(r)
	if err != nil || c.State != string(runtime.Stopped) {
		return err // somebody was faster
	}
	if err := e.settle(ctx, r); err != nil {
		return err
	}
	e.step("settled")
	end, _, err := e.ended(r.ID)
	if err != nil {
		return err
	}
	s, err := e.loadLife(r.ID)
	if err != nil || !r.Config.Restart.wants(end.Exit, s, booted) {
		return err
	}
	s = s.next(end.Exit.At.Sub(end.Started))
	s.Stopped = false
	if err := e.saveLife(r.ID, s); err != nil {
		return err
	}
	e.step("counted")
	rt, err := e.makeAgain(ctx, r.ID)
	if err == nil {
		err = e.goOn(ctx, r.ID, &pending{rt: rt, lock: l})
	}
	if err != nil {
		s.Error, s.Stopped = err.Error(), r.foreign() != nil
		err = errors.Join(fmt.Errorf("restart container %s: %w", short(r.ID), err), e.saveLife(r.ID, s))
	}
	return err
}

// Restart stops the container, as Stop does, and starts it again; one that does not
// run is started. A container with Remove is not removed in between.
func (e *Engine) Restart(ctx context.Context, ref string, grace time.Duration) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	r, err := e.load(id)
	if err != nil {
		return err
	}
	if grace == 0 {
		grace = r.Config.StopGrace
	}
	l, err := e.lockContainer(ctx, id)
	if err != nil {
		return err
	}
	defer l.Unlock()
	if err := e.stop(ctx, r, grace); err != nil {
		return fmt.Errorf("restart container %s: %w", short(id), err)
	}
	rt, err := e.makeAgain(ctx, id)
	if err == nil {
		err = e.byHand(r)
	}
	if err != nil {
		return fmt.Errorf("restart container %s: %w", short(id), err)
	}
	if err := e.goOn(ctx, id, &pending{rt: rt, lock: l}); err != nil {
		return err
	}
	e.emit(r, "restart")
	return nil
}

// pendingRestart says whether a restart is on its way: the monitor waits its delay
// and calls back. Some seconds later nobody will come any more.
func (e *Engine) pendingRestart(r *record, end ending) (bool, life, error) {
	s, err := e.loadLife(r.ID)
	if err != nil || !r.Config.Restart.wants(end.Exit, s, false) || s.Error != "" {
		return false, s, err
	}
	const late = 5 * time.Second
	return end.Started.After(time.Time{}) && time.Since(end.Exit.At) < s.Delay+late, s, nil
}

// viewLife adds to a view what is remembered of the container.
func (e *Engine) viewLife(c Container, r *record, err error) (Container, error) {
	if err != nil {
		return c, err
	}
	if r.Config.Health != nil {
		h, err := e.health(r)
		if err != nil {
			return c, err
		}
		c.Health = &h
	}
	if !r.Config.Restart.wanted() {
		return c, nil
	}
	coming, s, err := e.pendingRestart(r, ending{c.Started, runtime.Exit{Code: c.ExitCode, At: c.Finished}})
	c.Restarts, c.RestartError = s.Restarts, s.Error
	if coming && c.State == string(runtime.Stopped) {
		c.State = StateRestarting
	}
	return c, err
}

// recoverRestart starts again what its policy wants to run and what nobody is about
// to start: after a boot, or when the monitor was killed while it waited. It owns
// the lock.
func (e *Engine) recoverRestart(ctx context.Context, r *record, l *lock) error {
	end, ok, err := e.ended(r.ID)
	if err != nil || !ok || len(e.callback) == 0 {
		return err
	}
	coming, s, err := e.pendingRestart(r, end)
	booted := s.Boot != "" && s.Boot != e.boot
	if err != nil || coming && !booted || s.Error != "" && !booted {
		return err
	}
	return e.againLocked(ctx, r, l, booted)
}

// Pause stops every process of the container until Unpause.
func (e *Engine) Pause(ctx context.Context, ref string) error {
	return e.freeze(ctx, ref, "pause", (*runtime.Container).Pause)
}

// Unpause lets a paused container go on.
func (e *Engine) Unpause(ctx context.Context, ref string) error {
	return e.freeze(ctx, ref, "unpause", func(rt *runtime.Container, ctx context.Context) error {
		if rt.State() != runtime.Paused {
			return errors.New("container is not paused")
		}
		return rt.Resume(ctx)
	})
}

func (e *Engine) freeze(ctx context.Context, ref, what string, do func(*runtime.Container, context.Context) error) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	rt, err := e.open(id)
	if err != nil {
		return err
	}
	if rt == nil {
		return fmt.Errorf("%s container %s: %w", what, short(id), ErrNotRunning)
	}
	defer rt.Close() // the container needs no descriptor of ours
	if err := do(rt, ctx); err != nil {
		return fmt.Errorf("%s container %s: %w", what, short(id), err)
	}
	e.emitID(id, what)
	return nil
}

// stopsForGood says whether a signal is a person's wish that the container ends.
func (r *record) stopsForGood(sig unix.Signal) bool {
	return sig == unix.SIGKILL || int(sig) == r.Signal
}
