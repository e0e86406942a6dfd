package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"naru/sandbox/volume"
)

// makeVolumes creates the named volumes of a container that do not exist yet.
// A new volume begins as a copy of what the image has at its place, owner and
// mode too, as Docker does it: an image that runs as a plain user could not
// write into an empty directory of root's.
func (e *Engine) makeVolumes(r *record) error {
	for _, m := range r.Config.Mounts {
		if !m.Volume {
			continue
		}
		_, err := e.volumes.Create(m.Source, m.labels(), func(data string) error {
			if m.NoCopy {
				return nil
			}
			view, err := viewLayers(r.Lower)
			if err != nil {
				return err
			}
			defer view.Close() // read only: nothing can be lost
			return view.copyDir(m.Target, data)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// copyDir copies the directory at path in the view into dir. A path that is
// missing or no directory copies nothing.
func (v *rootView) copyDir(path, dir string) error {
	from, err := v.open(path, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close() // read only: nothing can be lost
	// os.Root confines both sides: links of the image are copied, not followed.
	src, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(from.Fd())))
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer dst.Close()
	return fs.WalkDir(src.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := copyEntry(src, dst, name); err != nil {
			return fmt.Errorf("copy %s from the image: %w", filepath.Join(path, name), err)
		}
		return nil
	})
}

// copyEntry copies one directory (without its content), file or link with
// owner and mode. Devices, fifos and sockets are left out.
func copyEntry(src, dst *os.Root, name string) error {
	info, err := src.Lstat(name)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("internal error: no owner in file information")
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := src.Readlink(name)
		if err == nil {
			err = dst.Symlink(target, name)
		}
		return errors.Join(err, dst.Lchown(name, int(st.Uid), int(st.Gid)))
	case info.IsDir():
		if name != "." {
			err = dst.Mkdir(name, 0o700)
		}
	case info.Mode().IsRegular():
		err = copyContent(src, dst, name)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	// The owner first: chown takes setuid bits away (chown(2)).
	if err := dst.Lchown(name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := dst.Chmod(name, info.Mode()); err != nil {
		return err
	}
	if err := copyXattrs(src, dst, name); err != nil {
		return err
	}
	return dst.Chtimes(name, info.ModTime(), info.ModTime())
}

// copyXattrs comes after chown and chmod, which take file capabilities away.
func copyXattrs(src, dst *os.Root, name string) error {
	from, err := src.Open(name)
	if err != nil {
		return err
	}
	defer from.Close() // read only: nothing can be lost
	to, err := dst.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(volume.CopyXattrs(from, to), to.Close())
}

func copyContent(src, dst *os.Root, name string) error {
	from, err := src.Open(name)
	if err != nil {
		return err
	}
	defer from.Close() // read only: nothing can be lost
	to, err := dst.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}
