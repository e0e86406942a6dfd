package build

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

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
	s := shaping{tree: tree, h: sha256.New()}
	if err := s.dir(""); err != nil {
		return "", 0, fmt.Errorf("look at layer: %w", err)
	}
	return hex.EncodeToString(s.h.Sum(nil)), s.disk, nil
}

type shaping struct {
	tree *root
	h    hash.Hash
	disk int64
	buf  []byte
}

func (s *shaping) dir(p string) error {
	f, err := s.tree.open(p)
	if err != nil {
		return err
	}
	defer f.Close() // read only: nothing can be lost
	names, err := namesIn(f)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return pathError("stat", below(p, name), err)
		}
		s.file(below(p, name), &st)
		if isDir(&st) {
			if err := s.dir(below(p, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *shaping) file(p string, st *unix.Stat_t) {
	s.buf = append(binary.LittleEndian.AppendUint64(s.buf[:0], uint64(len(p))), p...)
	whiteout := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
	ctime, size := st.Ctim.Nano(), st.Size
	if whiteout || isDir(st) {
		// The kernel links one inode for many whiteouts, of other layers too; a
		// directory's size is its file system's business.
		ctime, size = 0, 0
	}
	for _, n := range []uint64{uint64(st.Mode), uint64(st.Uid), uint64(st.Gid), uint64(size), uint64(st.Mtim.Nano()), uint64(ctime), uint64(st.Rdev)} {
		s.buf = binary.LittleEndian.AppendUint64(s.buf, n)
	}
	s.h.Write(s.buf) // a hash never fails
	s.disk += st.Blocks * 512 / max(1, int64(st.Nlink))
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
