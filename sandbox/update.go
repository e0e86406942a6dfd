package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"naru/sandbox/runtime/cgroup"
)

// Update changes what a container may use: memory, processors, processes and the
// other Resources that are limits of a cgroup; and its restart policy. A running
// container has the new limits at once; any of them lasts over the next start.
// A warning says what comes true only then.
func (e *Engine) Update(ctx context.Context, ref string, change func(*ContainerConfig)) (warning string, err error) {
	id, err := e.resolve(ref)
	if err != nil {
		return "", err
	}
	l, err := e.lockContainer(ctx, id)
	if err != nil {
		return "", err
	}
	defer l.Unlock()
	r, err := e.load(id)
	if err != nil {
		return "", err
	}
	was := r.Config.Living
	change(&r.Config)
	if warning, err = e.update(r, was); err != nil {
		return "", fmt.Errorf("update container %s: %w", r.Name, err)
	}
	e.emit(r, "update")
	return warning, nil
}

func (e *Engine) update(r *record, was Living) (warning string, err error) {
	c := &r.Config
	if err := errors.Join(c.checkLimits(), c.Resources.check(c), c.checkLiving()); err != nil {
		return "", err
	}
	now, err := e.view(r)
	if err != nil {
		return "", err
	}
	if now.Pid != 0 {
		group, err := e.group(r.ID)
		if err != nil {
			return "", err
		}
		if err := group.Update(c.limits()); err != nil {
			return "", err
		}
	}
	if warning, err = e.repolicy(r, was, now.Pid != 0); err != nil {
		return "", err
	}
	return warning, saveJSON(filepath.Join(e.dir(r.ID), configFile), r)
}

// repolicy prepares for a restart policy where there was none. What does not run then
// counts as stopped by a person: no policy starts what nobody has started. The monitor
// of what runs has been told at the start whether to call back at the end.
func (e *Engine) repolicy(r *record, was Living, running bool) (warning string, err error) {
	if was.Restart.wanted() || !r.Config.Restart.wanted() {
		return "", nil
	}
	if len(e.callback) == 0 {
		return "", errNoCallback()
	}
	if running && was.Health == nil {
		warning = fmt.Sprintf("container %s was started without a restart policy: until it is restarted, policy %s holds only for a start of the machine or the agent",
			firstOf(r.Name, short(r.ID)), r.Config.Restart)
	}
	return warning, e.saveLife(r.ID, life{Delay: firstDelay, Stopped: !running})
}

// limits are those of the container's cgroup.
func (c *ContainerConfig) limits() *specs.LinuxResources {
	s := &specs.Spec{Linux: &specs.Linux{}}
	setLimits(s, limits{c.Memory, c.CPUs, c.Pids})
	c.Resources.apply(s)
	return s.Linux.Resources
}

// group is the container's cgroup.
func (e *Engine) group(id string) (*cgroup.Group, error) {
	host, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	return host.Open(e.cgroup(id)), nil
}
