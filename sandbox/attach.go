package sandbox

import (
	"context"
	"errors"
	"fmt"

	"naru/sandbox/runtime"
)

// Attach connects to the standard streams of a container that runs, or that was
// created here and waits for Start. Its output from before is in the log.
func (e *Engine) Attach(ctx context.Context, ref string, o runtime.AttachOptions) (*runtime.Attachment, error) {
	id, err := e.resolve(ref)
	if err != nil {
		return nil, err
	}
	r, err := e.load(id)
	if err != nil {
		return nil, err
	}
	rt, err := e.open(id)
	if err != nil {
		return nil, err
	}
	if rt == nil || rt.State() == runtime.Stopped {
		return nil, fmt.Errorf("%w: %s", ErrNotRunning, r.Name)
	}
	defer rt.Close() // the attachment has a connection of its own
	if rt.State() == runtime.Paused {
		return nil, fmt.Errorf("container %s is paused, unpause it first", r.Name)
	}
	// The standard input of a container that somebody runs in the foreground ends
	// with him, as Docker has it; that of a detached one stays open.
	o.Once = o.Once && !r.Config.Detached
	return rt.Attach(ctx, o)
}

// StartAttached is Start, and Attach before anything is written.
func (e *Engine) StartAttached(ctx context.Context, ref string, o runtime.AttachOptions) (*runtime.Attachment, error) {
	id, err := e.resolve(ref)
	if err != nil {
		return nil, err
	}
	p, err := e.takeForStart(ctx, id)
	if err == nil {
		err = e.startedByHand(id, p)
	}
	if err != nil {
		return nil, fmt.Errorf("start container %s: %w", short(id), err)
	}
	a, err := p.rt.Attach(ctx, o)
	if err != nil {
		p.lock.Unlock()
		return nil, errors.Join(err, p.rt.Close())
	}
	if err := e.goOn(ctx, id, p); err != nil {
		return nil, errors.Join(fmt.Errorf("start container %s: %w", short(id), err), a.Close())
	}
	return a, nil
}

// RotateLog begins a new log file of a running container.
func (e *Engine) RotateLog(ctx context.Context, ref string) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	rt, err := e.open(id)
	if err != nil {
		return err
	}
	if rt == nil {
		return fmt.Errorf("%w: %s", ErrNotRunning, ref)
	}
	defer rt.Close() // the container needs no descriptor of ours
	return rt.Rotate(ctx)
}

// refused says that a program could not be executed.
func refused(err error) bool {
	r := new(runtime.StartError)
	return errors.As(err, &r)
}
