package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
	"naru/sandbox/runtime"
	"naru/sandbox/runtime/cgroup"
)

// Errors of the operations; errors.Is finds them.
var (
	// ErrExists: a container of that id is there already.
	ErrExists = errors.New("container with given ID already exists")
	// ErrNotExist: there is no container of that id.
	ErrNotExist = errors.New("container does not exist")
	// ErrState: the operation does not fit the container's status.
	ErrState = errors.New("wrong container status")
)

// Runtime is a set of containers in one directory.
type Runtime struct {
	// Root holds a directory per container; it should be on tmpfs.
	Root string
	// Warn is told what the specification allows to go on with.
	Warn func(message string)
}

// Container is the record of a container with the status that the kernel says.
type Container struct {
	specs.State
	Created time.Time   `json:"created"`
	Owner   int         `json:"owner"`  // user id of who created it
	Rootfs  string      `json:"rootfs"` // absolute path on the machine
	Cgroup  string      `json:"cgroup"`
	Config  *specs.Spec `json:"config"`

	rec   record
	pidfd int // -1: it has ended
}

// record is state.json.
type record struct {
	Version     int               `json:"version"`
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Created     time.Time         `json:"created"`
	Owner       int               `json:"owner"`
	Cgroup      string            `json:"cgroup"`
	Init        runtime.Solo      `json:"init"`
	Config      *specs.Spec       `json:"config"`
}

const (
	recordVersion = 1
	fileRecord    = "state.json"
	fileLock      = "lock"
	maxID         = 1024
)

func (r Runtime) warn(format string, args ...any) {
	if r.Warn != nil {
		r.Warn(fmt.Sprintf(format, args...))
	}
}

func (r Runtime) dir(id string) string { return filepath.Join(r.Root, id) }

func checkID(id string) error {
	bad := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_+-.", c))
	}
	if id == "" || len(id) > maxID || id[0] == '.' || strings.ContainsFunc(id, bad) {
		return fmt.Errorf("invalid id %q: letters, digits and _ + - . are allowed, and no . at its beginning", id)
	}
	return nil
}

// lock is held by whoever changes a container.
type lock struct{ f *os.File }

func (l lock) release() { l.f.Close() }

// lockNew makes and locks a container's directory.
func (r Runtime) lockNew(id string) (lock, error) {
	if err := os.MkdirAll(r.Root, 0o711); err != nil {
		return lock{}, err
	}
	for {
		if err := os.Mkdir(r.dir(id), 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
			return lock{}, err
		}
		l, err := r.lock(id)
		if errors.Is(err, ErrNotExist) {
			continue // deleted between the two
		}
		if err != nil {
			return lock{}, err
		}
		if _, err := os.Stat(filepath.Join(r.dir(id), fileRecord)); err == nil {
			l.release()
			return lock{}, fmt.Errorf("%w: %s", ErrExists, id)
		}
		if err := r.clear(id); err != nil { // of a creation that was killed
			l.release()
			return lock{}, err
		}
		return l, nil
	}
}

// openLocked is Open for what must not happen twice at a time; unlock closes it too.
func (r Runtime) openLocked(id string) (c *Container, unlock func(), err error) {
	l, err := r.lock(id)
	if err != nil {
		return nil, nil, err
	}
	if c, err = r.Open(id); err != nil {
		l.release()
		return nil, nil, err
	}
	return c, func() { c.Close(); l.release() }, nil
}

// lock waits for the container's lock.
func (r Runtime) lock(id string) (lock, error) {
	if err := checkID(id); err != nil {
		return lock{}, err
	}
	f, err := os.OpenFile(filepath.Join(r.dir(id), fileLock), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return lock{}, fmt.Errorf("%w: %s", ErrNotExist, id)
	}
	if err != nil {
		return lock{}, err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	var have, now unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &have)
	}
	if err != nil {
		f.Close()
		return lock{}, fmt.Errorf("lock container %s: %w", id, err)
	}
	if unix.Stat(f.Name(), &now) != nil || now.Ino != have.Ino {
		f.Close()
		return lock{}, fmt.Errorf("%w: %s", ErrNotExist, id) // deleted while we waited
	}
	return lock{f}, nil
}

// clear removes everything but the lock.
func (r Runtime) clear(id string) error {
	tmp, err := filepath.Glob(filepath.Join(r.dir(id), "."+fileRecord+".tmp-*"))
	if err != nil {
		return err
	}
	files := []string{fileRecord, runtime.FileGate, runtime.FileStatus}
	for _, name := range files {
		tmp = append(tmp, filepath.Join(r.dir(id), name))
	}
	for _, name := range tmp {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// remove removes the directory; the lock goes last.
func (r Runtime) remove(id string) error {
	if err := r.clear(id); err != nil {
		return err
	}
	return errors.Join(os.Remove(filepath.Join(r.dir(id), fileLock)), os.Remove(r.dir(id)))
}

func (r Runtime) save(rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	// The directory means nothing after a power cut: no disk is waited for.
	if err := atomicfile.Replace(filepath.Join(r.dir(rec.ID), fileRecord), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save container state: %w", err)
	}
	return nil
}

// Open reads a container's record and asks the kernel for its status.
func (r Runtime) Open(id string) (*Container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(r.dir(id), fileRecord))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotExist, id)
	}
	c := &Container{pidfd: -1}
	if err == nil {
		err = json.Unmarshal(b, &c.rec)
	}
	if err != nil {
		return nil, fmt.Errorf("read state of container %s: %w", id, err)
	}
	if c.rec.Version != recordVersion || c.rec.Config == nil || c.rec.ID != id {
		return nil, fmt.Errorf("read state of container %s: not a record of version %d of it", id, recordVersion)
	}
	return c, c.ask()
}

// ask fills in what is not written down.
func (c *Container) ask() error {
	rec := &c.rec
	c.State = specs.State{Version: rec.OCIVersion, ID: rec.ID, Bundle: rec.Bundle, Annotations: rec.Annotations, Status: specs.StateStopped}
	c.Created, c.Owner, c.Cgroup, c.Config = rec.Created, rec.Owner, rec.Cgroup, rec.Config
	c.Rootfs = rec.Config.Root.Path
	if !filepath.IsAbs(c.Rootfs) {
		c.Rootfs = filepath.Join(rec.Bundle, c.Rootfs)
	}
	state, pidfd, err := rec.Init.State()
	if err != nil {
		return fmt.Errorf("state of container %s: %w", rec.ID, err)
	}
	c.pidfd = pidfd
	if state == runtime.Stopped {
		return nil
	}
	c.Status, c.Pid = specs.ContainerState(state), rec.Init.Pid
	group, err := c.group()
	if err == nil && group.Frozen() {
		c.Status = specs.ContainerState(runtime.Paused)
	}
	return err
}

// Close drops the process's descriptor.
func (c *Container) Close() {
	if c.pidfd >= 0 {
		unix.Close(c.pidfd)
		c.pidfd = -1
	}
}

func (c *Container) group() (*cgroup.Group, error) {
	host, err := cgroup.Detect()
	if err != nil {
		return nil, err
	}
	return host.Open(c.rec.Cgroup), nil
}

// List returns all containers, by id. What is half made or half removed is no container.
func (r Runtime) List() ([]*Container, error) {
	entries, err := os.ReadDir(r.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var all []*Container
	for _, e := range entries {
		c, err := r.Open(e.Name())
		if errors.Is(err, ErrNotExist) {
			continue
		}
		if err != nil {
			r.warn("%v", err)
			continue
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *Container) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// cgroupPath is where a container's cgroup is: what the spec says, as a path below
// the root of every hierarchy, or a place of its own for each Root.
func (r Runtime) cgroupPath(id string, spec *specs.Spec) (string, error) {
	if p := spec.Linux.CgroupsPath; p != "" {
		path, err := cgroup.ParsePath(p)
		if err != nil {
			return "", fmt.Errorf("linux.cgroupsPath: %w", err)
		}
		return path, nil
	}
	h := fnv.New32a()
	h.Write([]byte(r.Root))
	return fmt.Sprintf("naru-oci-%08x/%s", h.Sum32(), id), nil
}
