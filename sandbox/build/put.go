package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// placement is a file whose place in the layer is known. It is written when the
// view of the layer is closed: into the layer's own directory, by several
// goroutines, relative to open directories.
type placement struct {
	src   *source
	e     *entry
	to    string // in the layer, without links
	over  bool   // something may be there
	first string // another name of the same file, which is placed too; "": none
	meta  meta
}

// chunk is how many files of one directory one goroutine takes.
const chunk = 256

// put writes placements. Those of one directory keep their order if they come
// from several arguments: the last one stays.
type put struct {
	ctx   context.Context
	upper *root
	umask uint32
	// noClone is set when the file system has refused to share blocks.
	noClone atomic.Bool
}

func (w *writer) put(upper *root) error {
	p := &put{ctx: w.ctx, upper: upper, umask: umask()}
	group, ctx := errgroup.WithContext(w.ctx)
	group.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	p.ctx = ctx
	for _, job := range jobsOf(w.pending) {
		group.Go(func() error { return p.job(job) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i := range w.pending {
		if pl := &w.pending[i]; pl.first != "" {
			if err := p.link(pl); err != nil {
				return err
			}
		}
	}
	return nil
}

// jobsOf cuts placements into what can be written side by side.
func jobsOf(list []placement) [][]*placement {
	byDir := map[string][]*placement{}
	var order []string
	for i := range list {
		pl := &list[i]
		if pl.first != "" {
			continue
		}
		dir := parentOf(pl.to)
		if byDir[dir] == nil {
			order = append(order, dir)
		}
		byDir[dir] = append(byDir[dir], pl)
	}
	var jobs [][]*placement
	for _, dir := range order {
		job := byDir[dir]
		for len(job) > chunk && distinct(job) {
			jobs, job = append(jobs, job[:chunk]), job[chunk:]
		}
		jobs = append(jobs, job)
	}
	return jobs
}

// distinct tells whether no name is there twice. Names of one walk ascend.
func distinct(job []*placement) bool {
	for i := 1; i < len(job); i++ {
		if job[i-1].to >= job[i].to {
			return false
		}
	}
	return true
}

// worker is what one job has open.
type worker struct {
	*put
	dir    int  // of the layer
	setgid bool // its files get its group
	src    int  // directory of the source, -1: none
	srcOf  *source
	srcAt  string
	buf    []byte
}

func (p *put) job(list []*placement) error {
	fd, err := p.upper.openAt(parentOf(list[0].to), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", parentOf(list[0].to), err)
	}
	w := &worker{put: p, dir: fd, setgid: st.Mode&unix.S_ISGID != 0, src: -1, buf: make([]byte, 64<<10)}
	defer w.closeSource()
	for _, pl := range list {
		if err := context.Cause(p.ctx); err != nil {
			return err
		}
		if err := w.write(pl); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) closeSource() {
	if w.src >= 0 {
		unix.Close(w.src)
	}
	w.src = -1
}

// source opens the directory of the source that holds a file.
func (w *worker) source(pl *placement) (dir int, err error) {
	at := parentOf(pl.e.path)
	if w.src < 0 || w.srcAt != at || w.srcOf != pl.src {
		w.closeSource()
		if w.src, err = pl.src.root.openAt(at, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return -1, err
		}
		w.srcOf, w.srcAt = pl.src, at
	}
	return w.src, nil
}

func (w *worker) write(pl *placement) error {
	name := path.Base(pl.to)
	if pl.over {
		if err := w.clear(pl.to); err != nil {
			return err
		}
	}
	err := w.create(pl, name)
	if errors.Is(err, fs.ErrExist) && !pl.over { // two arguments with the same name
		if err = w.clear(pl.to); err == nil {
			err = w.create(pl, name)
		}
	}
	return err
}

// clear makes room for a file.
func (w *worker) clear(to string) error {
	err := unix.Unlinkat(w.dir, path.Base(to), 0)
	switch err {
	case unix.ENOENT:
		return nil
	case unix.EISDIR:
		return fmt.Errorf("cannot replace the directory /%s by a file", to)
	}
	return pathError("remove", to, err)
}

func (w *worker) create(pl *placement, name string) error {
	m := pl.meta
	switch pl.e.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return w.file(pl, name)
	case unix.S_IFLNK:
		if err := unix.Symlinkat(pl.e.link, w.dir, name); err != nil {
			return pathError("symlink", pl.to, err)
		}
		if m.uid != 0 || m.gid != 0 || w.setgid {
			if err := unix.Fchownat(w.dir, name, m.uid, m.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return pathError("chown", pl.to, err)
			}
		}
		return pathError("set times", pl.to, unix.UtimesNanoAt(w.dir, name, []unix.Timespec{m.mtime, m.mtime}, unix.AT_SYMLINK_NOFOLLOW))
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
		if err := w.upper.mknod(pl.to, pl.e.stat.Mode, pl.e.stat.Rdev); err != nil {
			return err
		}
		return w.upper.setMeta(pl.to, m)
	}
	return fmt.Errorf("internal error: /%s has type %o", pl.e.path, pl.e.stat.Mode&unix.S_IFMT)
}

// file copies a regular file. What is written must have the sum that went into
// the step's key, or the cache would hold something else under it.
func (w *worker) file(pl *placement, name string) error {
	dir, err := w.source(pl)
	if err != nil {
		return err
	}
	in, err := unix.Openat(dir, path.Base(pl.e.path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", pl.e.path, err)
	}
	defer unix.Close(in)
	mode := pl.meta.mode & 0o777
	out, err := unix.Openat(w.dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return pathError("create", pl.to, err)
	}
	if err = w.content(pl, in, out); err == nil {
		err = w.setMeta(pl, out)
	}
	if closed := unix.Close(out); err == nil && closed != nil {
		err = pathError("close", pl.to, closed)
	}
	return err
}

// setMeta leaves out what creation has already done.
func (w *worker) setMeta(pl *placement, fd int) error {
	m := pl.meta
	if m.uid != 0 || m.gid != 0 || w.setgid {
		if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
			return pathError("chown", pl.to, err)
		}
	}
	if m.mode&0o7777 != m.mode&0o777&^w.umask {
		if err := unix.Fchmod(fd, m.mode&0o7777); err != nil {
			return pathError("chmod", pl.to, err)
		}
	}
	if m.caps != nil {
		if err := unix.Fsetxattr(fd, capsName, m.caps, 0); err != nil {
			return pathError("set capabilities", pl.to, err)
		}
	}
	return pathError("set times", pl.to, unix.UtimesNanoAt(fd, "", []unix.Timespec{m.mtime, m.mtime}, unix.AT_EMPTY_PATH))
}

// content copies what in holds. Small files take one read and one write.
func (w *worker) content(pl *placement, in, out int) error {
	size := pl.e.stat.Size
	if size < int64(len(w.buf)) {
		n, err := readAll(in, w.buf[:size+1])
		if err != nil {
			return pathError("read", pl.e.path, err)
		}
		if int64(n) != size || sha256.Sum256(w.buf[:n]) != [sha256.Size]byte(pl.e.sum) {
			return changed(pl.e.path)
		}
		if n == 0 {
			return nil
		}
		_, err = unix.Write(out, w.buf[:n]) // to a file: all or an error
		return pathError("write", pl.to, err)
	}
	if w.clone(in, out) {
		return w.check(pl, out, size)
	}
	return w.copyData(pl, in, out)
}

// clone lets both files share their blocks, where the file system can.
func (w *worker) clone(in, out int) bool {
	if w.noClone.Load() {
		return false
	}
	if unix.IoctlFileClone(out, in) == nil {
		return true
	}
	w.noClone.Store(true)
	return false
}

// check reads a file that nobody else can change any more.
func (w *worker) check(pl *placement, fd int, size int64) error {
	h := sha256.New()
	n, err := io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(readerAt(fd), 0, size+1)}, w.buf)
	if err != nil {
		return pathError("read", pl.to, err)
	}
	if n != size || sum(h.Sum(nil)) != pl.e.sum {
		return changed(pl.e.path)
	}
	return nil
}

// copyData copies a large file and leaves its holes.
func (w *worker) copyData(pl *placement, in, out int) error {
	size := pl.e.stat.Size
	h := sha256.New()
	for at := int64(0); at < size; {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		n, err := unix.Pread(in, w.buf[:min(int64(len(w.buf)), size-at)], at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return pathError("read", pl.e.path, err)
		}
		if n == 0 {
			return changed(pl.e.path)
		}
		h.Write(w.buf[:n])
		if !isZero(w.buf[:n]) {
			if _, err := unix.Pwrite(out, w.buf[:n], at); err != nil {
				return pathError("write", pl.to, err)
			}
		}
		at += int64(n)
	}
	if err := unix.Ftruncate(out, size); err != nil {
		return pathError("write", pl.to, err)
	}
	if sum(h.Sum(nil)) != pl.e.sum {
		return changed(pl.e.path)
	}
	return nil
}

// link gives a file that was written another name.
func (p *put) link(pl *placement) error {
	if pl.over {
		err := p.upper.in("remove", pl.to, func(dir int, _ string) error { return (&worker{put: p, dir: dir}).clear(pl.to) })
		if err != nil {
			return err
		}
	}
	return p.upper.link(pl.first, pl.to)
}

// readerAt is a descriptor as an io.ReaderAt.
type readerAt int

func (f readerAt) ReadAt(buf []byte, at int64) (int, error) {
	n, err := unix.Pread(int(f), buf, at)
	if err == nil && n < len(buf) {
		err = io.EOF
	}
	return max(n, 0), err
}

// readAll reads a file that should be one byte shorter than buf, and does not
// ask for its end when it has got as much.
func readAll(fd int, buf []byte) (n int, err error) {
	for n < len(buf)-1 {
		m, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, nil
		}
		n += m
	}
	return n, nil
}

// isZero tells whether there is nothing but zeros, for which a file needs no block.
func isZero(b []byte) bool { return b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:]) }

// umask is this process's. Reading it by umask(2) would change it for a moment.
func umask() uint32 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	_, rest, ok := strings.Cut(string(data), "Umask:")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
	if !ok || err != nil {
		return 0o777
	}
	return uint32(n)
}
