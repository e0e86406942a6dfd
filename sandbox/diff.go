package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Change is one difference between a container's files and its image.
type Change struct {
	Kind string `json:"kind"` // "A" added, "C" changed, "D" deleted
	Path string `json:"path"` // absolute
}

// Diff lists what a container has changed, by path: the content of its own layer.
// Volumes are not part of it, nor are the empty files that mounts were put on.
func (e *Engine) Diff(_ context.Context, ref string) ([]Change, error) {
	id, err := e.resolve(ref)
	if err != nil {
		return nil, err
	}
	r, err := e.load(id)
	if err != nil {
		return nil, err
	}
	changes, err := e.diff(r)
	if err != nil {
		return nil, fmt.Errorf("diff container %s: %w", short(id), err)
	}
	return changes, nil
}

func (e *Engine) diff(r *record) ([]Change, error) {
	lower, err := viewLayers(r.Lower)
	if err != nil {
		return nil, err
	}
	defer lower.Close() // read only: nothing can be lost
	upper, err := os.Open(e.upper(r.ID))
	if err != nil {
		return nil, err
	}
	defer upper.Close() // read only: nothing can be lost
	stubs, err := e.mountPoints(r)
	if err != nil {
		return nil, err
	}
	d := &differ{lower: lower, stubs: stubs, changes: []Change{}}
	if _, err := d.children(upper, ""); err != nil {
		return nil, err
	}
	slices.SortFunc(d.changes, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return d.changes, nil
}

// mountPoints are the places where a start puts something over the files.
func (e *Engine) mountPoints(r *record) ([]string, error) {
	spec, err := e.spec(r)
	if err != nil {
		return nil, err
	}
	var points []string
	for _, m := range spec.Mounts {
		points = append(points, strings.TrimPrefix(path.Clean(m.Destination), "/"))
	}
	return points, nil
}

// differ walks the upper directory of an overlay by descriptors: its container may
// run, and change it meanwhile.
type differ struct {
	lower   *rootView
	stubs   []string
	changes []Change
}

func (d *differ) add(kind, name string) {
	d.changes = append(d.changes, Change{kind, "/" + name})
}

// children compares what is in an open directory of the upper layer, and says
// whether anything in it is different.
func (d *differ) children(dir *os.File, prefix string) (different bool, err error) {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return false, fmt.Errorf("read /%s: %w", prefix, err)
	}
	for _, base := range names {
		changed, err := d.entry(dir, base, path.Join(prefix, base))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the directory was read
		}
		if err != nil {
			return false, fmt.Errorf("look at /%s: %w", path.Join(prefix, base), err)
		}
		different = different || changed
	}
	return different, nil
}

func (d *differ) entry(dir *os.File, base, name string) (different bool, err error) {
	var now, was unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &now, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	existed, err := d.below(name, &was)
	if err != nil {
		return false, err
	}
	kind := now.Mode & unix.S_IFMT
	switch {
	case kind == unix.S_IFCHR && now.Rdev == 0: // a whiteout
		if existed {
			d.add("D", name)
		}
		return existed, nil
	case kind == unix.S_IFDIR:
		return d.directory(dir, base, name, pair{now, was, existed})
	case !existed && now.Size == 0 && slices.Contains(d.stubs, name):
		return false, nil
	case existed:
		d.add("C", name)
	default:
		d.add("A", name)
	}
	return true, nil
}

// pair is what is known of a directory in both layers.
type pair struct {
	now, was unix.Stat_t
	existed  bool
}

func (d *differ) directory(dir *os.File, base, name string, p pair) (bool, error) {
	fd, err := unix.Openat(int(dir.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	sub := os.NewFile(uintptr(fd), base)
	defer sub.Close() // read only: nothing can be lost
	at := len(d.changes)
	different, err := d.children(sub, name)
	if err != nil {
		return false, err
	}
	isDir := p.existed && p.was.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && opaque(fd) {
		if err := d.hidden(sub, name); err != nil {
			return false, err
		}
		different = different || len(d.changes) > at
	}
	own := !isDir || p.now.Mode != p.was.Mode || p.now.Uid != p.was.Uid || p.now.Gid != p.was.Gid
	switch {
	case !p.existed && !different && d.leadsToStub(name):
		return false, nil
	case !different && !own:
		return false, nil // only copied up
	case p.existed:
		d.add("C", name)
	default:
		d.add("A", name)
	}
	return true, nil
}

// leadsToStub says that a directory is the place of a mount, or holds one.
func (d *differ) leadsToStub(name string) bool {
	return slices.ContainsFunc(d.stubs, func(s string) bool { return s == name || strings.HasPrefix(s, name+"/") })
}

// hidden lists what an opaque directory no longer shows of the image's.
func (d *differ) hidden(dir *os.File, name string) error {
	old, err := d.lower.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer old.Close() // read only: nothing can be lost
	names, err := old.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, base := range names {
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			d.add("D", path.Join(name, base))
		} else if err != nil {
			return err
		}
	}
	return nil
}

// below looks a path up in the image's layers, without following links.
func (d *differ) below(name string, st *unix.Stat_t) (bool, error) {
	fd, err := unix.Openat2(d.lower.fd, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	return true, unix.Fstat(fd, st)
}

// opaque says whether an upper directory hides the lower ones.
func opaque(fd int) bool {
	value := make([]byte, 8)
	n, err := unix.Fgetxattr(fd, "trusted.overlay.opaque", value)
	return err == nil && string(value[:n]) == "y"
}
