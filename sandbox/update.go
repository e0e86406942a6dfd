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
// other Resources that are limits of a cgroup. A running container has the new
// limits at once; any of them lasts over the next start.
func (e *Engine) Update(ctx context.Context, ref string, change func(*ContainerConfig)) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
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
	change(&r.Config)
	if err := e.update(r); err != nil {
		return fmt.Errorf("update container %s: %w", r.Name, err)
	}
	e.emit(r, "update")
	return nil
}

func (e *Engine) update(r *record) error {
	c := &r.Config
	if err := errors.Join(c.checkLimits(), c.Resources.check(c)); err != nil {
		return err
	}
	now, err := e.view(r)
	if err != nil {
		return err
	}
	if now.Pid != 0 {
		group, err := e.group(r.ID)
		if err != nil {
			return err
		}
		if err := group.Update(c.limits()); err != nil {
			return err
		}
	}
	return saveJSON(filepath.Join(e.dir(r.ID), configFile), r)
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
