package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/internal/openat"
)

// copyUp makes a tmpfs that begins with what the image has at its place. Both sides
// are walked by descriptors, and no symlink is followed: the image cannot send the
// copy elsewhere.
func (s *soloing) copyUp(m specs.Mount, o mountOptions, root *os.File) (*os.File, error) {
	fd, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", m.Type, err)
	}
	defer unix.Close(fd)
	c := &fsContext{fd: fd}
	c.set("source", m.Type)
	for _, kv := range o.data {
		if kv[1] == "" {
			c.flag(kv[0])
		} else {
			c.set(kv[0], kv[1])
		}
	}
	to, err := c.mount(m.Type+" on "+m.Destination, int(o.set&^unix.MOUNT_ATTR_RDONLY))
	if err != nil {
		return nil, err
	}
	if err = copyImage(root, m.Destination, to); err == nil {
		err = unix.MountSetattr(int(to.Fd()), "", unix.AT_EMPTY_PATH, o.change())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tmpcopyup: %w", err), to.Close())
	}
	return to, nil
}

func copyImage(root *os.File, path string, to *os.File) error {
	fd, err := openat.Open(int(root.Fd()), strings.TrimLeft(path, "/"), unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if errors.Is(err, unix.ENOENT) {
		return nil // the image has nothing there
	}
	if err != nil {
		return &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	from := os.NewFile(uintptr(fd), path)
	defer from.Close()
	// A mount's descriptor is good for names only (O_PATH).
	dir, err := unix.Openat(int(to.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return copyDir(from, dir)
}

// copyDir copies owner, mode and content of a directory.
func copyDir(from *os.File, to int) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	if err := errors.Join(unix.Fchown(to, int(st.Uid), int(st.Gid)), unix.Fchmod(to, st.Mode&0o7777)); err != nil {
		return err
	}
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(int(from.Fd()), to, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func copyEntry(from, to int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		fd, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		dir := os.NewFile(uintptr(fd), name)
		defer dir.Close()
		if err := unix.Mkdirat(to, name, 0o700); err != nil {
			return err
		}
		sub, err := unix.Openat(to, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(sub)
		return copyDir(dir, sub)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(from, name, buf)
		if err != nil {
			return err
		}
		return errors.Join(unix.Symlinkat(string(buf[:n]), to, name), unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW))
	case unix.S_IFREG:
		return copyFile(from, to, name, &st)
	case unix.S_IFIFO:
		return errors.Join(unix.Mknodat(to, name, st.Mode, 0), unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW))
	}
	return fmt.Errorf("file type %#o cannot be copied", st.Mode&unix.S_IFMT)
}

func copyFile(from, to int, name string, st *unix.Stat_t) error {
	in, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(in), name)
	defer src.Close()
	out, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(out), name)
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Chown(int(st.Uid), int(st.Gid)), unix.Fchmod(out, st.Mode&0o7777), dst.Close())
}
