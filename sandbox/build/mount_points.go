package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// points are the mount points that a step needs and its layers do not have. They are
// made in its layer before it runs, and taken out when all its processes are gone: by
// descriptor, below the layer, and only what still is what was made (CVE-2024-23652).
type points struct {
	made []point  // parents first
	near []string // what was there, and held the topmost of them or the mount itself
}

type point struct {
	path string // without links
	dir  bool
	ino  uint64
	mode uint32
}

// makePoints finds the place of every mount, as the step will see it, and makes what
// is missing.
func (r *stageRun) makePoints(l *image.Layer, lower []string, mounts []StepMount) (_ *points, err error) {
	ps := &points{}
	if len(mounts) == 0 {
		return ps, nil
	}
	tree, err := view(l, lower)
	if err != nil {
		return nil, err
	}
	defer func() {
		// A volatile overlay leaves a mark there that keeps it from being mounted again
		// (Linux Documentation filesystems/overlayfs, "Volatile mount").
		err = errors.Join(err, tree.Close(), os.RemoveAll(filepath.Join(l.Work, "work")))
	}()
	var inside []string // of the step's mounts
	for _, m := range mounts {
		p, err := tree.resolve(m.Target)
		if err != nil {
			return nil, err
		}
		if !underAny(p, append(inside, "dev", "proc", "sys")) {
			if err := ps.make(tree, p, m.dir); err != nil {
				return nil, err
			}
		}
		inside = append(inside, p)
	}
	return ps, nil
}

// underAny tells whether p is one of the directories or below one.
func underAny(p string, dirs []string) bool {
	for _, d := range dirs {
		if p == d || strings.HasPrefix(p, d+"/") {
			return true
		}
	}
	return false
}

func (ps *points) make(tree *root, p string, dir bool) error {
	if p == "" {
		return errors.New("a mount on / would hide the whole file system")
	}
	st, err := tree.lstat(p)
	if err == nil {
		if isDir(&st) != dir {
			return pathError("mount on", p, map[bool]error{true: unix.ENOTDIR, false: unix.EISDIR}[dir])
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if parent := parentOf(p); parent != "" {
		if err := ps.make(tree, parent, true); err != nil {
			return err
		}
	}
	mode := uint32(dirMode)
	if dir {
		err = tree.mkdir(p)
	} else {
		mode = 0o644
		var f interface{ Close() error }
		if f, err = tree.create(p); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return err
	}
	if parent := parentOf(p); len(ps.made) == 0 || ps.made[len(ps.made)-1].path != parent {
		ps.near = append(ps.near, parent)
	}
	if err := tree.setMode(p, mode); err != nil {
		return err
	}
	if st, err = tree.lstat(p); err != nil {
		return err
	}
	ps.made = append(ps.made, point{p, dir, st.Ino, st.Mode})
	return nil
}

// setMode is chmod of what is no link.
func (r *root) setMode(p string, mode uint32) error {
	fd, err := r.openAt(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return pathError("chmod", p, unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode))
}

// drop takes the mount points out of a layer again.
func (ps *points) drop(tree, below *root) error {
	for i := len(ps.made) - 1; i >= 0; i-- {
		m := ps.made[i]
		st, err := tree.lstat(m.path)
		if err != nil || st.Mode != m.mode || st.Uid != 0 || st.Gid != 0 || !m.dir && st.Size != 0 || !m.dir && st.Ino != m.ino {
			continue // the step has replaced it, or made it its own
		}
		if err := tree.remove(m.path); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	for _, p := range ps.near {
		if err := dropCopied(tree, below, p); err != nil {
			return err
		}
	}
	return nil
}

// dropCopied removes directories from a layer, upwards, that are in it only because
// something below them was: empty ones that look as they did before.
func dropCopied(tree, below *root, p string) error {
	for ; p != ""; p = parentOf(p) {
		st, err := tree.lstat(p)
		if err != nil || !isDir(&st) {
			return nil
		}
		old, err := below.lstat(p)
		if err != nil || old.Mode != st.Mode || old.Uid != st.Uid || old.Gid != st.Gid || tree.isOpaque(p) {
			return nil
		}
		if err := tree.remove(p); errors.Is(err, unix.ENOTEMPTY) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}
