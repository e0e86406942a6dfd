package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/build"
	"naru/sandbox/runtime"
	"naru/sandbox/runtime/overlay"
)

// stepMounts are the --mounts of a step as the runtime takes them. Files and sockets
// lie on a tmpfs each, mounted nowhere but in the step: with the step's processes and
// close they are gone.
type stepMounts struct {
	specs  []specs.Mount
	stacks map[int]runtime.Overlay // by index in specs
	made   map[int]*os.File
	listen []*net.UnixListener
	serve  sync.WaitGroup
	conns  connections
}

// openStepMounts makes what is to be mounted.
func openStepMounts(r *record, list []build.StepMount) (_ *stepMounts, err error) {
	s := &stepMounts{stacks: map[int]runtime.Overlay{}, made: map[int]*os.File{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for _, m := range list {
		if err := s.open(r, m); err != nil {
			return nil, fmt.Errorf("mount on %s: %w", m.Target, err)
		}
	}
	return s, nil
}

func (s *stepMounts) open(r *record, m build.StepMount) (err error) {
	spec := specs.Mount{Destination: m.Target, Type: "bind", Options: []string{"bind", "rprivate", "nosuid", "nodev"}}
	i := len(s.specs)
	switch {
	case m.Stack != nil:
		spec.Source = m.Stack.Path
		s.stacks[i] = runtime.Overlay{Lower: m.Stack.Lower, Upper: m.Stack.Upper, Work: m.Stack.Work, Volatile: true}
	case m.Dir != nil:
		spec.Source = "/proc/self/fd/" + strconv.Itoa(int(m.Dir.Fd()))
	case m.Tmpfs != nil:
		spec.Type, spec.Source = "tmpfs", "tmpfs"
		spec.Options = []string{"nosuid", "nodev", "mode=1777"}
		if m.Tmpfs.Size > 0 {
			spec.Options = append(spec.Options, "size="+strconv.FormatInt(m.Tmpfs.Size, 10))
		}
	case m.File != nil:
		s.made[i], err = memoryFile(r, m.File)
	case m.Socket != nil:
		s.made[i], err = s.socket(r, m.Socket)
	default:
		err = errors.New("internal error: nothing to mount")
	}
	if err != nil {
		return err
	}
	if m.ReadOnly {
		spec.Options = append(spec.Options, "ro")
	}
	s.specs = append(s.specs, spec)
	return nil
}

// config tells the runtime which mounts are not made from a path. They are the last
// of the spec's.
func (s *stepMounts) config(c *runtime.Config) {
	if s == nil {
		return
	}
	c.Stacks, c.Made = map[int]runtime.Overlay{}, map[int]*os.File{}
	first := len(c.Spec.Mounts) - len(s.specs)
	for i, stack := range s.stacks {
		c.Stacks[first+i] = stack
	}
	for i, f := range s.made {
		c.Made[first+i] = f
	}
}

// close ends what was served, and returns when nobody serves any more.
func (s *stepMounts) close() {
	for _, l := range s.listen {
		_ = l.Close() // nobody is left to connect
	}
	s.conns.close()
	s.serve.Wait()
	for _, f := range s.made {
		_ = f.Close() // a descriptor of a mount: nothing can be lost
	}
}

// The one file on each of these file systems.
const memoryName = "file"

// memoryFS makes a small tmpfs that is mounted nowhere.
func memoryFS(size int) (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen tmpfs: %w", err)
	}
	defer unix.Close(fs)
	page := os.Getpagesize()
	for key, value := range map[string]int{"nr_blocks": size/page + 1, "nr_inodes": 4} {
		if err := unix.FsconfigSetString(fs, key, strconv.Itoa(value)); err != nil {
			return nil, fmt.Errorf("tmpfs %s: %w", key, err)
		}
	}
	for key, value := range map[string]string{"mode": "0755", "source": "build"} {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return nil, fmt.Errorf("tmpfs %s: %w", key, err)
		}
	}
	_ = unix.FsconfigSetFlag(fs, "noswap") // Linux 6.4: a secret must not reach a disk
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create tmpfs: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsmount tmpfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "tmpfs"), nil
}

// single gives the file on a tmpfs its owner, who is one of the step's, and returns a
// mount of it alone.
func single(r *record, tmpfs *os.File, mode uint32, uid, gid int) (*os.File, error) {
	fd, err := unix.Openat(int(tmpfs.Fd()), memoryName, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), memoryName)
	defer f.Close()
	if ids := r.idRange(); ids != nil {
		uid, gid = uid+int(ids.Base), gid+int(ids.Base)
	}
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("chown: %w", err)
	}
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode); err != nil {
		return nil, fmt.Errorf("chmod: %w", err)
	}
	return overlay.CloneBelow(tmpfs, f)
}

// memoryFile is a file of a step that no disk holds.
func memoryFile(r *record, m *build.StepFile) (*os.File, error) {
	tmpfs, err := memoryFS(len(m.Data))
	if err != nil {
		return nil, err
	}
	defer tmpfs.Close()
	fd, err := unix.Openat(int(tmpfs.Fd()), memoryName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), memoryName)
	_, err = f.Write(m.Data)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	mount, err := single(r, tmpfs, m.Mode, m.UID, m.GID)
	if err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("mount_setattr: %w", err), mount.Close())
	}
	return mount, nil
}

// socket listens where only the step can connect.
func (s *stepMounts) socket(r *record, m *build.StepSocket) (*os.File, error) {
	tmpfs, err := memoryFS(0)
	if err != nil {
		return nil, err
	}
	defer tmpfs.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", tmpfs.Fd(), memoryName)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the name will mean something else by then
	s.listen = append(s.listen, l)
	mount, err := single(r, tmpfs, m.Mode, m.UID, m.GID)
	if err != nil {
		return nil, err
	}
	s.serve.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if !s.conns.add(conn) {
				_ = conn.Close() // too many
				continue
			}
			s.serve.Go(func() {
				defer s.conns.remove(conn)
				m.Serve(conn)
			})
		}
	})
	return mount, nil
}

// connections are those that a step has open.
type connections struct {
	mu     sync.Mutex
	open   map[net.Conn]bool
	closed bool
}

// maxConnections bounds what one step can make this process hold open.
const maxConnections = 64

func (c *connections) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.open) >= maxConnections {
		return false
	}
	if c.open == nil {
		c.open = map[net.Conn]bool{}
	}
	c.open[conn] = true
	return true
}

func (c *connections) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, conn)
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		_ = conn.Close() // the step is over
	}
}
