package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// create makes the entry h at u.parent/base, replacing what an earlier entry
// put there. A directory over a directory keeps its children.
func (u *unpacker) create(ctx context.Context, h *tar.Header, path, base string) error {
	var old unix.Stat_t
	err := unix.Fstatat(u.parent, base, &old, unix.AT_SYMLINK_NOFOLLOW)
	exists := err == nil
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return u.directory(h, path, base, exists, &old)
	}
	if h.Typeflag == tar.TypeLink {
		return u.hardLink(h, path, base, exists, &old)
	}
	if exists {
		if err := u.remove(base, &old); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.file(ctx, h, base)
	case tar.TypeSymlink:
		return u.symlink(h, base)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(h, base)
	}
	return refuse("type %q is unknown", h.Typeflag)
}

// remove deletes base, whatever it is, without following it.
func (u *unpacker) remove(base string, st *unix.Stat_t) error {
	u.stale = true
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.Unlinkat(u.parent, base, 0)
	}
	// os.Root keeps to the directory whatever the tree contains.
	dir, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(u.parent))
	if err != nil {
		return err
	}
	return errors.Join(dir.RemoveAll(base), dir.Close())
}

func (u *unpacker) directory(h *tar.Header, path, base string, exists bool, old *unix.Stat_t) error {
	opaque := exists && isWhiteout(old) // it hides the lower one, as both entries say
	if exists && old.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := u.remove(base, old); err != nil {
			return err
		}
		exists = false
	}
	if !exists {
		if err := unix.Mkdirat(u.parent, base, 0o700); err != nil {
			return err
		}
	}
	fd, err := unix.Openat(u.parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := setMeta(fd, h); err != nil {
		return err
	}
	if opaque {
		if err := setOpaque(fd); err != nil {
			return err
		}
	}
	delete(u.implied, path)
	u.dirs = append(u.dirs, newDirEnd(path, h))
	return nil
}

func (u *unpacker) file(ctx context.Context, h *tar.Header, base string) (err error) {
	u.bytes += h.Size
	if limit := u.options.Limits.allowed(u.options.Compressed); h.Size < 0 || u.bytes < 0 || u.bytes > limit {
		return refuse("its files have more than %d bytes", limit)
	}
	fd, err := unix.Openat(u.parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := u.content(ctx, fd, h.Size); err != nil {
		return err
	}
	if err := setMeta(fd, h); err != nil {
		return err
	}
	return setTimes(fd, "", timespec(h))
}

// content copies the entry's data and leaves holes where it is zero: images
// hold preallocated databases and sparse logs.
func (u *unpacker) content(ctx context.Context, fd int, size int64) error {
	var at int64
	for at < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(u.tar, u.buf[:min(int64(len(u.buf)), size-at)])
		if err != nil {
			return fmt.Errorf("read content: %w", err)
		}
		if part := u.buf[:n]; !allZero(part) {
			if err := writeAt(fd, part, at); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return unix.Ftruncate(fd, size)
}

func writeAt(fd int, p []byte, at int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write content: %w", err)
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// symlink keeps the target as it is: it only means something inside a
// container, and nothing here follows it except in the root.
func (u *unpacker) symlink(h *tar.Header, base string) error {
	if h.Linkname == "" || len(h.Linkname) > unix.PathMax-1 {
		return refuse("a link target of %d bytes", len(h.Linkname))
	}
	if err := unix.Symlinkat(h.Linkname, u.parent, base); err != nil {
		return err
	}
	if err := unix.Fchownat(u.parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return setTimes(u.parent, base, timespec(h))
}

// hardLink links to another entry of this layer; the root is the layer's own,
// so there is nothing else to find. An absolute target is one inside it
// (docker 29.7.0 refused those and broke kaniko's images, go-archive #99).
func (u *unpacker) hardLink(h *tar.Header, path, base string, exists bool, old *unix.Stat_t) error {
	target, err := clean(h.Linkname, u.options.Limits.Depth)
	if err != nil {
		return err
	}
	targetDir, targetBase := split(target)
	from, err := openIn(u.root, targetDir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("find link target %q: %w", h.Linkname, err)
	}
	defer func() { _ = unix.Close(from) }()
	var st unix.Stat_t
	if err := unix.Fstatat(from, targetBase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("find link target %q: %w", h.Linkname, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR || isWhiteout(&st):
		return refuse("a hard link to %q, which is no file", h.Linkname)
	case exists && old.Dev == st.Dev && old.Ino == st.Ino:
		return nil // it is that file already
	case exists:
		if err := u.remove(base, old); err != nil {
			return err
		}
	}
	return unix.Linkat(from, targetBase, u.parent, base, 0) // 0: a link itself, not what it leads to
}

func (u *unpacker) node(h *tar.Header, base string) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	if h.Devmajor < 0 || h.Devmajor > 1<<12-1 || h.Devminor < 0 || h.Devminor > 1<<20-1 {
		return refuse("device %d:%d", h.Devmajor, h.Devminor)
	}
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if h.Typeflag == tar.TypeFifo {
		dev = 0
	}
	if kind == unix.S_IFCHR && dev == 0 {
		// What a tar of a raw overlay directory has for a whiteout. On disk
		// it is one, whatever was meant.
		return unix.Mknodat(u.parent, base, unix.S_IFCHR, 0)
	}
	if err := unix.Mknodat(u.parent, base, kind, int(dev)); err != nil {
		return fmt.Errorf("make device: %w", err)
	}
	if err := unix.Fchownat(u.parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	// No flag exists for chmod before Linux 6.6, none is needed: base was made
	// one line above in a directory that nobody else has.
	if err := unix.Fchmodat(u.parent, base, mode(h), 0); err != nil {
		return err
	}
	return setTimes(u.parent, base, timespec(h))
}

// whiteout turns the marker base in dir into what overlayfs understands. It
// hides only what lower layers have: an entry of this layer with the same name
// stays, before or after it in the tar (image-spec, layer.md, Whiteouts).
func (u *unpacker) whiteout(dir, base string) error {
	if base == opaqueMarker {
		u.opaque = u.opaque || dir == "."
		delete(u.implied, dir)
		return setOpaque(u.parent)
	}
	if len(base) >= len(aufsPrefix) && base[:len(aufsPrefix)] == aufsPrefix {
		return nil
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return refuse("a whiteout of %q", name)
	}
	err := unix.Mknodat(u.parent, name, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := unix.Openat(u.parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil { // not a directory: it covers the lower one by itself
		return nil
	}
	path := name
	if dir != "." {
		path = dir + "/" + name
	}
	delete(u.implied, path)
	return errors.Join(setOpaque(fd), unix.Close(fd))
}
