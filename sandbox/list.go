package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"naru/sandbox/runtime"
)

// Get returns the container that ref names: its name, its id, or the unique
// beginning of its id.
func (e *Engine) Get(_ context.Context, ref string) (Container, error) {
	id, err := e.resolve(ref)
	if err != nil {
		return Container{}, err
	}
	r, err := e.look(id)
	if err != nil {
		return Container{}, err
	}
	c, err := e.view(r)
	return e.viewLife(c, r, err)
}

// List returns the containers that run, or all of them, that have all of the
// labels; an empty value matches any. The newest comes first.
func (e *Engine) List(_ context.Context, all bool, labels map[string]string) ([]Container, error) {
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	list := []Container{}
	for _, r := range records {
		if r.Step || !hasLabels(r.Config.Labels, labels) {
			continue
		}
		c, err := e.view(r)
		if c, err = e.viewLife(c, r, err); err != nil {
			return nil, err
		}
		if all || c.State == StateRestarting || c.State == string(runtime.Running) || c.State == string(runtime.Paused) {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b Container) int {
		if d := b.Created.Compare(a.Created); d != 0 {
			return d
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, nil
}

// records loads every container; one that goes away meanwhile is left out.
func (e *Engine) records() ([]*record, error) {
	ids, err := e.ids()
	if err != nil {
		return nil, err
	}
	var records []*record
	for _, id := range ids {
		r, err := e.look(id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

func hasLabels(have, want map[string]string) bool {
	for key, value := range want {
		got, ok := have[key]
		if !ok || (value != "" && got != value) {
			return false
		}
	}
	return true
}

// view asks the kernel, the monitor and the files how the container is now. It
// takes no lock and changes nothing.
func (e *Engine) view(r *record) (Container, error) {
	c := Container{
		ID: r.ID, Name: r.Name, Image: r.Config.Image, ImageID: r.ImageID, Command: r.Command,
		Labels: r.Config.Labels, Created: r.Created, Warnings: r.Warnings, Config: r.Config,
	}
	end, ok, err := e.ended(r.ID)
	if err != nil {
		return c, fmt.Errorf("look at container: %w", err)
	}
	if ok {
		c.Started = end.Started
		c.setExit(end.Exit)
		c.idle(r)
		return c, nil
	}
	if c.Started, err = e.startedAt(r.ID); err != nil {
		return c, fmt.Errorf("look at container: %w", err)
	}
	rt, err := e.open(r.ID)
	if errors.Is(err, ErrDamaged) {
		c.State, c.ExitCode = StateDead, -1
		c.Warnings = append(c.Warnings, err.Error())
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("look at container: %w", err)
	}
	if rt == nil {
		c.setExit(unknownExit())
		c.idle(r)
		return c, nil
	}
	return c, errors.Join(e.viewProcess(&c, rt), rt.Close())
}

func (e *Engine) viewProcess(c *Container, rt *runtime.Container) error {
	c.State = string(rt.State())
	if c.State == string(runtime.Stopped) {
		// The end is on record already: this does not wait.
		exit, err := exitOf(context.Background(), rt)
		c.setExit(exit)
		return err
	}
	pid, err := rt.ProgramPid()
	if err != nil { // another runtime is still starting it, or keeps it to itself
		pid = rt.Pid()
	}
	c.Pid = pid
	return e.viewNetworks(c)
}

func (c *Container) setExit(exit runtime.Exit) {
	c.State = string(runtime.Stopped)
	c.ExitCode, c.ExitKnown, c.OOM, c.Finished = exit.Code, exit.Known, exit.OOM, exit.At
	c.OOMKills, c.LogLost = exit.OOMKills, exit.Lost
}

// idle turns the look of a container that nobody has started yet, and that has no
// process to tell it, from stopped to created, and of one without a record to dead.
func (c *Container) idle(r *record) {
	if r.damaged {
		c.State = StateDead
	}
	if r.Idle && c.Started.IsZero() {
		c.State, c.ExitCode, c.ExitKnown, c.Finished = string(runtime.Created), 0, false, time.Time{}
	}
}

// Logs copies what the container has written to stdout and stderr.
func (e *Engine) Logs(ctx context.Context, ref string, o runtime.LogOptions, stdout, stderr io.Writer) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	if err := runtime.ReadLog(ctx, e.dir(id), o, stdout, stderr); err != nil {
		return fmt.Errorf("read log of container %s: %w", short(id), err)
	}
	return nil
}
