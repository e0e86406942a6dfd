// Package diskuse measures trees that a hostile process may be changing meanwhile. It
// goes from descriptor to descriptor and follows nothing, so it never leaves the tree;
// what disappears under its hands is not counted. One measurement reads each directory
// once, stops as soon as a limit is passed, and gives up in trees that are deeper than
// any path could say.
package diskuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Use is what a tree takes from its file system.
type Use struct {
	Bytes  int64 // allocated blocks; a file with several names once, holes not
	Inodes int64
	Size   int64 // of regular files as they say, holes too; no limit counts it
}

// Over says whether u is more than limit, in which 0 is no limit.
func (u Use) Over(limit Use) bool {
	return limit.Bytes > 0 && u.Bytes > limit.Bytes || limit.Inodes > 0 && u.Inodes > limit.Inodes
}

// Add is the sum of two.
func (u Use) Add(v Use) Use {
	return Use{u.Bytes + v.Bytes, u.Inodes + v.Inodes, max(u.Size+v.Size, u.Size, v.Size)}
}

// ErrDeep says that a tree is nested too deeply to be measured.
var ErrDeep = errors.New("directories are nested too deeply")

// maxDepth is how deep PATH_MAX (4096 bytes) lets anybody name a directory.
const maxDepth = 2048

// Of measures what is below a directory, and the directory. It may stop when limit,
// unless it is zero, is passed; what it returns then is over it.
func Of(ctx context.Context, dir string, limit Use) (Use, error) {
	f, err := os.Open(dir)
	if err != nil {
		return Use{}, fmt.Errorf("measure disk use: %w", err)
	}
	m := measurement{ctx: ctx, limit: limit, seen: map[[2]uint64]bool{}}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err == nil {
		m.count(&st)
	}
	if err := m.directory(f, 0); err != nil && !errors.Is(err, errOver) {
		return m.use, fmt.Errorf("measure disk use of %s: %w", dir, err)
	}
	return m.use, nil
}

type measurement struct {
	ctx   context.Context
	limit Use
	use   Use
	seen  map[[2]uint64]bool // files with several names
}

var errOver = errors.New("over the limit")

func (m *measurement) count(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if m.seen[id] {
			return
		}
		m.seen[id] = true
	}
	use := Use{Bytes: st.Blocks * 512, Inodes: 1}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		use.Size = st.Size
	}
	m.use = m.use.Add(use)
}

// directory closes dir.
func (m *measurement) directory(dir *os.File, depth int) error {
	defer dir.Close() // read only: nothing can be lost
	if depth > maxDepth {
		return ErrDeep
	}
	for {
		if err := context.Cause(m.ctx); err != nil {
			return err
		}
		if m.use.Over(m.limit) {
			return errOver
		}
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if err := m.entry(dir, name, depth); err != nil {
				return err
			}
		}
		if err != nil || len(names) == 0 {
			return nil // io.EOF, or it has just been removed
		}
	}
}

func (m *measurement) entry(dir *os.File, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil // gone
	}
	m.count(&st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // replaced
	}
	if err != nil {
		return err
	}
	return m.directory(os.NewFile(uintptr(fd), name), depth+1)
}
