package runtime

import (
	"context"
	"errors"
	"os"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
)

// Monitor is a monitor without a container. To begin a creation with it takes the
// program's start, the longest single step, off the way: the monitor is up by the
// time that Create has work for it.
type Monitor struct {
	client *client
	host   cgroup.Host
	path   string // of its own cgroup
}

// StartMonitor starts the monitor of a container that will be made in the
// cgroup; the monitor itself is in one beside it. It ends with this process or
// with Close, unless a Create takes it over. After a crash Destroy removes its
// cgroup.
func StartMonitor(cgroupPath string) (_ *Monitor, err error) {
	m := &Monitor{path: monitorCgroup(cgroupPath)}
	if m.host, err = cgroup.Detect(); err != nil {
		return nil, err
	}
	dir, err := m.host.CreateUnified(m.path)
	if err != nil {
		return nil, err
	}
	var nest *os.File
	if dir != "" {
		nest, err = os.Open(dir)
	}
	if err == nil {
		m.client, err = spawn(monitor.ArgMonitor, nest)
	}
	if nest != nil {
		nest.Close()
	}
	if err != nil {
		return nil, errors.Join(err, m.host.Open(m.path).Remove())
	}
	return m, nil
}

// Close ends a monitor that was not used, and removes its cgroup.
func (m *Monitor) Close(ctx context.Context) error {
	if m.client != nil {
		m.client.close()
	}
	nest := m.host.Open(m.path)
	return errors.Join(nest.Kill(ctx), nest.Remove())
}
