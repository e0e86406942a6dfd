package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// freezer is the file that stops the group, what to write there, and where to read
// that it is so.
type freezer struct{ dir, file, frozen, thawed, events, isFrozen, isThawed string }

// freezer prefers cgroup.freeze: unlike v1's freezer it lets stopped processes be killed.
func (g *Group) freezer() (freezer, error) {
	if dir := g.UnifiedDir(); dir != "" {
		return freezer{dir, "cgroup.freeze", "1", "0", "cgroup.events", "frozen 1", "frozen 0"}, nil
	}
	if dir := g.v1Dir("freezer"); dir != "" {
		return freezer{dir, "freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN", "THAWED"}, nil
	}
	return freezer{}, errors.New("the machine has no cgroup freezer")
}

// Freeze stops all processes of the group, or lets them go on, and returns when
// that is so. When ctx ends before all have stopped, they all go on.
func (g *Group) Freeze(ctx context.Context, frozen bool) error {
	err := g.valid()
	var f freezer
	if err == nil {
		f, err = g.freezer()
	}
	if err == nil {
		err = f.set(ctx, frozen)
	}
	if err != nil && frozen && f.dir != "" {
		err = errors.Join(err, write(f.dir, f.file, f.thawed))
	}
	if err != nil {
		return fmt.Errorf("freeze cgroup: %w", err)
	}
	return nil
}

// Thaw is Freeze with false.
func (g *Group) Thaw(ctx context.Context) error { return g.Freeze(ctx, false) }

// set writes again and again: v1 stays in FREEZING when processes fork meanwhile, and
// then a moment of going on helps (Linux Documentation cgroup-v1/freezer-subsystem).
func (f freezer) set(ctx context.Context, frozen bool) error {
	value, done := f.thawed, f.isThawed
	if frozen {
		value, done = f.frozen, f.isFrozen
	}
	for try := 1; ; try++ {
		if err := write(f.dir, f.file, value); err != nil {
			return err
		}
		b, err := readFile(filepath.Join(f.dir, f.events))
		if err != nil || bytes.Contains(b, []byte(done)) {
			return err
		}
		if frozen && try%50 == 0 && f.file == "freezer.state" {
			if err := write(f.dir, f.file, f.thawed); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// Frozen says whether Freeze was called last with true.
func (g *Group) Frozen() bool {
	if g.valid() != nil {
		return false
	}
	dir, file := g.UnifiedDir(), "cgroup.freeze"
	if dir == "" {
		dir, file = g.v1Dir("freezer"), "freezer.self_freezing"
	}
	if dir == "" {
		return false
	}
	b, err := readFile(filepath.Join(dir, file))
	return err == nil && strings.TrimSpace(string(b)) == "1"
}
