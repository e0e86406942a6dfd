package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
	"naru/sandbox/runtime/seccomp"
)

// cleanupTime bounds what is undone after a failed Create.
const cleanupTime = 10 * time.Second

// Create makes the namespaces, cgroups and mounts of a container; its init
// waits and nothing of the image has run. The network can now be plugged into
// /proc/<Pid>/ns/net. Refused steps come back as *StartError. After an error
// nothing of the container is left except empty directories.
func Create(ctx context.Context, c Config) (*Container, error) {
	if err := validate(c); err != nil {
		return nil, fmt.Errorf("create container %s: %w", c.ID, err)
	}
	cr := &creation{Config: c, ids: mapOf(c.Spec)}
	defer cr.release()
	got, err := cr.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", c.ID, errors.Join(err, cr.undo(ctx)))
	}
	return got, nil
}

// creation is one Create under way.
type creation struct {
	Config
	ids     idMap
	host    cgroup.Host
	group   *cgroup.Group
	monitor *client
	launch  *monitor.Launch
	prog    *program
	userns  *os.File // for id-mapped mounts
	dev     *os.File // the container's /dev
	open    []*os.File
	copies  *copies
	made    bool // the state directory is ours to remove
}

func (c *creation) keep(f *os.File, err error) (*os.File, error) {
	if err == nil {
		c.open = append(c.open, f)
	}
	return f, err
}

// release drops what only Create needed.
func (c *creation) release() {
	for _, f := range c.open {
		f.Close()
	}
	if c.prog != nil {
		c.prog.close()
	}
}

// run is the order of a creation. The monitor starts while we prepare mounts.
func (c *creation) run(ctx context.Context) (*Container, error) {
	flags, joins, err := namespaceFlags(c.Spec)
	if err != nil {
		return nil, err
	}
	if err := c.directories(); err != nil {
		return nil, err
	}
	if err := c.cgroups(); err != nil {
		return nil, err
	}
	if err := c.startMonitor(); err != nil {
		return nil, err
	}
	got, err := c.prepare(ctx, joins)
	if err != nil {
		return nil, err
	}
	c.prog = initProgram(c.Spec, got)
	c.launch.Flags = flags
	c.launch.Program = c.prog.steps
	if err := c.descriptors(); err != nil {
		return nil, err
	}
	if err := c.monitor.launch(monitor.OpLaunch, c.launch, c.prog.files); err != nil {
		return nil, err
	}
	ready, err := c.monitor.expect(ctx, monitor.ReplyReady)
	if err != nil {
		return nil, err
	}
	return c.adopt(int(ready.value), ready.fds, flags)
}

// directories makes an empty state directory and forgets an earlier end.
func (c *creation) directories() error {
	if err := os.Remove(filepath.Join(c.Dir, monitor.FileExit)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := os.Mkdir(c.StateDir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		if _, err := os.Stat(filepath.Join(c.StateDir, fileState)); err == nil {
			return fmt.Errorf("state directory %s is in use", c.StateDir)
		}
		if err := removeState(c.StateDir); err != nil {
			return err
		}
		err = os.Mkdir(c.StateDir, 0o700)
	}
	c.made = err == nil
	return err
}

func (c *creation) cgroups() (err error) {
	if c.host, err = cgroup.Detect(); err != nil {
		return err
	}
	c.group, err = c.host.Create(c.Cgroup, c.Spec.Linux.Resources)
	if err != nil {
		c.group = nil // it is somebody else's, or removed again
	}
	return err
}

// monitorCgroup is the name of the monitor's own group, beside the container's.
func monitorCgroup(path string) string { return path + ".monitor" }

func (c *creation) startMonitor() error {
	var dir *os.File
	if c.host.Unified != "" {
		g, err := c.host.Create(monitorCgroup(c.Cgroup), nil)
		if err != nil {
			return err
		}
		if dir, err = c.keep(os.Open(g.UnifiedDir())); err != nil {
			return err
		}
	}
	m, err := spawn(monitor.ArgMonitor, dir)
	if err != nil {
		return err
	}
	c.monitor = m
	if c.ids.mapped() {
		return m.send(monitor.EncodeMaps(mountMapText(c.ids.uids), mountMapText(c.ids.gids)))
	}
	return nil
}

// prepare makes every mount that must not be found through the image.
func (c *creation) prepare(ctx context.Context, joins []specs.LinuxNamespace) (got prepared, err error) {
	if s := c.Spec.Linux.Seccomp; s != nil {
		if got.filter, err = seccomp.Compile(s); err != nil {
			return got, err
		}
	}
	if got.tasks, err = openTasks(c.group); err != nil {
		return got, err
	}
	for _, n := range joins {
		f, err := c.keep(os.Open(n.Path))
		if err != nil {
			return got, fmt.Errorf("join namespace: %w", err)
		}
		got.joins = append(got.joins, f)
	}
	for _, m := range c.Spec.Mounts {
		if isDev(m) {
			if c.dev, err = mountDev(m, c.Spec, c.ids); err != nil {
				return got, err
			}
		}
	}
	if c.ids.mapped() {
		r, err := c.monitor.expect(ctx, monitor.ReplyFD)
		if err != nil || len(r.fds) != 1 {
			return got, fmt.Errorf("make user namespace for mounts: %w", err)
		}
		c.userns, _ = c.keep(os.NewFile(uintptr(r.fds[0]), "userns"), nil)
	}
	readonly := c.Spec.Root != nil && c.Spec.Root.Readonly
	if got.root, err = mountRoot(c.Root, readonly, c.userns); err != nil {
		return got, fmt.Errorf("mount root: %w", err)
	}
	if err := c.bindMounts(&got); err != nil {
		return got, err
	}
	return got, c.stdio(&got)
}

// descriptors are those of the launch record that the monitor keeps.
func (c *creation) descriptors() error {
	l := c.launch
	l.Name, l.UIDMap, l.GIDMap = "naru:"+c.ID, "", ""
	if c.ids.mapped() {
		l.UIDMap, l.GIDMap = mapText(c.ids.uids), mapText(c.ids.gids)
	}
	l.Detached, l.LogMax = c.Detached, uint64(c.LogMax)
	if c.LogMax <= 0 {
		l.LogMax = DefaultLogMax
	}
	if err := keepFiles(l, c.prog, c.Dir, c.StateDir); err != nil {
		return err
	}
	if err := groupFiles(l, c.prog, c.group); err != nil {
		return err
	}
	if err := c.liveCopies(); err != nil {
		return err
	}
	listen, err := listenSocket(c.StateDir)
	if err != nil {
		return err
	}
	l.Listen = c.prog.index(listen)
	lock, err := lockMonitor(c.StateDir)
	if err != nil {
		return err
	}
	l.Lock = c.prog.index(lock)
	return nil
}

// liveCopies makes the pipes of a foreground container.
func (c *creation) liveCopies() error {
	c.copies = &copies{}
	for i, to := range []*os.File{c.Stdout, c.Stderr} {
		if to == nil {
			continue
		}
		w, err := c.copies.start(to)
		if err != nil {
			return err
		}
		c.launch.Copy[i] = c.prog.index(w)
	}
	return nil
}

// adopt records the container, sets what only its creator can, and tells the
// monitor that the container may outlive us.
func (c *creation) adopt(pid int, fds []int, flags uint64) (*Container, error) {
	if len(fds) != 1 {
		return nil, errors.New("internal error: monitor sent no pidfd")
	}
	if hasNamespace(c.Spec, specs.CgroupNamespace) {
		flags |= unix.CLONE_NEWCGROUP
	}
	got := &Container{
		stateDir: c.StateDir, dir: c.Dir, pidfd: fds[0], group: c.group, client: c.monitor, copies: c.copies,
		rec: record{Version: recordVersion, ID: c.ID, Cgroup: c.Cgroup, Namespaces: flags, Mapped: c.ids.mapped(), LogMax: int64(c.launch.LogMax)},
	}
	err := got.rec.identify(pid, got.pidfd)
	if err == nil {
		err = setLimits(pid, c.Spec.Process)
	}
	if err == nil {
		err = got.rec.save(c.StateDir)
	}
	if err == nil {
		err = c.monitor.send([]byte{monitor.OpCommit})
	}
	if err != nil {
		unix.Close(got.pidfd)
		return nil, err
	}
	c.monitor, c.copies = nil, nil
	return got, nil
}

// undo takes back a creation that failed: the monitor kills what it cloned when
// its socket closes.
func (c *creation) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	var errs []error
	if c.monitor != nil {
		c.monitor.close()
	}
	c.copies.close()
	c.release()
	if c.group != nil {
		errs = append(errs, c.group.Kill(ctx))
		if c.host.Unified != "" {
			errs = append(errs, c.host.Open(monitorCgroup(c.Cgroup)).Kill(ctx))
		}
		errs = append(errs, c.group.Remove(), c.host.Open(monitorCgroup(c.Cgroup)).Remove())
	}
	if c.made {
		errs = append(errs, removeState(c.StateDir))
	}
	return errors.Join(errs...)
}
