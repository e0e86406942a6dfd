package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/xattr"
)

// Options are the choices of one Unpack.
type Options struct {
	Limits     Limits
	Compressed *Count // what the tar is decompressed from; nil: the tar is plain and the ratio not checked
}

// Result says what the caller has to know of an unpacked layer.
type Result struct {
	// Implied are the directories, parents first, that the tar needs but does
	// not contain. They were made with mode 0755 and owner 0:0, and cover those
	// of the layers below with it, which AdoptImplied repairs.
	Implied []string
	// Opaque says that the layer hides all layers below it. Overlayfs ignores
	// the marker on a layer's root, so the caller leaves those layers out.
	Opaque bool
}

// Unpack writes the layer tar r into the empty directory dir in overlay form.
// It reads r up to the end of the archive, not up to the end of r. After an
// error dir holds a part and is to be removed.
func Unpack(ctx context.Context, dir string, r io.Reader, o Options) (Result, error) {
	if o.Limits == (Limits{}) {
		o.Limits = DefaultLimits()
	}
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, fmt.Errorf("open layer directory: %w", err)
	}
	u := &unpacker{root: root, tar: tar.NewReader(r), options: o, buf: make([]byte, 128<<10), parent: -1, implied: map[string]bool{}}
	defer u.close()
	for {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // clean judges paths
			return Result{}, fmt.Errorf("read layer tar: %w", err)
		}
		if err := u.entry(ctx, h); err != nil {
			return Result{}, fmt.Errorf("unpack %q: %w", h.Name, err)
		}
	}
	if err := u.finishDirs(); err != nil {
		return Result{}, err
	}
	return Result{Implied: u.stillImplied(), Opaque: u.opaque}, nil
}

// unpacker is the state of one Unpack; used by one goroutine.
type unpacker struct {
	root    int
	tar     *tar.Reader
	options Options
	buf     []byte
	entries int64
	bytes   int64
	opaque  bool

	// The parent directory of the last entry stays open: neighbours in a tar
	// mostly share it. After a removal the path may mean another directory:
	// stale says to look it up again.
	parent     int
	parentPath string
	stale      bool

	dirs    []dirEnd
	implied map[string]bool
	order   []string // of implied
}

// dirEnd is what a directory gets last: each new child would change its time, and inherit
// its default ACL.
type dirEnd struct {
	path  string
	mtime unix.Timespec
	acl   map[string]string
}

func (u *unpacker) close() {
	u.forget()
	_ = unix.Close(u.root) // opened for reading: closing loses nothing
}

func (u *unpacker) forget() {
	if u.parent >= 0 {
		_ = unix.Close(u.parent)
	}
	u.parent = -1
}

func (u *unpacker) entry(ctx context.Context, h *tar.Header) error {
	if u.entries++; u.entries > u.options.Limits.Entries {
		return refuse("more than %d entries", u.options.Limits.Entries)
	}
	if h.Typeflag == tar.TypeXGlobalHeader { // git archive writes one; says nothing about files
		return nil
	}
	path, err := clean(h.Name, u.options.Limits.Depth)
	if err != nil {
		return err
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return refuse("owner %d:%d", h.Uid, h.Gid)
	}
	if path == "." {
		return u.rootEntry(h)
	}
	dir, base := split(path)
	if name, rest := marker(dir); name != "" {
		return refuse("%q is below the marker %q", rest, name)
	}
	if err := u.enter(dir); err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(dir, base)
	}
	return u.create(ctx, h, path, base)
}

// marker finds a component of dir that is a whiteout's name. Nothing can be
// below one, and as a plain directory it could not be packed again.
func marker(dir string) (name, in string) {
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, whiteoutPrefix) {
			return part, dir
		}
	}
	return "", ""
}

// rootEntry gives the root of the layer the metadata of the tar's "./".
func (u *unpacker) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return refuse("the root is not a directory")
	}
	if err := setMeta(u.root, h); err != nil {
		return err
	}
	u.dirs = append(u.dirs, newDirEnd(".", h))
	return nil
}

// enter makes u.parent the directory dir, creating what is missing.
func (u *unpacker) enter(dir string) error {
	if u.parent >= 0 && u.parentPath == dir && !u.stale {
		return nil
	}
	u.forget()
	fd, err := openIn(u.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		fd, err = u.makePath(dir)
	}
	if err != nil {
		return fmt.Errorf("open directory %q: %w", dir, err)
	}
	u.parent, u.parentPath, u.stale = fd, dir, false
	return nil
}

// makePath creates the missing components of dir one by one. Each is resolved
// in the root again, so a link planted between two of them changes nothing.
func (u *unpacker) makePath(dir string) (int, error) {
	at, path := -1, ""
	for part := range strings.SplitSeq(dir, "/") {
		parent, parentPath := at, path
		if parent < 0 {
			parent = u.root
		}
		if path = part; parentPath != "" {
			path = parentPath + "/" + part
		}
		next, err := u.step(parent, path, part)
		if at >= 0 {
			_ = unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

// step opens path, whose last component is name in parent, as a directory, or
// makes it one if there is nothing or a whiteout.
func (u *unpacker) step(parent int, path, name string) (int, error) {
	fd, err := openIn(u.root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		return fd, nil
	}
	var st unix.Stat_t
	statErr := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	hides := false
	switch {
	case errors.Is(statErr, unix.ENOENT):
	case statErr != nil:
		return -1, statErr
	case isWhiteout(&st):
		hides = true
		if err := unix.Unlinkat(parent, name, 0); err != nil {
			return -1, err
		}
	default: // a file, or a link that leads nowhere
		return -1, err
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		return -1, err
	}
	fd, err = unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := u.implyDir(fd, path, hides); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (u *unpacker) implyDir(fd int, path string, hides bool) error {
	if err := unix.Fchmod(fd, 0o755); err != nil { // whatever the umask is
		return err
	}
	if hides {
		return setOpaque(fd)
	}
	u.implied[path] = true
	u.order = append(u.order, path)
	u.dirs = append(u.dirs, dirEnd{path: path}) // the epoch: the same for everyone who unpacks it
	return nil
}

func (u *unpacker) stillImplied() []string {
	var paths []string
	for _, p := range u.order {
		if u.implied[p] {
			paths = append(paths, p)
			delete(u.implied, p)
		}
	}
	return paths
}

// finishDirs sets the times and default ACLs of the directories, children
// before parents. Of one that the tar has twice, or after its children, the last
// entry counts.
func (u *unpacker) finishDirs() error {
	u.forget()
	done := map[string]bool{}
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		if done[d.path] {
			continue
		}
		done[d.path] = true
		fd, err := openIn(u.root, d.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil { // a later entry put something else there
			continue
		}
		if err := errors.Join(d.set(fd), unix.Close(fd)); err != nil {
			return fmt.Errorf("finish directory %q: %w", d.path, err)
		}
	}
	return nil
}

func newDirEnd(path string, h *tar.Header) dirEnd {
	return dirEnd{path: path, mtime: timespec(h), acl: xattr.FromRecords(h.PAXRecords, isDefaultACL)}
}

func isDefaultACL(name string) bool { return name == xattr.DefaultACL }

func (d dirEnd) set(fd int) error {
	if err := xattr.Set(fd, d.acl); err != nil {
		return err
	}
	return setTimes(fd, "", d.mtime)
}
