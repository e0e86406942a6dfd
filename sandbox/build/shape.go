package build

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// shapeOf sums up what stat says of all files of a layer, without reading them:
// whoever changes one moves its ctime. disk is what they take.
func shapeOf(dir string) (shape string, disk int64, err error) {
	tree, err := openRoot(dir)
	if err != nil {
		return "", 0, fmt.Errorf("look at layer: %w", err)
	}
	defer tree.Close()
	s := shaping{tree: tree}
	s.group.SetLimit(max(1, runtime.GOMAXPROCS(0)-1)) // and this goroutine
	if err := errors.Join(s.dir(""), s.group.Wait()); err != nil {
		return "", 0, fmt.Errorf("look at layer: %w", err)
	}
	slices.SortFunc(s.dirs, func(a, b dirShape) int { return strings.Compare(a.path, b.path) })
	h := sha256.New()
	for _, d := range s.dirs {
		h.Write(d.sum[:]) // its files' paths are in it; a hash never fails
	}
	return hex.EncodeToString(h.Sum(nil)), s.disk, nil
}

// shaping looks at several directories at once.
type shaping struct {
	tree  *root
	group errgroup.Group

	mu   sync.Mutex
	dirs []dirShape
	disk int64
}

// dirShape sums up the files of one directory.
type dirShape struct {
	path string
	sum  [sha256.Size]byte
}

// dir looks at a directory and those below, or leaves some of those to the group.
func (s *shaping) dir(p string) error {
	subs, err := s.files(p)
	if err != nil {
		return err
	}
	for _, sub := range subs {
		if s.group.TryGo(func() error { return s.dir(sub) }) {
			continue
		}
		if err := s.dir(sub); err != nil {
			return err
		}
	}
	return nil
}

// files adds the files of a directory, and names the directories among them.
func (s *shaping) files(p string) (dirs []string, err error) {
	f, err := s.tree.open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	names, err := namesIn(f)
	if err != nil {
		return nil, err
	}
	h, fd, disk := sha256.New(), int(f.Fd()), int64(0)
	var looks []byte
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, pathError("stat", below(p, name), err)
		}
		looks = appendLooks(looks[:0], below(p, name), &st)
		h.Write(looks) // a hash never fails
		disk += st.Blocks * 512 / max(1, int64(st.Nlink))
		if isDir(&st) {
			dirs = append(dirs, below(p, name))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs = append(s.dirs, dirShape{p, [sha256.Size]byte(h.Sum(nil))})
	s.disk += disk
	return dirs, nil
}

// appendLooks appends what stat says of a file that tells it from a changed one.
func appendLooks(b []byte, p string, st *unix.Stat_t) []byte {
	b = append(binary.LittleEndian.AppendUint64(b, uint64(len(p))), p...)
	whiteout := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
	ctime, size := st.Ctim.Nano(), st.Size
	if whiteout || isDir(st) {
		// The kernel links one inode for many whiteouts, of other layers too; a
		// directory's size is its file system's business.
		ctime, size = 0, 0
	}
	for _, n := range []uint64{uint64(st.Mode), uint64(st.Uid), uint64(st.Gid), uint64(size), uint64(st.Mtim.Nano()), uint64(ctime), uint64(st.Rdev)} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

// whole says why a remembered layer cannot be relied on, or nothing. One that
// does not look as it did is read, and removed from the store if it is not what
// its digest says.
func (r *stageRun) whole(ctx context.Context, key string, rec record) error {
	if rec.Layer == "" {
		return nil
	}
	dir, err := r.store.LayerDir(rec.Layer)
	if err != nil {
		return err
	}
	shape, disk, err := shapeOf(dir)
	if err == nil && shape == rec.Shape {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if checkErr := r.store.CheckLayer(ctx, rec.Layer); checkErr != nil {
		return checkErr
	}
	if err != nil {
		return errors.Join(err, image.ErrLayerNotFound)
	}
	rec.Shape, rec.Disk = shape, disk // somebody has moved the store, say
	return r.cache.putStep(key, rec)
}
