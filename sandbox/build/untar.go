package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/internal/decompress"
	"naru/sandbox/internal/diskuse"
)

// Limits of an archive that ADD unpacks. They are far above what honest archives
// hold, and low enough that a bomb ends before the disk does.
const (
	archiveEntries = 2_000_000
	archiveFloor   = 1 << 30 // bytes that are always allowed,
	archiveRatio   = 20      // and this many times the archive's own size
	archiveName    = 4096    // bytes of a path (PATH_MAX), so of its depth too
)

// isArchive tells whether ADD unpacks a file: its content, once decompressed,
// begins with a tar header.
func isArchive(f io.Reader) bool {
	r, _, err := decompress.Open(f)
	if err != nil {
		return false // begins like a compressed file and is none
	}
	defer r.Close() // read only: nothing can be lost
	_, err = tar.NewReader(r).Next()
	return err == nil
}

// bounded ends with an error, not with the end of the file, when too much was read.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errBomb
	}
	return n, err
}

var errBomb = errors.New("the archive unpacks to more than is allowed for its size")

// unpack is place for an archive. It reports false, and has done nothing, if
// the pick is none.
func (w *writer) unpack(p *pick, dest string) (bool, error) {
	e := &p.entries[0]
	if !isFile(&e.stat) {
		return false, nil
	}
	f, err := p.src.root.open(e.path)
	if err != nil {
		return false, err
	}
	defer f.Close() // read only: nothing can be lost
	if !isArchive(f) {
		return false, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	if err := w.settle(); err != nil {
		return false, err
	}
	dir, err := w.dst.resolve(dest)
	if err != nil {
		return false, err
	}
	mode := w.mode
	w.mode = nil // --chmod is for files that are copied
	err = w.mkdirAll(dir)
	if w.mode = mode; err != nil {
		return false, err
	}
	into, err := w.dst.sub(dir)
	if err != nil {
		return false, err
	}
	defer into.Close()
	x := extraction{ctx: w.ctx, into: into, owner: w.owner, left: archiveFloor + archiveRatio*e.stat.Size, now: w.now, buf: make([]byte, 64<<10), meter: w.meter}
	if err := x.run(f); err != nil {
		return false, fmt.Errorf("unpack /%s: %w", e.path, err)
	}
	clear(w.made) // it may have replaced any of them
	return true, w.stillHas(f, e)
}

// stillHas checks that an archive is what its key says, also after it was read.
func (w *writer) stillHas(f *os.File, e *entry) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return pathError("read", e.path, err)
	}
	if sum(h.Sum(nil)) != e.sum {
		return changed(e.path)
	}
	return nil
}

// extraction writes an archive into a directory. The directory is the root of
// all its paths and links: what an archive says of "/" or ".." ends there.
type extraction struct {
	ctx   context.Context
	into  *root
	owner *owner // of --chown, nil: as archived
	left  int64  // bytes that may still be written
	now   unix.Timespec
	buf   []byte
	dirs  []dirMeta
	meter *meter // nil: only left limits it
}

func (x *extraction) run(f io.Reader) error {
	r, _, err := decompress.Open(f)
	if err != nil {
		return err
	}
	defer r.Close() // read only: nothing can be lost
	tr := tar.NewReader(&bounded{r, x.left})
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if n >= archiveEntries {
			return fmt.Errorf("more than %d entries", archiveEntries)
		}
		if err := context.Cause(x.ctx); err != nil {
			return err
		}
		if err := x.entry(h, tr); err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
	}
	for i := len(x.dirs) - 1; i >= 0; i-- { // content first: it moves the times
		d := x.dirs[i]
		st, err := x.into.lstat(d.path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !isDir(&st) {
			continue // a later entry has replaced it
		}
		if err != nil {
			return err
		}
		if err := x.into.setMeta(d.path, d.meta); err != nil {
			return err
		}
	}
	return nil
}

func (x *extraction) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	switch {
	case strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0):
		return errors.New("name has a zero byte")
	case len(h.Name) > archiveName || len(h.Linkname) > archiveName:
		return fmt.Errorf("name is longer than %d bytes", archiveName)
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		return nil // the directory itself stays as it is
	}
	if err := checkName(name); err != nil {
		return err
	}
	dir, err := x.into.resolve(parentOf(name))
	if err != nil {
		return err
	}
	if err := x.parents(dir); err != nil {
		return err
	}
	p := path.Join(dir, path.Base(name))
	m, err := x.meta(h)
	if err != nil {
		return err
	}
	st, err := x.into.lstat(p)
	if err == nil && (!isDir(&st) || h.Typeflag != tar.TypeDir) {
		err = x.into.removeAll(p)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return x.create(h, p, m, content)
}

func (x *extraction) meta(h *tar.Header) (meta, error) {
	m := meta{mode: uint32(h.Mode) & 0o7777, uid: h.Uid, gid: h.Gid}
	if x.owner != nil {
		m.uid, m.gid = x.owner.uid, x.owner.gid
	}
	if m.uid < 0 || m.uid > maxID || m.gid < 0 || m.gid > maxID {
		return m, fmt.Errorf("owner %d:%d is outside 0..%d; give another with --chown", m.uid, m.gid, maxID)
	}
	mtime := h.ModTime
	if mtime.Before(time.Unix(0, 0)) {
		mtime = time.Unix(0, 0)
	}
	ts, err := unix.TimeToTimespec(mtime)
	if err != nil {
		return m, err
	}
	m.mtime = ts
	if c, ok := h.PAXRecords["SCHILY.xattr."+capsName]; ok {
		m.caps = []byte(c)
	}
	return m, nil
}

// parents makes the directories that an archive has no entries for.
func (x *extraction) parents(dir string) error {
	if dir == "" {
		return nil
	}
	_, err := x.into.lstat(dir)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := x.parents(parentOf(dir)); err != nil {
		return err
	}
	if err := checkName(dir); err != nil {
		return err
	}
	if err := x.meter.add(diskuse.Use{Inodes: 1}); err != nil {
		return err
	}
	if err := x.into.mkdir(dir); err != nil {
		return err
	}
	return x.into.setMeta(dir, meta{mode: dirMode, mtime: x.now})
}

func (x *extraction) create(h *tar.Header, p string, m meta, content io.Reader) error {
	if h.Typeflag != tar.TypeLink {
		if err := x.meter.add(diskuse.Use{Inodes: 1}); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := x.into.mkdir(p); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		x.dirs = append(x.dirs, dirMeta{p, m})
		return nil
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.file(p, m, content)
	case tar.TypeSymlink:
		if err := x.into.symlink(h.Linkname, p); err != nil {
			return err
		}
		if err := x.into.lchown(p, m.uid, m.gid); err != nil {
			return err
		}
		return x.into.setTime(p, m.mtime)
	case tar.TypeLink:
		return x.link(h.Linkname, p)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
		if err := x.into.mknod(p, kind, unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))); err != nil {
			return err
		}
		return x.into.setMeta(p, m)
	}
	return fmt.Errorf("type %q is none that a layer can hold", h.Typeflag)
}

// file writes a file. Zeros become holes: a sparse file of an archive can be of
// any size.
func (x *extraction) file(p string, m meta, content io.Reader) error {
	f, err := x.into.create(p)
	if err != nil {
		return err
	}
	size, err := x.copy(f, content)
	if err == nil {
		err = x.meter.settle(int(f.Fd()), size)
	}
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = setFileMeta(f, m)
	}
	return errors.Join(err, f.Close())
}

func (x *extraction) copy(f *os.File, content io.Reader) (size int64, err error) {
	for {
		if err := context.Cause(x.ctx); err != nil {
			return size, err
		}
		n, err := io.ReadFull(content, x.buf)
		if x.left -= int64(n); x.left < 0 {
			return size, errBomb
		}
		hole := n > 0 && isZero(x.buf[:n])
		use := diskuse.Use{Bytes: int64(n), Size: int64(n)}
		if hole {
			use.Bytes = 0
		}
		if err := x.meter.add(use); err != nil {
			return size, err
		}
		if n > 0 && !hole {
			if _, err := f.WriteAt(x.buf[:n], size); err != nil {
				return size, err
			}
		}
		size += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF && n < len(x.buf) {
			return size, endOf(content)
		}
		if err != nil {
			return size, err
		}
	}
}

// endOf tells the end of a file from an archive that was cut off, which
// io.ReadFull reports alike.
func endOf(content io.Reader) error {
	var one [1]byte
	if _, err := content.Read(one[:]); err != io.EOF {
		return err
	}
	return nil
}

// link makes another name of a file of this archive, or of one that was there.
func (x *extraction) link(target, p string) error {
	dir, base := path.Split(path.Clean("/" + target))
	dir, err := x.into.resolve(dir)
	if err != nil {
		return err
	}
	return x.into.link(path.Join(dir, base), p)
}
