package sandbox

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Rename gives a container another name, by which the members of its networks know
// it from now on.
func (e *Engine) Rename(ctx context.Context, ref, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	if err := e.dropStaleClaim(ctx, name); err != nil {
		return fmt.Errorf("rename container %s: %w", short(id), err)
	}
	l, err := e.lockContainer(ctx, id)
	if err != nil {
		return err
	}
	defer l.Unlock()
	r, err := e.load(id)
	if err != nil {
		return err
	}
	old := r.Name
	if err := e.rename(ctx, r, name); err != nil {
		return fmt.Errorf("rename container %s: %w", old, err)
	}
	e.emit(r, "rename", "oldName", old)
	if err := e.reintroduce(ctx, r); err != nil {
		return fmt.Errorf("rename container %s: tell its networks: %w", old, err)
	}
	return nil
}

// reintroduce tells the networks of a running container its name, itself included.
// One that does not run is introduced at its start.
func (e *Engine) reintroduce(ctx context.Context, r *record) error {
	var now attached
	if found, err := loadRun(e.addressFile(r.ID), &now); err != nil || !found {
		return err
	}
	if err := e.networks.Rename(ctx, r.ID, r.Name); err != nil {
		return err
	}
	if err := e.tellItself(ctx, r.ID); err != nil {
		return err
	}
	list, err := e.endpoints(r)
	if err != nil {
		return err
	}
	return e.introduce(ctx, list)
}

// rename claims the new name, writes it down, and gives the old one back. The root's
// lock is shared meanwhile: a sweep of claims would take one of both for stale.
func (e *Engine) rename(ctx context.Context, r *record, name string) error {
	root, err := e.lockRoot(ctx, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer root.Unlock()
	if _, err := e.claimName(name, r.ID); err != nil {
		return err
	}
	e.step("renaming")
	old := r.Name
	r.Name, r.Config.Name = name, name
	if err := saveJSON(filepath.Join(e.dir(r.ID), configFile), r); err != nil {
		return err
	}
	e.step("name saved")
	return release(e.namesDir(), old, r.ID)
}

// renamed says that a name is one that its owner had, or was about to get, when a
// crash interrupted a Rename.
func (e *Engine) renamed(id, name string) bool {
	r, err := e.load(id)
	return err == nil && r.Name != "" && r.Name != name
}
