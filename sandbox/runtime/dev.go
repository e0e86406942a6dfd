package runtime

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are the nodes that runtime-spec demands in every /dev.
func defaultDevices() []specs.LinuxDevice {
	char := func(name string, minor int64, major int64) specs.LinuxDevice {
		mode := fs.FileMode(0o666)
		return specs.LinuxDevice{Path: "/dev/" + name, Type: "c", Major: major, Minor: minor, FileMode: &mode}
	}
	return []specs.LinuxDevice{
		char("null", 3, 1), char("zero", 5, 1), char("full", 7, 1),
		char("random", 8, 1), char("urandom", 9, 1), char("tty", 0, 5),
	}
}

func devLinks() map[string]string {
	return map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
		"stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	}
}

// mountDev makes the container's /dev out of sight of the image: a detached
// tmpfs with its nodes, so that no symlink in the image can send a mknod
// elsewhere (CVE-2021-30465 and its kin). Its directories for further mounts exist too.
func mountDev(m specs.Mount, spec *specs.Spec, ids idMap) (*os.File, error) {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen tmpfs: %w", err)
	}
	defer unix.Close(fd)
	c := &fsContext{fd: fd}
	opt := parseOptions(m.Options)
	c.set("source", cmp.Or(m.Source, "tmpfs"))
	for _, kv := range opt.data {
		c.set(kv[0], kv[1])
	}
	c.set("uid", fmt.Sprint(ids.uid(0)))
	c.set("gid", fmt.Sprint(ids.gid(0)))
	dev, err := c.mount("tmpfs on /dev", int(opt.set&^unix.MOUNT_ATTR_RDONLY&^unix.MOUNT_ATTR_NODEV))
	if err != nil {
		return nil, err
	}
	if err := populateDev(dev, spec, ids); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	return dev, nil
}

func populateDev(dev *os.File, spec *specs.Spec, ids idMap) error {
	for _, d := range append(defaultDevices(), spec.Linux.Devices...) {
		if _, link := devLinks()[strings.TrimPrefix(d.Path, "/dev/")]; link || !strings.HasPrefix(d.Path, "/dev/") {
			continue // a link, ptmx above all; or elsewhere in the root, where the init makes it
		}
		if err := makeNode(dev, d, ids); err != nil {
			return fmt.Errorf("make %s: %w", d.Path, err)
		}
	}
	for name, target := range devLinks() {
		if err := unix.Symlinkat(target, int(dev.Fd()), name); err != nil {
			return fmt.Errorf("link /dev/%s: %w", name, err)
		}
		if err := unix.Fchownat(int(dev.Fd()), name, ids.uid(0), ids.gid(0), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown /dev/%s: %w", name, err)
		}
	}
	return nil
}

func makeNode(dev *os.File, d specs.LinuxDevice, ids idMap) error {
	name, ok := strings.CutPrefix(filepath.Clean(d.Path), "/dev/")
	if !ok {
		return errors.New("not a path below /dev")
	}
	n := nodeOf(d)
	if n.kind == 0 {
		return fmt.Errorf("unknown device type %q", d.Type)
	}
	at := int(dev.Fd())
	for i, c := range name { // the file system is ours and still out of sight: no name in it leads elsewhere
		if c != '/' {
			continue
		}
		if err := unix.Mkdirat(at, name[:i], 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	err := unix.Mknodat(at, name, n.kind|n.mode, n.dev)
	if errors.Is(err, unix.EEXIST) {
		err = nil // a default one that is listed in the spec too, which then says who owns it
	}
	if err == nil {
		err = unix.Fchownat(at, name, ids.uid(n.uid), ids.gid(n.gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Fchmodat(at, name, n.mode, 0) // past the umask
	}
	return err
}

// node is a device in the kernel's terms; a kind of 0 is an unknown type.
type node struct {
	kind, mode, uid, gid uint32
	dev                  int
}

func nodeOf(d specs.LinuxDevice) node {
	n := node{mode: 0o666, dev: int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))}
	n.kind = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
	if d.FileMode != nil {
		n.mode = uint32(*d.FileMode) & 0o777
	}
	if d.UID != nil {
		n.uid = *d.UID
	}
	if d.GID != nil {
		n.gid = *d.GID
	}
	return n
}

// privateNull opens a null device on a file system of its own. Whoever gets the
// host's /dev/null as a standard stream could fchmod(2) it for everybody.
func privateNull() (*os.File, error) {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen tmpfs: %w", err)
	}
	defer unix.Close(fd)
	c := &fsContext{fd: fd}
	c.set("source", "null")
	dir, err := c.mount("tmpfs for a null device", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := unix.Mknodat(int(dir.Fd()), "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return nil, fmt.Errorf("make null device: %w", err)
	}
	return nullOf(dir)
}

// nullOf opens the null device of a /dev that is the container's own: for it that is
// as good as one of a file system more.
func nullOf(dir *os.File) (*os.File, error) {
	null, err := unix.Openat(int(dir.Fd()), "null", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open null device: %w", err)
	}
	return os.NewFile(uintptr(null), "null"), nil
}
