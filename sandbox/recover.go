package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
	"naru/sandbox/volume"
)

// Recover makes the files true again after a crash or a boot. What runs goes
// on untouched. What has ended is settled, and removed if that was asked for.
// What was half made or half removed, and build steps without their builder,
// are removed. What another living process is making right now is left to it.
// It may be called at any time and by several processes.
func (e *Engine) Recover(ctx context.Context) error {
	errs := []error{e.sweepDirs(ctx)}
	ids, err := e.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		errs = append(errs, e.recoverOne(ctx, id))
	}
	alive := func(id string) bool { return e.exists(id) }
	errs = append(errs, e.sweepClaims(ctx), e.networks.Reconcile(ctx, alive), e.images.Sweep(), e.volumes.Sweep())
	return errors.Join(errs...)
}

// recoverOne brings one container to a state that its record tells.
func (e *Engine) recoverOne(ctx context.Context, id string) error {
	l, err := tryLock(filepath.Join(e.dir(id), lockFile), unix.LOCK_EX)
	if errors.Is(err, ErrBusy) || errors.Is(err, ErrNotFound) {
		return nil // somebody is at it, or it has just gone
	}
	if err != nil {
		return err
	}
	defer l.Unlock()
	r, err := e.load(id)
	if data, readErr := os.ReadFile(filepath.Join(e.dir(id), configFile)); errors.Is(err, ErrNotFound) || readErr == nil && cutOff(data) {
		return e.deleteDamaged(ctx, id, err)
	}
	if errors.Is(err, ErrDamaged) {
		return nil // shown as dead: its files may be somebody's data
	}
	if err != nil {
		return err
	}
	if r.Step {
		return e.delete(ctx, r) // its builder would hold the lock
	}
	c, err := e.view(r)
	if err != nil {
		return err
	}
	switch runtime.State(c.State) {
	case runtime.Running, runtime.Paused, StateDead:
		return nil
	case runtime.Created:
		if c.Pid == 0 {
			return nil // it was left for a later Start
		}
		if r.Idle || !c.Started.IsZero() { // there before the start that was cut off, with data
			return errors.Join(e.kill(ctx, r.ID), e.settle(ctx, r))
		}
		return e.delete(ctx, r) // its creator would hold the lock
	case runtime.Stopped:
		return errors.Join(e.recoverStopped(ctx, r, c), e.recoverRestart(ctx, r, l))
	}
	return errors.New("internal error: container state " + c.State)
}

// deleteDamaged removes a container whose record is missing or cut off: the
// power went while it was being created. One that runs is left alone, as a
// record that its own creator could not write is then not the reason.
func (e *Engine) deleteDamaged(ctx context.Context, id string, why error) error {
	rt, err := e.open(id)
	if err != nil {
		return err
	}
	if rt != nil {
		running := rt.State() != runtime.Stopped
		if err := rt.Close(); err != nil {
			return err
		}
		if running {
			return fmt.Errorf("container %s runs without a record: %w", short(id), why)
		}
	}
	return e.delete(ctx, &record{ID: id, Block: -1})
}

func (e *Engine) recoverStopped(ctx context.Context, r *record, c Container) error {
	if c.Started.IsZero() && r.Boot == e.boot && !r.Idle {
		return e.delete(ctx, r) // it died with its creator before it was started
	}
	if err := e.settle(ctx, r); err != nil || !r.Config.Remove {
		return err
	}
	waited, err := tryLock(filepath.Join(e.dir(r.ID), waitFile), unix.LOCK_EX)
	if errors.Is(err, ErrBusy) {
		return nil // who waits for it removes it
	}
	if err != nil {
		return err
	}
	defer waited.Unlock()
	return e.delete(ctx, r)
}

// sweepDirs deletes directories that never became a container, or ceased to be
// one. The root's lock keeps creators out while it looks: a new directory
// without a lock holder then belongs to a dead one.
func (e *Engine) sweepDirs(ctx context.Context) error {
	root, err := e.lockRoot(ctx, unix.LOCK_EX)
	if err != nil {
		return err
	}
	gone, err := e.deadDirs()
	root.Unlock()
	if err != nil {
		return err
	}
	for _, dir := range gone {
		err = errors.Join(err, e.dropVolumes(dir), volume.Discard(dir))
	}
	return err
}

func (e *Engine) deadDirs() ([]string, error) {
	entries, err := os.ReadDir(e.containersDir())
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, d := range entries {
		path := filepath.Join(e.containersDir(), d.Name())
		switch {
		case strings.HasPrefix(d.Name(), goneMark):
			gone = append(gone, path)
		case strings.HasPrefix(d.Name(), newMark):
			l, err := tryLock(filepath.Join(path, lockFile), unix.LOCK_EX)
			if err != nil {
				continue // its creator lives
			}
			id := strings.TrimPrefix(d.Name(), newMark)
			away := filepath.Join(e.containersDir(), goneMark+id)
			if err := markDrop(path); err != nil {
				return nil, err
			}
			if err = runtime.Destroy(e.stateDir(id), path, e.cgroup(id)); err == nil { // its monitor may have come up
				err = os.Rename(path, away)
			}
			l.Unlock()
			if err != nil {
				return nil, err
			}
			gone = append(gone, away)
		}
	}
	return gone, nil
}

// sweepClaims frees names and blocks whose owner does not exist.
func (e *Engine) sweepClaims(ctx context.Context) error {
	root, err := e.lockRoot(ctx, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer root.Unlock()
	for _, dir := range []string{e.namesDir(), e.idsDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, d := range entries {
			owner, err := os.Readlink(filepath.Join(dir, d.Name()))
			if err == nil && (!e.exists(owner) || dir == e.namesDir() && e.renamed(owner, d.Name())) {
				err = os.Remove(filepath.Join(dir, d.Name()))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
