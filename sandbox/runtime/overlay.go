package runtime

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/overlay"
)

// openTree clones the mount that dir lies in, beginning there, without attaching
// the clone; with a user namespace its ids are mapped.
func openTree(path string, recursive bool, userns *os.File) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if userns == nil {
		return f, nil
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|uint(flags&unix.AT_RECURSIVE), attr); err != nil {
		return nil, errors.Join(&os.PathError{Op: "map ids of", Path: path, Err: err}, f.Close())
	}
	return f, nil
}

// mountRoot makes the detached mount that becomes "/".
func mountRoot(o Overlay, readonly bool, userns *os.File) (*os.File, error) {
	if len(o.Lower) == 0 {
		return nil, errors.New("no lower directory")
	}
	if o.Upper != "" || len(o.Lower) > 1 {
		return mountOverlay(o, userns)
	}
	f, err := openTree(o.Lower[0], true, userns)
	if err != nil {
		return nil, err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readonly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
		return nil, errors.Join(fmt.Errorf("mount_setattr: %w", err), f.Close())
	}
	return f, nil
}

// mountOverlay stacks the layers. redirect_dir, metacopy and index stay off:
// layers come from strangers and must not carry meaning in overlayfs' xattrs.
//
// With a user namespace all layers are id-mapped clones. Overlayfs works in its
// scratch directory with the credentials of the mounter, host root, so the
// mapping has one id beyond the container's for it (see usernsMaps): without,
// the kernel refuses mkdir with EOVERFLOW.
//
// Overlayfs takes descriptors of detached mounts since Linux 6.15; for older
// kernels package overlay has another way to the same mount.
func mountOverlay(o Overlay, userns *os.File) (*os.File, error) {
	l, err := overlay.Open(overlay.Dirs{Lower: o.Lower, Upper: o.Upper, Work: o.Work},
		func(path string) (*os.File, error) { return openTree(path, false, userns) })
	if err != nil {
		return nil, err
	}
	defer l.Close()
	mount, err := overlayByFD(l, o)
	if err == nil {
		return mount, nil
	}
	fd, oldErr := l.Mount(overlayOptions(o), unix.MS_NODEV)
	if oldErr != nil {
		return nil, fmt.Errorf("%w; as on older kernels: %w", err, oldErr)
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// overlayOptions are all but the layers.
func overlayOptions(o Overlay) []string {
	options := []string{"redirect_dir=nofollow", "metacopy=off", "index=off"}
	if o.Upper != "" {
		options = append(options, "xino=off")
	}
	if o.Volatile {
		options = append(options, "volatile")
	}
	return options
}

func overlayByFD(l *overlay.Layers, o Overlay) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen overlay: %w", err)
	}
	c := &fsContext{fd: fd}
	defer unix.Close(fd)
	for _, f := range l.Lower {
		c.layer("lowerdir+", f)
	}
	if o.Upper != "" {
		c.layer("upperdir", l.Upper)
		c.layer("workdir", l.Work)
	}
	for _, option := range overlayOptions(o) {
		key, value, isSet := strings.Cut(option, "=")
		if isSet {
			c.set(key, value)
		} else {
			c.flag(key)
		}
	}
	return c.mount("overlay", unix.MOUNT_ATTR_NODEV)
}

// fsContext wraps fsopen(2)'s descriptor; after an error it does nothing.
type fsContext struct {
	fd  int
	err error
}

func (c *fsContext) did(what string, err error) {
	if c.err == nil && err != nil {
		c.err = fmt.Errorf("%s: %w%s", what, err, c.log())
	}
}

func (c *fsContext) set(key, value string) {
	if c.err == nil {
		c.did("mount option "+key+"="+value, unix.FsconfigSetString(c.fd, key, value))
	}
}

func (c *fsContext) flag(key string) {
	if c.err == nil {
		c.did("mount option "+key, unix.FsconfigSetFlag(c.fd, key))
	}
}

func (c *fsContext) layer(key string, f *os.File) {
	if c.err == nil {
		c.did(key+" "+f.Name(), unix.FsconfigSetFd(c.fd, key, int(f.Fd())))
	}
}

func (c *fsContext) mount(name string, attrs int) (*os.File, error) {
	if c.err == nil {
		c.did("mount "+name, unix.FsconfigCreate(c.fd))
	}
	if c.err != nil {
		return nil, c.err
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("fsmount %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// log is what the file system had to say about the last error (fsopen(2)).
func (c *fsContext) log() string {
	buf := make([]byte, 1024)
	n, err := unix.Read(c.fd, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}
