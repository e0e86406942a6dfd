package build

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// owner is a user and a group, both 0..65535: more ids a layer cannot hold.
type owner struct{ uid, gid int }

// writer puts files into a layer, through a view of it and the layers below.
type writer struct {
	ctx   context.Context
	dst   *root
	src   *source
	owner *owner  // of --chown; nil: a context's files are root's, others keep theirs
	mode  *uint32 // of --chmod; nil: files keep theirs
	now   unix.Timespec
	buf   []byte
}

const (
	dirMode     = 0o755
	maxID       = 65535
	whiteoutPfx = ".wh."
)

func newWriter(ctx context.Context, dst *root) *writer {
	now, err := unix.TimeToTimespec(time.Now())
	if err != nil {
		panic("internal error: the time does not fit: " + err.Error())
	}
	return &writer{ctx: ctx, dst: dst, now: now, buf: make([]byte, 256<<10)}
}

// place copies a pick to dest, an absolute path that means a directory if it
// ends in a slash or exists as one. The content of a directory is copied, not
// the directory, and one that exists keeps its owner and mode.
func (w *writer) place(p *pick, dest string) error {
	to, err := w.target(dest)
	if err != nil {
		return err
	}
	st, err := w.dst.lstat(to)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := to
	if !p.isDir() {
		if exists && isDir(&st) {
			to = path.Join(to, p.name)
		}
		dir = parentOf(to)
	}
	if err := w.mkdirAll(dir); err != nil {
		return err
	}
	return w.entries(p, to)
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
	if err := w.dst.mkdir(p); err != nil {
		return err
	}
	m := meta{mode: dirMode, mtime: w.now}
	if w.mode != nil {
		m.mode = *w.mode & 0o777
	}
	if w.owner != nil {
		m.uid, m.gid = w.owner.uid, w.owner.gid
	}
	return w.dst.setMeta(p, m)
}

// entries writes the files of a pick, its first one as to.
func (w *writer) entries(p *pick, to string) error {
	type made struct {
		path string
		meta meta
	}
	var dirs []made
	links := map[[2]uint64]string{}
	for i := range p.entries {
		e := &p.entries[i]
		target := to
		if e.rel != "" {
			target = below(to, e.rel)
		}
		if isDir(&e.stat) {
			created, err := w.makeDir(target)
			if err != nil {
				return err
			}
			if i > 0 || created {
				dirs = append(dirs, made{target, w.meta(e)})
			}
			continue
		}
		if err := w.file(e, target, links); err != nil {
			return err
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- { // content first: it moves the times
		if err := w.dst.setMeta(dirs[i].path, dirs[i].meta); err != nil {
			return err
		}
	}
	if p.isDir() {
		return w.dst.setTime(to, p.entries[0].stat.Mtim)
	}
	return nil
}

func (w *writer) meta(e *entry) meta {
	m := meta{mode: e.stat.Mode & 0o7777, uid: int(e.stat.Uid), gid: int(e.stat.Gid), mtime: e.stat.Mtim, caps: e.caps}
	if w.src.context {
		m.uid, m.gid = 0, 0
	}
	if w.owner != nil {
		m.uid, m.gid = w.owner.uid, w.owner.gid
	}
	if w.mode != nil {
		m.mode = *w.mode
	}
	return m
}

func (w *writer) makeDir(p string) (created bool, err error) {
	if p == "" {
		return false, nil
	}
	st, err := w.dst.lstat(p)
	switch {
	case err == nil && !isDir(&st):
		return false, fmt.Errorf("cannot copy a directory to /%s, which is none", p)
	case err == nil:
		return false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if err := checkName(p); err != nil {
		return false, err
	}
	return true, w.dst.mkdir(p)
}

// clear makes room for a file at p.
func (w *writer) clear(p string) error {
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

// file writes what is no directory. links holds where the files of this pick
// that have several names went.
func (w *writer) file(e *entry, to string, links map[[2]uint64]string) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	if err := w.clear(to); err != nil {
		return err
	}
	m := w.meta(e)
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		id := [2]uint64{uint64(e.stat.Dev), e.stat.Ino}
		if old, ok := links[id]; ok {
			return w.dst.link(old, to)
		}
		if e.stat.Nlink > 1 {
			links[id] = to
		}
		return w.content(e, to, m)
	case unix.S_IFLNK:
		if err := w.dst.symlink(e.link, to); err != nil {
			return err
		}
		if err := w.dst.lchown(to, m.uid, m.gid); err != nil {
			return err
		}
		return w.dst.setTime(to, m.mtime)
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
		if err := w.dst.mknod(to, e.stat.Mode, e.stat.Rdev); err != nil {
			return err
		}
		return w.dst.setMeta(to, m)
	}
	return fmt.Errorf("internal error: /%s has type %o", e.path, e.stat.Mode&unix.S_IFMT)
}

// content copies a regular file. What is written must have the sum that went
// into the step's key, or the cache would hold something else under it.
func (w *writer) content(e *entry, to string, m meta) error {
	in, err := w.src.root.open(e.path)
	if err != nil {
		return err
	}
	defer in.Close() // read only: nothing can be lost
	out, err := w.dst.create(to)
	if err != nil {
		return err
	}
	err = w.copyChecked(out, in, e)
	if err == nil {
		err = setFileMeta(out, m)
	}
	return errors.Join(err, out.Close())
}

func (w *writer) copyChecked(out io.Writer, in io.Reader, e *entry) error {
	var h hash.Hash = sha256.New()
	// Wrapped, so that neither side's own shortcut passes by the hash.
	if _, err := io.CopyBuffer(io.MultiWriter(out, h), struct{ io.Reader }{in}, w.buf); err != nil {
		return pathError("copy", e.path, err)
	}
	if sum(h.Sum(nil)) != e.sum {
		return changed(e.path)
	}
	return nil
}

// text writes a file that came with the Dockerfile (a heredoc) to dest.
func (w *writer) text(name, data, dest string) error {
	to, err := w.target(dest)
	if err != nil {
		return err
	}
	if st, err := w.dst.lstat(to); err == nil && isDir(&st) {
		to = path.Join(to, path.Base(name))
	}
	if err := w.clear(to); err != nil {
		return err
	}
	f, err := w.dst.create(to)
	if err != nil {
		return err
	}
	m := meta{mode: 0o644, mtime: w.now}
	if w.owner != nil {
		m.uid, m.gid = w.owner.uid, w.owner.gid
	}
	if w.mode != nil {
		m.mode = *w.mode
	}
	_, err = io.WriteString(f, data)
	if err == nil {
		err = setFileMeta(f, m)
	}
	return errors.Join(err, f.Close())
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
