package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// travels says whether an extended attribute belongs to a file wherever it goes:
// what users set, file capabilities and access lists. Others are the host's:
// labels of its security module, trusted.* of its overlays.
func travels(key string) bool {
	switch key {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(key, "user.")
}

// xattrs reads the attributes that travel.
func xattrs(f *os.File) (map[string]string, error) {
	size, err := unix.Flistxattr(int(f.Fd()), nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	names := make([]byte, size+1024) // some may come in between
	if size, err = unix.Flistxattr(int(f.Fd()), names); err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	attrs := map[string]string{}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		if !travels(key) {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(int(f.Fd()), key, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", key, err)
		}
		attrs[key] = string(value[:n])
	}
	return attrs, nil
}

func setXattrs(f *os.File, attrs map[string]string) error {
	for key, value := range attrs {
		if err := unix.Fsetxattr(int(f.Fd()), key, []byte(value), 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", key, err)
		}
	}
	return nil
}

// CopyXattrs gives a file the attributes of another that belong to its content.
func CopyXattrs(from, to *os.File) error {
	attrs, err := xattrs(from)
	if err != nil {
		return err
	}
	return setXattrs(to, attrs)
}

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
