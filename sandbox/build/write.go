package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/diskuse"
)

// owner is a user and a group, both 0..65535: more ids a layer cannot hold.
type owner struct{ uid, gid int }

// writer puts files into a layer. Where they go is found out through a view of
// the layer and those below; the files themselves are written when that is
// closed (put.go).
type writer struct {
	ctx     context.Context
	dst     *root // the view
	layer   layerAt
	owner   *owner      // of --chown; nil: a context's files are root's, others keep theirs
	mode    *modeChange // of --chmod; nil: files keep theirs
	now     unix.Timespec
	made    map[string]bool // directories that are new since the view was opened
	pending []placement
	dirs    []dirMeta // to be set when their content is there
	meter   *meter    // nil: nothing limits what is written
}

// dirMeta is what a directory shall look like.
type dirMeta struct {
	path string
	meta meta
}

const (
	dirMode     = 0o755
	maxID       = 65535
	whiteoutPfx = ".wh."
)

// newWriter returns a writer that can do what needs nothing but a view.
func newWriter(ctx context.Context, dst *root) *writer {
	now, err := unix.TimeToTimespec(time.Now())
	if err != nil {
		panic("internal error: the time does not fit: " + err.Error())
	}
	return &writer{ctx: ctx, dst: dst, now: now, made: map[string]bool{}}
}

// openWriter returns a writer for a layer. It has to be closed.
func openWriter(ctx context.Context, l layerAt) (*writer, error) {
	dst, err := view(l.Layer, l.lower)
	if err != nil {
		return nil, err
	}
	w := newWriter(ctx, dst)
	w.layer = l
	return w, nil
}

// close ends the view.
func (w *writer) close() error {
	if w.dst == nil {
		return nil
	}
	err := w.dst.Close()
	w.dst = nil
	return err
}

// flush writes what is pending. The view is closed for it: nobody may change a
// layer behind the back of an overlay that uses it (overlayfs.rst).
func (w *writer) flush() error {
	if err := w.close(); err != nil {
		return err
	}
	upper, err := openRoot(w.layer.Upper)
	if err != nil {
		return err
	}
	defer upper.Close()
	return w.writeTo(upper)
}

// writeTo writes what is pending into a directory.
func (w *writer) writeTo(upper *root) error {
	if err := w.put(upper); err != nil {
		return err
	}
	for i := len(w.dirs) - 1; i >= 0; i-- { // content first: it moves the times
		d := w.dirs[i]
		if err := upper.setMeta(d.path, d.meta); err != nil {
			return err
		}
	}
	w.pending, w.dirs = nil, nil
	return nil
}

// settle writes what is pending and opens the view again, if anything is.
func (w *writer) settle() error {
	if len(w.pending)+len(w.dirs) == 0 {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	// "volatile" leaves a mark that keeps the same directory from being used twice.
	work, err := openRoot(w.layer.Work)
	if err != nil {
		return err
	}
	err = errors.Join(work.removeAll("work"), work.Close())
	if err != nil {
		return err
	}
	clear(w.made)
	w.dst, err = view(w.layer.Layer, w.layer.lower)
	return err
}

// place finds a place for a pick at dest, an absolute path that means a directory if it
// ends in a slash or exists as one. The content of a directory is copied, not
// the directory, and one that exists keeps its owner and mode.
func (w *writer) place(p *pick, dest string) error {
	to, err := w.target(dest)
	if err != nil {
		return err
	}
	if !p.isDir() {
		st, err := w.dst.lstat(to)
		if err == nil && isDir(&st) {
			to = path.Join(to, p.name)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := w.settled(parentOf(to)); err != nil {
			return err
		}
	} else if err := w.mkdirAll(to); err != nil {
		return err
	}
	return w.entries(p, to)
}

// settled makes a directory and sees to it that the layer has it: one of the
// layers below is copied up by being touched.
func (w *writer) settled(dir string) error {
	if w.made[dir] {
		return nil
	}
	if err := w.mkdirAll(dir); err != nil {
		return err
	}
	return w.copyUp(dir)
}

// copyUp brings a directory of the layers below into this one, unchanged.
func (w *writer) copyUp(dir string) error {
	if dir == "" || w.made[dir] {
		return nil
	}
	st, err := w.dst.lstat(dir)
	if err != nil {
		return err
	}
	return w.dst.setTime(dir, st.Mtim)
}

// target makes the directory that dest needs and follows dest's links.
func (w *writer) target(dest string) (string, error) {
	need := dest
	if dir, last := path.Split(dest); last != "" && last != "." {
		need = dir
	}
	dir, err := w.dst.resolve(need)
	if err != nil {
		return "", err
	}
	if err := w.mkdirAll(dir); err != nil {
		return "", err
	}
	return w.dst.resolve(path.Clean(dest))
}

// mkdirAll makes p, which is resolved, and what is missing above it. What it
// makes belongs to --chown's owner and has --chmod's mode, as in BuildKit.
func (w *writer) mkdirAll(p string) error {
	if p == "" {
		return nil
	}
	st, err := w.dst.lstat(p)
	if err == nil {
		if !isDir(&st) {
			return pathError("mkdir", p, unix.ENOTDIR)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := w.mkdirAll(parentOf(p)); err != nil {
		return err
	}
	if err := checkName(p); err != nil {
		return err
	}
	if err := w.meter.add(diskuse.Use{Inodes: 1}); err != nil {
		return err
	}
	if err := w.dst.mkdir(p); err != nil {
		return err
	}
	m := meta{mode: w.mode.created(), mtime: w.now}
	if w.owner != nil {
		m.uid, m.gid = w.owner.uid, w.owner.gid
	}
	w.made[p] = true
	return w.dst.setMeta(p, m)
}

// entries places the files of a pick, its first one as to.
func (w *writer) entries(p *pick, to string) error {
	links := map[[2]uint64]string{} // where files that have several names went
	for i := range p.entries {
		e := &p.entries[i]
		target := to
		if e.rel != "" {
			target = below(to, e.rel)
		}
		if !isDir(&e.stat) {
			if err := w.file(p, e, target, links); err != nil {
				return err
			}
			continue
		}
		created, err := w.makeDir(target)
		if err != nil {
			return err
		}
		m, set := w.dirMeta(p, e, i > 0, created)
		if i == 0 && !set { // the destination keeps its looks, but is as old as the source
			m, set = meta{mode: keep, uid: -1, gid: -1, mtime: e.stat.Mtim}, true
		}
		if set {
			w.dirs = append(w.dirs, dirMeta{target, m})
		}
	}
	return nil
}

// dirMeta says what to set of a directory. As in BuildKit, one that exists keeps
// its looks if it is the destination, takes those of the source if it is below,
// and takes no more than the mode if it is only on the way to something.
func (w *writer) dirMeta(p *pick, e *entry, below, created bool) (m meta, set bool) {
	m = w.meta(p, e)
	switch {
	case created || below && !e.onWay:
		return m, true
	case below:
		return meta{mode: e.stat.Mode & 0o7777, uid: -1, gid: -1, mtime: m.mtime}, true // -1: as it is, chown(2)
	}
	return m, false
}

func (w *writer) meta(p *pick, e *entry) meta {
	m := meta{mode: w.mode.apply(e.stat.Mode), uid: int(e.stat.Uid), gid: int(e.stat.Gid), mtime: e.stat.Mtim, caps: e.caps}
	if p.src.context {
		m.uid, m.gid = 0, 0
	}
	if w.owner != nil {
		m.uid, m.gid = w.owner.uid, w.owner.gid
	}
	return m
}

func (w *writer) makeDir(p string) (created bool, err error) {
	if p == "" || w.made[p] {
		return false, nil
	}
	if !w.made[parentOf(p)] { // else there is nothing in it yet
		st, err := w.dst.lstat(p)
		switch {
		case err == nil && !isDir(&st):
			return false, fmt.Errorf("cannot copy a directory to /%s, which is none", p)
		case err == nil:
			return false, w.copyUp(p)
		case !errors.Is(err, fs.ErrNotExist):
			return false, err
		}
	}
	if err := checkName(p); err != nil {
		return false, err
	}
	if err := w.meter.add(diskuse.Use{Inodes: 1}); err != nil {
		return false, err
	}
	w.made[p] = true
	return true, w.dst.mkdir(p)
}

// file places what is no directory.
func (w *writer) file(p *pick, e *entry, to string, links map[[2]uint64]string) error {
	if err := checkName(to); err != nil {
		return err
	}
	pl := placement{src: p.src, e: e, to: to, meta: w.meta(p, e)}
	if !w.made[parentOf(to)] {
		st, err := w.dst.lstat(to)
		if err == nil && isDir(&st) {
			return fmt.Errorf("cannot replace the directory /%s by a file", to)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		pl.over = err == nil
	}
	if isFile(&e.stat) && e.stat.Nlink > 1 {
		id := [2]uint64{uint64(e.stat.Dev), e.stat.Ino}
		if pl.first = links[id]; pl.first == "" {
			links[id] = to
		}
	}
	w.pending = append(w.pending, pl)
	return nil
}

// text writes a file that came with the Dockerfile (a heredoc) to dest.
func (w *writer) text(name, data, dest string) error {
	if err := w.settle(); err != nil {
		return err
	}
	to, err := w.target(dest)
	if err != nil {
		return err
	}
	if st, err := w.dst.lstat(to); err == nil && isDir(&st) {
		to = path.Join(to, path.Base(name))
	}
	if err := w.makeRoom(to); err != nil {
		return err
	}
	f, err := w.dst.create(to)
	if err != nil {
		return err
	}
	m := meta{mode: w.mode.apply(unix.S_IFREG | 0o644), mtime: w.now}
	if w.owner != nil {
		m.uid, m.gid = w.owner.uid, w.owner.gid
	}
	_, err = io.WriteString(f, data)
	if err == nil {
		err = setFileMeta(f, m)
	}
	return errors.Join(err, f.Close())
}

// makeRoom removes what is at p, unless it is a directory.
func (w *writer) makeRoom(p string) error {
	if err := checkName(p); err != nil {
		return err
	}
	st, err := w.dst.lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case isDir(&st):
		return fmt.Errorf("cannot replace the directory /%s by a file", p)
	}
	return w.dst.remove(p)
}

// checkName refuses the names that mean "deleted" in a layer's tar.
func checkName(p string) error {
	if strings.HasPrefix(path.Base(p), whiteoutPfx) {
		return fmt.Errorf("/%s: a layer cannot hold names that begin with %s", p, whiteoutPfx)
	}
	return nil
}

func parentOf(p string) string {
	if dir := path.Dir(p); dir != "." {
		return dir
	}
	return ""
}
