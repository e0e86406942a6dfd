package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"naru/internal/atomicfile"
	"naru/sandbox/volume"
)

// Remove deletes a container with its own layer, its log and its anonymous
// volumes. A running one is killed first with force, and is ErrRunning without.
// Volumes with a name stay.
func (e *Engine) Remove(ctx context.Context, ref string, force bool) error {
	return e.RemoveWith(ctx, ref, RemoveOptions{Force: force, Volumes: true})
}

// RemoveWith is Remove with a choice about anonymous volumes.
func (e *Engine) RemoveWith(ctx context.Context, ref string, o RemoveOptions) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	p := e.takePending(id)
	if p != nil {
		err = p.rt.Close()
	} else {
		p = &pending{}
		p.lock, err = e.lockContainer(ctx, id)
	}
	defer p.lock.Unlock()
	if err != nil {
		return fmt.Errorf("remove container %s: %w", short(id), err)
	}
	r, err := e.look(id)
	if err != nil {
		return err
	}
	c, err := e.view(r)
	if err != nil {
		return err
	}
	if err := removable(c, r, o.Force); err != nil {
		return err
	}
	if o.Volumes {
		if err := markDrop(e.dir(id)); err != nil {
			return err
		}
	}
	if err := e.delete(ctx, r); err != nil {
		return fmt.Errorf("remove container %s: %w", short(id), err)
	}
	return nil
}

// destroy is delete for a container whose creation failed; it gives the lock
// back.
func (e *Engine) destroy(ctx context.Context, r *record, l *lock) error {
	defer l.Unlock()
	if err := markDrop(e.dir(r.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return e.delete(ctx, r)
}

// delete ends what still runs and removes every trace. The container's lock is
// held. From the rename on the container does not exist any more; what comes
// after it is finished by Recover if we die.
func (e *Engine) delete(ctx context.Context, r *record) error {
	if err := e.kill(ctx, r.ID); err != nil {
		return err
	}
	if err := e.free(ctx, r); err != nil {
		return err
	}
	return e.discard(ctx, r)
}

// discard is delete for a container that has nothing in the kernel any more.
func (e *Engine) discard(ctx context.Context, r *record) error {
	if err := e.forget(r.ID); err != nil {
		return err
	}
	e.step("forgotten")
	if rt := e.takeLive(r.ID); rt != nil {
		if err := rt.Close(); err != nil {
			return err
		}
	}
	if now, err := e.load(r.ID); err == nil {
		r = now // it may have been renamed since the caller looked
	}
	gone := filepath.Join(e.containersDir(), goneMark+r.ID)
	if err := os.Rename(e.dir(r.ID), gone); err != nil {
		return err
	}
	e.step("renamed")
	if !r.passing() {
		if err := atomicfile.SyncDir(e.containersDir()); err != nil {
			return err
		}
	}
	if err := e.releaseClaims(ctx, r); err != nil {
		return err
	}
	e.step("released")
	if err := e.dropVolumes(gone); err != nil {
		return err
	}
	e.removeEvents()
	if err := volume.Discard(gone); err != nil {
		return err
	}
	e.step("discarded")
	if r.Config.Image != "" && !r.Step {
		e.emit(r, "destroy")
	}
	return nil
}
