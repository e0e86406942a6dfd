package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/internal/loosen"
	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
)

// cleanupTime bounds what is undone after a failed Create.
const cleanupTime = 10 * time.Second

// Create makes the namespaces, cgroups and mounts of a container; its init
// waits and nothing of the image has run. The network can now be plugged into
// /proc/<Pid>/ns/net. Refused steps come back as *StartError. After an error
// nothing of the container is left except empty directories.
func Create(ctx context.Context, c Config) (*Container, error) {
	cr := &creation{Config: c, prog: newProgram(), launch: monitor.NewLaunch()}
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
	group   *cgroup.Group
	tasks   []*os.File // of the group: v1 hierarchies to enter
	views   []namedDir // of the group: what a mount of type cgroup shows where v1 is in use
	monitor *client
	launch  *monitor.Launch
	prog    *program
	userns  *os.File // for id-mapped mounts
	dev     *os.File // the container's /dev
	open    []*os.File
	live    *live
	made    bool // the state directory is ours to remove
	rootfs  *os.File

	bundle *specs.Spec // what another runtime is told; Spec is then about that runtime's process
	told   string      // the program that it is to run
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
	c.prog.close()
}

// run is the order of a creation: the monitor starts while we prepare cgroups and
// mounts, and the init makes the container's mounts while we write its record and
// the caller plugs in the network.
func (c *creation) run(ctx context.Context) (*Container, error) {
	if err := validate(c.Config); err != nil {
		return nil, err
	}
	if err := c.foreign(); err != nil {
		return nil, err
	}
	flags, joins, err := namespaceFlags(c.Spec)
	if err != nil {
		return nil, err
	}
	if err := c.directories(); err != nil {
		return nil, err
	}
	if err := c.startMonitor(); err != nil {
		return nil, err
	}
	grouped := make(chan error, 1)
	go func() { grouped <- c.cgroups() }()
	got, err := c.prepare(joins)
	if err == nil {
		err = c.mounts(ctx, &got)
	}
	if err = errors.Join(err, <-grouped); err != nil {
		return nil, err
	}
	got.tasks, got.cgroup = c.tasks, c.views
	if err := groupFiles(c.launch, c.prog, c.group); err != nil {
		return nil, err
	}
	if r := c.Spec.Linux.Resources; r != nil && r.Memory != nil && r.Memory.Limit != nil {
		if err := watchOOM(c.launch, c.prog, c.group); err != nil {
			return nil, err
		}
	}
	got.keyring = keyringOf(c.ID)
	if err := c.steps(got); err != nil {
		return nil, err
	}
	c.launch.Flags = flags
	c.prog.files = loosen.Apply(ctx, c.prog.files)
	c.launch.Program = loosen.Apply(ctx, c.prog.steps)
	if err := c.monitor.launch(monitor.OpLaunch, c.launch, c.prog.files); err != nil {
		return nil, err
	}
	cloned, err := c.monitor.expect(ctx, monitor.ReplyCloned)
	if err != nil {
		return nil, err
	}
	return c.adopt(ctx, int(cloned.value), cloned.fds, flags)
}

// steps writes the start down.
func (c *creation) steps(got prepared) error {
	if c.Foreign == nil {
		c.prog.init(c.Spec, got)
		return nil
	}
	c.prog.foreign(c.Spec, got, c.bundle.Root.Path)
	return besideGroup(c.launch, c.prog, c.Cgroup)
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
	if err != nil {
		return err
	}
	return c.writeBundle()
}

// cgroups makes the groups with their limits, and opens the ways into them and the
// views of them.
func (c *creation) cgroups() (err error) {
	c.group, err = c.Monitor.host.Create(c.Cgroup, c.Spec.Linux.Resources)
	if err != nil {
		c.group = nil // it is somebody else's, or removed again
		return err
	}
	if c.Foreign != nil {
		return c.group.MakeElsewhere()
	}
	if c.tasks, err = openTasks(c.group); err != nil {
		return err
	}
	for _, m := range c.Spec.Mounts {
		if m.Type != "cgroup" || len(c.Monitor.host.V1) == 0 {
			continue
		}
		if c.views, err = c.cgroupDirs(parseOptions(m.Options)); err != nil {
			return fmt.Errorf("mount on %s: %w", m.Destination, err)
		}
	}
	return nil
}

// monitorCgroup is the name of the monitor's own group, beside the container's.
func monitorCgroup(path string) string { return path + ".monitor" }

func (c *creation) startMonitor() (err error) {
	if c.Monitor == nil {
		if c.Monitor, err = StartMonitor(c.Cgroup); err != nil {
			return err
		}
	}
	c.monitor = c.Monitor.client
	if c.ids = mapOf(c.Spec); c.ids.mapped() {
		return c.monitor.send(monitor.EncodeMaps(mountMapText(c.ids.uids), mountMapText(c.ids.gids)))
	}
	return nil
}

// prepare makes what needs no user namespace, for which the monitor is still on
// its way.
func (c *creation) prepare(joins []specs.LinuxNamespace) (got prepared, err error) {
	if s := c.Spec.Linux.Seccomp; s != nil {
		if got.filter, err = Filter(s); err != nil {
			return got, err
		}
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
	if err := c.stdio(&got); err != nil {
		return got, err
	}
	return got, c.descriptors()
}

// mounts makes every mount that must not be found through the image.
func (c *creation) mounts(ctx context.Context, got *prepared) error {
	if c.ids.mapped() {
		r, err := c.monitor.expect(ctx, monitor.ReplyFD)
		if err != nil || len(r.fds) != 1 {
			return fmt.Errorf("make user namespace for mounts: %w", err)
		}
		c.userns, _ = c.keep(os.NewFile(uintptr(r.fds[0]), "userns"), nil)
	}
	readonly := c.Spec.Root != nil && c.Spec.Root.Readonly
	root, err := mountRoot(c.Root, readonly, c.userns)
	if err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	got.root, c.rootfs = root, root
	return c.bindMounts(got)
}

// descriptors are those of the launch record that the monitor keeps.
func (c *creation) descriptors() error {
	l := c.launch
	l.Name, l.UIDMap, l.GIDMap = "naru:"+c.ID, "", ""
	if c.ids.mapped() {
		l.UIDMap, l.GIDMap = mapText(c.ids.uids), mapText(c.ids.gids)
	}
	l.Passing = c.Passing
	l.Detached, l.LogMax, l.LogFiles = c.Detached, uint64(c.LogMax), uint32(c.LogFiles)
	if c.LogMax <= 0 {
		l.LogMax = DefaultLogMax
	}
	l.Terminal = c.Spec.Process.Terminal
	if err := c.callback(); err != nil {
		return err
	}
	if err := keepFiles(l, c.prog, c.Dir, c.StateDir); err != nil {
		return err
	}
	if err := c.liveOutput(); err != nil {
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

// liveOutput attaches the creator of a foreground container from the start.
func (c *creation) liveOutput() error {
	if c.Stdout == nil && c.Stderr == nil {
		return nil
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	c.launch.Live = c.prog.index(theirs)
	a := newAttachment(c.StateDir, c.Dir, ours)
	a.patience, a.exact = livePatience, true
	var st unix.Stat_t
	if unix.Stat(filepath.Join(c.Dir, monitor.FileLog), &st) == nil { // of earlier lives
		at := monitor.Position{Inode: st.Ino, Offset: uint64(st.Size)}
		a.seen = [2]monitor.Position{at, at}
	}
	c.live = &live{a, [2]io.Writer{&willing{c.Stdout}, &willing{c.Stderr}}, make(chan struct{})}
	return nil
}

// adopt records the container, sets what only its creator can, and tells the
// monitor that the container may outlive us. The init works on its mounts
// meanwhile; its resource limits come after those, which they would bind too.
func (c *creation) adopt(ctx context.Context, pid int, fds []int, flags uint64) (*Container, error) {
	if len(fds) != 1 {
		return nil, errors.New("internal error: monitor sent no pidfd")
	}
	for _, n := range c.Spec.Linux.Namespaces { // those that it joined too: an exec that did not enter them would be in the host's
		flags |= namespaceBits()[n.Type]
	}
	foreign, err := c.foreignRecord()
	if err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	got := &Container{
		stateDir: c.StateDir, dir: c.Dir, pidfd: fds[0], group: c.group, client: c.monitor, live: c.live,
		rec: record{Version: recordVersion, ID: c.ID, Cgroup: c.Cgroup, Namespaces: flags, Mapped: c.ids.mapped(), LogMax: int64(c.launch.LogMax),
			LogFiles: c.LogFiles, Terminal: c.Spec.Process.Terminal, Foreign: foreign},
	}
	err = c.register(ctx, got, pid)
	// What the init says comes first: where it gave up, the rest could only fail.
	if _, refused := c.monitor.expect(ctx, monitor.ReplyReady); refused != nil {
		err = refused
	}
	if err == nil {
		err = setLimits(pid, c.Spec.Process)
	}
	if err == nil {
		err = c.monitor.send([]byte{monitor.OpCommit})
	}
	if err != nil {
		unix.Close(got.pidfd)
		return nil, err
	}
	c.live.start()
	c.live = nil
	return got, nil
}

// register writes the container's record and has its network plugged in.
func (c *creation) register(ctx context.Context, got *Container, pid int) error {
	if err := got.rec.identify(pid, got.pidfd); err != nil {
		return err
	}
	if err := got.rec.save(c.StateDir); err != nil || c.Plug == nil {
		return err
	}
	return c.Plug(ctx, pid)
}

// undo takes back a creation that failed: the monitor kills what it cloned when
// its socket closes.
func (c *creation) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	var errs []error
	if c.Monitor != nil {
		errs = append(errs, c.Monitor.Close(ctx))
	}
	c.live.close()
	c.release()
	if c.group != nil {
		errs = append(errs, c.group.Kill(ctx), c.group.Remove())
	}
	if c.made {
		errs = append(errs, removeElsewhere(c.StateDir, c.group), removeState(c.StateDir))
	}
	return errors.Join(errs...)
}
