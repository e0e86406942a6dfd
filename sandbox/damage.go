package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"naru/sandbox/runtime"
)

// ErrDamaged says that a file of a container holds something that nobody wrote
// there. The container is shown as dead; it can be looked at and removed by force.
var ErrDamaged = errors.New("container record is damaged")

// StateDead is the state of a container whose record or processes cannot be
// understood any more.
const StateDead = "dead"

// check refuses a record that is valid JSON and yet not what was written: above
// all one that names another container, whose processes would be taken for its own.
func (r *record) check(id string) error {
	switch {
	case r.ID != id:
		return fmt.Errorf("it names container %s", short(r.ID))
	case r.Name != "" && checkName(r.Name) != nil:
		return fmt.Errorf("name %q", r.Name)
	case r.Process == nil || len(r.Command) == 0 || !r.Step && (r.Signal < 1 || r.Signal > 64):
		return errors.New("no process")
	case r.Block < -1 || r.Block >= idBlocks:
		return fmt.Errorf("block %d of user ids", r.Block)
	}
	return nil
}

// cutOff says that a file ends too early, or was never filled: what a power cut leaves
// of one that nobody was told of. Anything else has another cause.
func cutOff(data []byte) bool {
	var v any
	data = bytes.TrimRight(data, "\x00")
	err := json.Unmarshal(data, &v)
	return err != nil && strings.Contains(err.Error(), "unexpected end")
}

// look is load for those who show or remove a container: a damaged record is
// replaced by what can be found out without it.
func (e *Engine) look(id string) (*record, error) {
	r, err := e.load(id)
	if !errors.Is(err, ErrDamaged) {
		return r, err
	}
	r = &record{ID: id, Block: -1, Command: []string{"?"}, Signal: 15, Warnings: []string{err.Error()}, damaged: true}
	r.Name = claimed(e.namesDir(), id)
	if block := claimed(e.idsDir(), id); block != "" {
		if _, err := fmt.Sscan(block, &r.Block); err != nil {
			r.Block = -1
		}
	}
	if info, err := os.Stat(e.dir(id)); err == nil {
		r.Created = info.ModTime().UTC()
	}
	r.Config = ContainerConfig{Name: r.Name, StopGrace: 10 * time.Second}
	return r, nil
}

// claimed is the key that id has in a directory of claims.
func claimed(dir, id string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	for _, d := range entries {
		if owner, err := os.Readlink(filepath.Join(dir, d.Name())); err == nil && owner == id {
			return d.Name()
		}
	}
	return ""
}

// modified is when a file was written, for one whose content is lost.
func modified(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime().UTC()
}

// startedAt is when Start was called last, or the zero time. A damaged file still
// says that it was: a container that has run must never look as if it had not.
func (e *Engine) startedAt(id string) (time.Time, error) {
	var s starting
	path := e.startedFile(id)
	found, err := loadJSON(path, &s)
	if err == nil || errors.As(err, new(*fs.PathError)) {
		return s.Started, err
	}
	if !found || s.Started.IsZero() {
		s.Started = modified(path)
	}
	return s.Started, nil
}

// denies finds out whether a container that seems to be gone is there: with its first
// process all others of its pid namespace end at once, so some that live on show that
// the runtime's record of the first one is wrong. To settle such a container would
// kill it. They have until deadline to end.
func (e *Engine) denies(id string, deadline time.Time) error {
	group, err := e.group(id)
	if err != nil {
		return err
	}
	for pause := time.Millisecond; ; pause *= 2 {
		pids, err := group.Pids()
		if err != nil || len(pids) == 0 {
			return nil // gone; an error is that of a cgroup on its way out
		}
		if r, err := e.load(id); err == nil && !(sharing{mode: r.Config.Namespaces.PID}).private() {
			return nil // in others' namespace its processes may outlive the first one
		} else if err == nil && r.foreign() != nil {
			return nil // so may those of a runtime that was killed
		}
		if _, err := os.Stat(filepath.Join(e.stateDir(id), "state.json")); errors.Is(err, fs.ErrNotExist) {
			return nil // half made, or half removed
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %s has processes, and state.json does not know them", ErrDamaged, short(id))
		}
		time.Sleep(pause)
	}
}

// garbled says that the runtime's state is there and cannot be read: waiting will not
// make it better.
func (e *Engine) garbled(id string) bool {
	state, err := os.ReadFile(filepath.Join(e.stateDir(id), "state.json"))
	return err == nil && !json.Valid(state)
}

// exitOf is how an ended container ended; an unreadable record of it is an end that
// nobody saw.
func exitOf(ctx context.Context, rt *runtime.Container) (runtime.Exit, error) {
	exit, err := rt.Wait(ctx)
	if err != nil && ctx.Err() == nil && rt.State() == runtime.Stopped {
		return unknownExit(), nil
	}
	return exit, err
}
