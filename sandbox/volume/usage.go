package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

func statOf(info fs.FileInfo) (*syscall.Stat_t, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errors.New("internal error: no owner in file information")
	}
	return st, nil
}

// Usage is what a volume takes.
type Usage struct {
	Bytes int64 `json:"Size"`  // on disk; a hole takes nothing, a file with two names counts once
	Files int64 `json:"Files"` // directories too
}

// Usage measures a volume by walking through it. Links are not followed, and what
// vanishes meanwhile is not counted.
func (s *Store) Usage(name string) (u Usage, err error) {
	v, err := s.Get(name)
	if err != nil {
		return u, err
	}
	root, err := os.OpenRoot(v.Path)
	if err != nil {
		return u, fmt.Errorf("measure volume %s: %w", name, err)
	}
	defer root.Close() // read only: nothing can be lost
	seen := map[[2]uint64]bool{}
	err = fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != "." {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := root.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, err := statOf(info)
		if err != nil {
			return err
		}
		u.Files++
		if key := [2]uint64{st.Dev, st.Ino}; st.Nlink == 1 || info.IsDir() || !seen[key] {
			seen[key] = true
			u.Bytes += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		return u, fmt.Errorf("measure volume %s: %w", name, err)
	}
	return u, nil
}
