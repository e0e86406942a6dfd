package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
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

// layerSet holds the descriptors of an overlay's directories.
type layerSet struct {
	lower       []*os.File // top first
	upper, work *os.File
	all         []*os.File
}

func (l *layerSet) close() {
	for _, f := range l.all {
		f.Close()
	}
}

// openLayers clones and maps each directory. Upper and work must lie in one
// mount for overlayfs, so their common parent is cloned.
func openLayers(o Overlay, userns *os.File) (*layerSet, error) {
	l := &layerSet{}
	keep := func(f *os.File, err error) (*os.File, error) {
		if err == nil {
			l.all = append(l.all, f)
		}
		return f, err
	}
	for i := len(o.Lower) - 1; i >= 0; i-- {
		f, err := keep(openTree(o.Lower[i], false, userns))
		if err != nil {
			return l, err
		}
		l.lower = append(l.lower, f)
	}
	if o.Upper == "" {
		return l, nil
	}
	parent := commonDir(o.Upper, o.Work)
	tree, err := keep(openTree(parent, false, userns))
	if err != nil {
		return l, err
	}
	if l.upper, err = keep(openBelow(tree, parent, o.Upper)); err != nil {
		return l, err
	}
	l.work, err = keep(openBelow(tree, parent, o.Work))
	return l, err
}

func commonDir(a, b string) string {
	dir := filepath.Dir(filepath.Clean(a))
	for dir != "/" && dir != "." && !strings.HasPrefix(filepath.Clean(b)+"/", dir+"/") {
		dir = filepath.Dir(dir)
	}
	return dir
}

func openBelow(tree *os.File, parent, path string) (*os.File, error) {
	rel, err := filepath.Rel(parent, path)
	if err != nil {
		return nil, err
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(int(tree.Fd()), rel, how)
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mountOverlay stacks the layers. redirect_dir, metacopy and index stay off:
// layers come from strangers and must not carry meaning in overlayfs' xattrs.
//
// With a user namespace all layers are id-mapped clones. Overlayfs works in its
// scratch directory with the credentials of the mounter, host root, so the
// mapping has one id beyond the container's for it (see usernsMaps): without,
// the kernel refuses mkdir with EOVERFLOW.
func mountOverlay(o Overlay, userns *os.File) (*os.File, error) {
	l, err := openLayers(o, userns)
	defer l.close()
	if err != nil {
		return nil, err
	}
	mount, err := overlayFrom(l, o, true)
	if err != nil && userns == nil { // descriptors instead of paths are Linux 6.13
		if byPath, pathErr := overlayFrom(l, o, false); pathErr == nil {
			return byPath, nil
		}
	}
	return mount, err
}

func overlayFrom(l *layerSet, o Overlay, byFD bool) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen overlay: %w", err)
	}
	c := &fsContext{fd: fd}
	defer unix.Close(fd)
	for i, f := range l.lower {
		c.layer("lowerdir+", f, o.Lower[len(o.Lower)-1-i], byFD)
	}
	if o.Upper != "" {
		c.layer("upperdir", l.upper, o.Upper, byFD)
		c.layer("workdir", l.work, o.Work, byFD)
		c.set("xino", "off")
	}
	c.set("redirect_dir", "nofollow")
	c.set("metacopy", "off")
	c.set("index", "off")
	if o.Volatile {
		c.flag("volatile")
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

func (c *fsContext) layer(key string, f *os.File, path string, byFD bool) {
	switch {
	case c.err != nil:
	case byFD:
		c.did(key+" "+path, unix.FsconfigSetFd(c.fd, key, int(f.Fd())))
	default:
		c.set(key, path)
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
