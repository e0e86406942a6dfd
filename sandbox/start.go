package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"naru/sandbox/runtime"
)

// Start lets a created container run. A stopped one is made anew on its own
// layer, detached from any terminal. A program that cannot be executed comes
// back as *runtime.StartError, and the container is stopped with its Code.
func (e *Engine) Start(ctx context.Context, ref string) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	p, err := e.takeForStart(ctx, id)
	if err == nil {
		err = e.startedByHand(id, p)
	}
	if err != nil {
		return fmt.Errorf("start container %s: %w", short(id), err)
	}
	return e.goOn(ctx, id, p)
}

// startedByHand forgets that the container was stopped by hand.
func (e *Engine) startedByHand(id string, p *pending) error {
	r, err := e.load(id)
	if err == nil {
		err = e.byHand(r)
	}
	if err != nil {
		err = errors.Join(err, p.rt.Close())
		p.lock.Unlock()
	}
	return err
}

// goOn starts a pending container and lets go of it: it goes on by itself.
func (e *Engine) goOn(ctx context.Context, id string, p *pending) error {
	defer p.lock.Unlock()
	err := e.startPending(ctx, id, p)
	if p.live && err == nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.live[id] = p.rt // Wait closes it
		return nil
	}
	return errors.Join(err, p.rt.Close())
}

func (e *Engine) startPending(ctx context.Context, id string, p *pending) error {
	err := saveRun(e.startedFile(id), starting{Started: time.Now().UTC()})
	if err == nil {
		e.step("starting")
		err = p.rt.Start(ctx)
	}
	if err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return e.endUnstarted(cleanup, id, p.rt, err)
	}
	e.step("started")
	e.emitID(id, "start")
	return nil
}

// takeForStart returns the created container of this engine, or makes a
// stopped one ready again.
func (e *Engine) takeForStart(ctx context.Context, id string) (*pending, error) {
	if p := e.takePending(id); p != nil {
		return p, nil
	}
	l, err := e.lockContainer(ctx, id)
	if err != nil {
		return nil, err
	}
	rt, err := e.makeAgain(ctx, id)
	if err != nil {
		l.Unlock()
		return nil, err
	}
	return &pending{rt: rt, lock: l}, nil
}

// takeLive returns the handle of a container whose output this process copies.
func (e *Engine) takeLive(id string) *runtime.Container {
	e.mu.Lock()
	defer e.mu.Unlock()
	rt := e.live[id]
	delete(e.live, id)
	return rt
}

func (e *Engine) takePending(id string) *pending {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.pending[id]
	delete(e.pending, id)
	return p
}

// makeAgain prepares a stopped container for another start.
func (e *Engine) makeAgain(ctx context.Context, id string) (*runtime.Container, error) {
	r, err := e.load(id)
	if err != nil {
		return nil, err
	}
	c, err := e.view(r)
	if err != nil {
		return nil, err
	}
	if c.State != string(runtime.Stopped) && (c.State != string(runtime.Created) || c.Pid != 0) {
		return nil, ErrRunning
	}
	if r.passing() && r.Boot != e.boot {
		return nil, errors.New("it was to be removed at its end, and was not synced: its claims may be somebody else's")
	}
	if err := e.settle(ctx, r); err != nil {
		return nil, err
	}
	// started.json comes before ended.json goes: a container that has run once
	// must never look like one that was never started, or Recover removes it.
	again := starting{Started: c.Started}
	if end, ok, err := e.ended(id); err != nil {
		return nil, err
	} else if ok && !c.Started.IsZero() {
		again.Last = &end.Exit
	}
	if err := saveRun(e.startedFile(id), again); err != nil {
		return nil, err
	}
	e.step("begun again")
	for _, name := range []string{"exit.json", endedFile, healthFile} {
		if err := os.Remove(filepath.Join(e.dir(id), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	e.step("end forgotten")
	root := runtime.Overlay{Lower: r.Lower, Upper: e.upper(id), Work: e.work(id), Volatile: r.passing()}
	if root.Volatile {
		// A layer that was mounted volatile is marked: after a power cut it may be
		// incomplete. There was none in this boot.
		if err := os.RemoveAll(filepath.Join(e.work(id), "work", "incompat")); err != nil {
			return nil, err
		}
	}
	rt, err := e.prepare(ctx, r, Stdio{}, root, nil)
	if err != nil {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return nil, errors.Join(err, e.kill(cleanup, id), e.settle(cleanup, r))
	}
	return rt, nil
}

// endUnstarted settles a container whose program could not be executed: it is
// stopped, with the code a shell would have given. It returns why, with the
// program's name.
func (e *Engine) endUnstarted(ctx context.Context, id string, rt *runtime.Container, why error) error {
	r, err := e.load(id)
	if err != nil {
		return errors.Join(why, err)
	}
	code := 125
	if refused := new(runtime.StartError); errors.As(why, &refused) {
		if code = refused.Code(); code != 125 {
			why = fmt.Errorf("%s: %w", r.Command[0], why)
		}
	}
	if err := e.killOpen(ctx, rt); err != nil {
		return errors.Join(why, err)
	}
	if err := e.unstarted(r); err != nil {
		return errors.Join(why, err)
	}
	return errors.Join(why, e.finish(ctx, r, runtime.Exit{Code: code, Known: true, At: time.Now().UTC()}))
}
