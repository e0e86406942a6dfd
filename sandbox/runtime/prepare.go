package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
)

// bindMounts opens everything of the spec that is bound from the host, and /dev.
func (c *creation) bindMounts(got *prepared) error {
	got.binds, got.isDir = map[int]*os.File{}, map[int]bool{}
	for i, m := range c.Spec.Mounts {
		o := parseOptions(m.Options)
		var err error
		switch {
		case isDev(m):
			got.binds[i], got.isDir[i], c.dev = c.dev, true, nil
		case c.Made[i] != nil:
			got.binds[i], got.isDir[i], err = c.brought(i)
		case len(c.Stacks[i].Lower) > 0:
			got.binds[i], got.isDir[i], err = c.bindStack(m, o, c.Stacks[i])
		case o.bind || m.Type == "bind":
			got.binds[i], got.isDir[i], err = c.bind(m, o)
		case m.Type == "sysfs" && c.ids.mapped() && !ownNetwork(c.Spec):
			// The kernel mounts sysfs for the owner of the network namespace only.
			o.set |= unix.MOUNT_ATTR_RDONLY
			got.binds[i], err = cloneWith("/sys", o, nil)
			got.isDir[i] = true
		}
		if err != nil {
			return fmt.Errorf("mount on %s: %w", m.Destination, err)
		}
	}
	return nil
}

func ownNetwork(spec *specs.Spec) bool {
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			return n.Path == ""
		}
	}
	return false
}

// bind clones a host path. With a user namespace its ids are mapped too, so that
// container root owns what root owns on disk. A file system that cannot do that
// is an error, unless the mount is read-only: then only names are lost.
func (c *creation) bind(m specs.Mount, o mountOptions) (*os.File, bool, error) {
	st, err := os.Stat(m.Source)
	if err != nil {
		return nil, false, err
	}
	userns := c.userns
	if o.idmap != nil && !*o.idmap {
		userns = nil
	}
	f, err := cloneWith(m.Source, o, userns)
	if err != nil && userns != nil && o.idmap == nil && (o.set|o.setAll)&unix.MOUNT_ATTR_RDONLY != 0 {
		f, err = cloneWith(m.Source, o, nil)
	}
	return f, st.IsDir(), err
}

func cloneWith(path string, o mountOptions, userns *os.File) (*os.File, error) {
	f, err := openTree(path, o.tree, userns)
	if err != nil {
		return nil, err
	}
	err = unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, o.change())
	if all, ok := o.changeAll(); err == nil && ok {
		err = unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, all)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount_setattr: %w", err), f.Close())
	}
	return f, nil
}

// cgroupDirs are views of the container's own directories.
func (c *creation) cgroupDirs(o mountOptions) ([]namedDir, error) {
	paths := c.group.V1Dirs()
	if dir := c.group.UnifiedDir(); dir != "" {
		paths["unified"] = dir
	}
	o.set |= unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	var dirs []namedDir
	for name, path := range paths {
		f, err := cloneWith(path, mountOptions{set: o.set}, nil)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, namedDir{name, f})
	}
	slices.SortFunc(dirs, func(a, b namedDir) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return dirs, nil
}

// fifos are the two outputs. The container has each open for reading and writing:
// so it gets no SIGPIPE while no monitor lives, and a later monitor can take over.
func fifos() [2]string { return [2]string{"stdout", "stderr"} }

// stdio makes the standard streams.
func (c *creation) stdio(got *prepared) error {
	got.supervise = c.Init
	if c.Spec.Process.Terminal {
		return nil // the init makes it
	}
	dir, err := c.keep(os.Open(c.StateDir))
	if err != nil {
		return err
	}
	user := c.Spec.Process.User
	ends := [2]**os.File{&got.stdout, &got.stderr}
	for i, name := range fifos() {
		path := viaFD(dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return fmt.Errorf("make fifo: %w", err)
		}
		// The program may open /dev/stdout again.
		if err := os.Lchown(path, c.ids.uid(user.UID), c.ids.gid(user.GID)); err != nil {
			return err
		}
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("open fifo: %w", err)
		}
		*ends[i] = os.NewFile(uintptr(fd), name)
	}
	if c.OpenStdin {
		got.stdin, err = c.openStdin(dir)
		return err
	}
	if c.Stdin == nil && c.dev != nil {
		got.stdin, err = nullOf(c.dev)
		return err
	}
	got.stdin, err = duplicate(c.Stdin)
	return err
}

// keepFiles hands the directories and the read ends of the output to a monitor.
func keepFiles(l *monitor.Launch, p *program, dir, stateDir string) error {
	for path, index := range map[string]*int{dir: &l.Dir, stateDir: &l.State} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		*index = p.index(f)
	}
	if l.Terminal {
		return nil
	}
	if err := keepStdin(l, p); err != nil {
		return err
	}
	for i, name := range fifos() {
		fd, err := unix.Openat(int(p.files[l.State].Fd()), name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("open fifo: %w", err)
		}
		// Less waiting of the container for its log; a smaller pipe only means a slower one.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize)
		l.Out[i] = p.index(os.NewFile(uintptr(fd), name))
	}
	return nil
}

// groupFiles hands the cgroup to a monitor: to be born in, to kill by, to count
// out-of-memory kills.
func groupFiles(l *monitor.Launch, p *program, g *cgroup.Group) error {
	if dir := g.UnifiedDir(); dir != "" {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		l.Cgroup = p.index(f)
		kill, err := os.OpenFile(filepath.Join(dir, "cgroup.kill"), os.O_WRONLY, 0)
		if err == nil { // Linux 5.14; without, the agent kills what is left
			l.Kill = p.index(kill)
		}
	}
	if path := g.OOMFile(); path != "" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		l.OOM = p.index(f)
	}
	return nil
}

// openTasks opens the files by which a process enters v1 cgroups.
func openTasks(g *cgroup.Group) (files []*os.File, err error) {
	for _, path := range g.Tasks() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// listenSocket binds monitor.sock.
func listenSocket(stateDir string) (*os.File, error) {
	dir, err := os.Open(stateDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), fileSocket)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: viaFD(dir, fileSocket)}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind %s: %w", fileSocket, err), f.Close())
	}
	if err := unix.Listen(fd, 64); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", fileSocket, err), f.Close())
	}
	return f, nil
}

// errLocked is returned by lockMonitor while a monitor lives.
var errLocked = errors.New("the container has a monitor")

// lockMonitor takes the lock that a monitor holds as long as it lives.
func lockMonitor(stateDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(stateDir, fileLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock monitor: %w", err)
	}
	return f, nil
}
