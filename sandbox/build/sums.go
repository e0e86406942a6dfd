package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// sum is the SHA-256 of a file's content.
type sum [sha256.Size]byte

// version says which content a file has without reading it. ctime is what makes
// it safe: it moves with every change of content or metadata, and nobody but
// the clock sets it. mtime, which BuildKit relies on, can be set by anyone.
type version struct {
	Dev, Ino     uint64
	Ctime, Mtime int64 // nanoseconds
	Size         int64
}

func versionOf(st *unix.Stat_t) version {
	return version{Dev: uint64(st.Dev), Ino: st.Ino, Ctime: st.Ctim.Nano(), Mtime: st.Mtim.Nano(), Size: st.Size}
}

// content is what a version of a file holds.
type content struct {
	sum  sum
	caps bool // it has capabilities, which have to be read
}

// sums remembers the content of a context's files from one build to the next.
// It is a memory and nothing else: a lost or damaged one costs time only.
type sums struct {
	file string

	mu    sync.Mutex
	known map[version]content
	used  map[version]bool
	dirty bool
}

const (
	sumsMagic  = "naru sums 2\n"
	sumsRecord = 40 + sha256.Size + 1
	// sumsMax bounds how many files one context is remembered with.
	sumsMax = 2_000_000
)

// loadSums reads the memory kept in file.
func loadSums(file string) *sums {
	s := &sums{file: file, known: map[version]content{}, used: map[version]bool{}}
	data, err := os.ReadFile(file)
	if err != nil || !bytes.HasPrefix(data, []byte(sumsMagic)) {
		return s
	}
	body := data[len(sumsMagic):]
	if len(body) < sha256.Size || (len(body)-sha256.Size)%sumsRecord != 0 {
		return s
	}
	body, check := body[:len(body)-sha256.Size], body[len(body)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], check) {
		return s
	}
	n := len(body) / sumsRecord
	s.known, s.used = make(map[version]content, n), make(map[version]bool, n)
	for ; len(body) > 0; body = body[sumsRecord:] {
		w := func(i int) uint64 { return binary.LittleEndian.Uint64(body[8*i:]) }
		v := version{Dev: w(0), Ino: w(1), Ctime: int64(w(2)), Mtime: int64(w(3)), Size: int64(w(4))}
		s.known[v] = content{sum(body[40 : 40+sha256.Size]), body[sumsRecord-1] != 0}
	}
	return s
}

// save writes what this build has used, and what else was known unless that is
// much more. It does nothing if nothing was learnt.
func (s *sums) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dirty {
		return nil
	}
	keepAll := len(s.known) <= min(2*len(s.used)+10_000, sumsMax)
	data := make([]byte, 0, len(sumsMagic)+len(s.known)*sumsRecord+sha256.Size)
	data = append(data, sumsMagic...)
	for v, c := range s.known {
		if !keepAll && !s.used[v] {
			continue
		}
		for _, w := range []uint64{v.Dev, v.Ino, uint64(v.Ctime), uint64(v.Mtime), uint64(v.Size)} {
			data = binary.LittleEndian.AppendUint64(data, w)
		}
		data = append(data, c.sum[:]...)
		if c.caps {
			data = append(data, 1)
		} else {
			data = append(data, 0)
		}
	}
	check := sha256.Sum256(data[len(sumsMagic):])
	if err := writeCacheFile(s.file, append(data, check[:]...)); err != nil {
		return err
	}
	s.dirty = false
	return nil
}

func (s *sums) recall(v version) (content, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.known[v]
	if ok {
		s.used[v] = true
	}
	return c, ok
}

func (s *sums) learn(v version, c content) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[v], s.used[v], s.dirty = c, true, true
}

// tick is longer than the clock that stamps files on a local disk may stand
// still (a jiffy, 10 ms at most). A file that is read when its ctime is older
// than that cannot change later and keep its ctime.
const tick = 20 * time.Millisecond

// clockOf returns how long after its ctime a file of this file system may be
// trusted to have shown its last change: clocks of servers and of old formats
// are coarse or somebody else's.
func clockOf(r *root) time.Duration {
	var st unix.Statfs_t
	if err := unix.Fstatfs(r.fd, &st); err != nil {
		return 3 * time.Second
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC,
		unix.OVERLAYFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
		return tick
	}
	return 3 * time.Second
}

// sumFiles fills in the content sums and the capabilities of the regular files
// among entries. With a memory, only files that it does not know are read.
func (s *source) sumFiles(ctx context.Context, entries []entry) error {
	unread := map[string][]*entry{} // by directory
	newest := int64(0)
	for i := range entries {
		e := &entries[i]
		if !isFile(&e.stat) {
			continue
		}
		if s.sums != nil {
			if c, ok := s.sums.recall(versionOf(&e.stat)); ok && !c.caps {
				e.sum = c.sum
				continue
			}
		}
		dir := parentOf(e.path)
		unread[dir] = append(unread[dir], e)
		newest = max(newest, e.stat.Ctim.Nano())
	}
	if len(unread) == 0 {
		return nil
	}
	// A context is often checked out a moment before it is built: wait out the
	// tick once, rather than read everything again next time.
	if wait := tick - time.Since(time.Unix(0, newest)); s.sums != nil && wait > 0 && wait <= tick {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4) // enough to keep a disk busy; more wait for each other
	for dir, list := range unread {
		for part := range slices.Chunk(list, chunk) {
			group.Go(func() error { return s.sumIn(ctx, dir, part) })
		}
	}
	return group.Wait()
}

// sumIn reads files of one directory.
func (s *source) sumIn(ctx context.Context, dir string, list []*entry) error {
	fd, err := s.root.openAt(dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 64<<10)
	for _, e := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.sumFile(ctx, fd, e, buf); err != nil {
			return err
		}
	}
	return nil
}

// sumFile reads one file. If it is still the version that the walk saw
// afterwards, then what was read is that version's.
func (s *source) sumFile(ctx context.Context, dir int, e *entry, buf []byte) error {
	start := time.Now()
	fd, err := unix.Openat(dir, path.Base(e.path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError("open", e.path, err)
	}
	defer unix.Close(fd)
	if err := e.read(ctx, fd, buf); err != nil {
		return pathError("read", e.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", e.path, err)
	}
	v := versionOf(&e.stat)
	if versionOf(&st) != v {
		return changed(e.path)
	}
	if s.sums != nil && start.Sub(time.Unix(0, v.Ctime)) > s.clock {
		s.sums.learn(v, content{e.sum, e.caps != nil})
	}
	return nil
}

// read fills in what a regular file holds.
func (e *entry) read(ctx context.Context, fd int, buf []byte) (err error) {
	if e.caps, err = caps(fd); err != nil {
		return err
	}
	if e.stat.Size < int64(len(buf)) {
		n, err := readAll(fd, buf[:e.stat.Size+1])
		e.sum = sha256.Sum256(buf[:n])
		return err
	}
	h := sha256.New()
	for at := int64(0); at <= e.stat.Size; { // what grows is found out afterwards
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		h.Write(buf[:n])
		at += int64(n)
	}
	h.Sum(e.sum[:0])
	return nil
}

// errChanged says that a file of the context changed while it was read.
var errChanged = errors.New("changed during the build")

func changed(p string) error { return &fs.PathError{Op: "read", Path: "/" + p, Err: errChanged} }
