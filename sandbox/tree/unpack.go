package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// UnpackOptions are the choices of one Unpack.
type UnpackOptions struct {
	// Owner of everything, in the tree's own ids; nil: what the tar says.
	Owner *[2]int
	// Setid keeps setuid and setgid bits.
	Setid bool
	// Rename gives the tar's first name another one.
	Rename string
}

// Unpack makes the entries of a tar below the directory name. A file replaces
// what is no directory, a directory goes on with one that exists; the other
// cases, and devices, are errors. It reads r to the end of the archive.
func (t *Tree) Unpack(ctx context.Context, r io.Reader, name string, o UnpackOptions) error {
	return t.asOwner(func() error {
		base, err := openIn(t.root, name, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
		if err != nil {
			return pathError("open", name, err)
		}
		defer unix.Close(base)
		u := &unpacker{t: t, base: base, dest: name, o: o, tar: tar.NewReader(r), buf: make([]byte, 128<<10)}
		if err := u.run(ctx); err != nil {
			return err
		}
		return u.finishDirs()
	})
}

type unpacker struct {
	t    *Tree
	base int // the destination
	dest string
	o    UnpackOptions
	tar  *tar.Reader
	dirs []dirEnd
	buf  []byte
}

// dirEnd is what a directory gets when its content is complete.
type dirEnd struct {
	name string
	mode uint32
	uid  int
	time time.Time
}

func (u *unpacker) run(ctx context.Context) error {
	for {
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name, err := u.name(h.Name)
		if err != nil {
			return err
		}
		if name == "." {
			continue // the destination itself stays as it is
		}
		if err := u.entry(ctx, h, name); err != nil {
			return pathError("unpack", name, err)
		}
	}
}

// name cleans a name of the tar and puts the new first part in.
func (u *unpacker) name(s string) (string, error) {
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			return "", fmt.Errorf("unpack %q: the name leads upwards", s)
		}
	}
	name := strings.TrimLeft(path.Clean("/"+s), "/")
	if name == "" {
		return ".", nil
	}
	if u.o.Rename != "" {
		_, rest, below := strings.Cut(name, "/")
		if name = u.o.Rename; below {
			name += "/" + rest
		}
	}
	return name, nil
}

// parent opens the directory that holds name.
func (u *unpacker) parent(name string) (fd int, base string, err error) {
	dir, base := path.Split(name)
	if u.t.Links {
		// From the root, so that an absolute link leads where the container's own processes go.
		fd, err = openIn(u.t.root, u.dest+"/"+dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	} else {
		fd, err = openIn(u.base, dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	}
	if err != nil {
		return -1, base, err
	}
	if kernel, err := kernelFS(fd); err != nil || kernel {
		return -1, base, errors.Join(err, ErrKernelFile, unix.Close(fd))
	}
	return fd, base, nil
}

func (u *unpacker) entry(ctx context.Context, h *tar.Header, name string) error {
	dir, base, err := u.parent(name)
	if errors.Is(err, unix.ENOENT) { // a tar need not hold the directories of its files
		if err := u.implied(path.Dir(name)); err != nil {
			return err
		}
		dir, base, err = u.parent(name)
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if h.Typeflag == tar.TypeDir {
		return u.directory(dir, base, name, h)
	}
	if err := clearPlace(dir, base); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(ctx, dir, base, h)
	case tar.TypeLink:
		return u.link(dir, base, h)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, dir, base)
	case tar.TypeFifo:
		err = unix.Mkfifoat(dir, base, 0o600)
	default:
		return fmt.Errorf("type %q: devices are not copied", h.Typeflag)
	}
	if err != nil {
		return err
	}
	return u.finish(dir, base, h)
}

func (u *unpacker) implied(name string) error {
	if name == "." {
		return nil
	}
	if err := u.implied(path.Dir(name)); err != nil {
		return err
	}
	dir, base, err := u.parent(name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, base, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// clearPlace removes what is no directory.
func clearPlace(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.EISDIR) {
		return errors.New("cannot replace a directory with what is none")
	}
	return err
}

func (u *unpacker) directory(dir int, base, name string, h *tar.Header) error {
	err := unix.Mkdirat(dir, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		switch kind := st.Mode & unix.S_IFMT; {
		case kind == unix.S_IFDIR, kind == unix.S_IFLNK && u.t.Links:
			return nil // it keeps what it has
		}
		return errors.New("cannot replace what is no directory with one")
	}
	if err != nil {
		return err
	}
	uid, _, err := u.owner(h)
	if err != nil {
		return err
	}
	u.dirs = append(u.dirs, dirEnd{name, u.mode(h), uid, h.ModTime})
	return u.own(dir, base, h)
}

func (u *unpacker) file(ctx context.Context, dir int, base string, h *tar.Header) (err error) {
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := u.content(ctx, fd, h.Size); err != nil {
		return err
	}
	uid, gid, err := u.owner(h)
	if err == nil {
		err = unix.Fchown(fd, uid, gid)
	}
	if err == nil {
		err = unix.Fchmod(fd, u.mode(h)) // after the chown, which takes setuid bits away
	}
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(fd, "", times(h.ModTime), unix.AT_EMPTY_PATH)
}

// content writes the entry and leaves holes where it is zero.
func (u *unpacker) content(ctx context.Context, fd int, size int64) error {
	var at int64
	for at < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := u.buf[:min(size-at, int64(len(u.buf)))]
		if _, err := io.ReadFull(u.tar, part); err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := writeAt(fd, part, at); err != nil {
			return err
		}
		at += int64(len(part))
	}
	return unix.Ftruncate(fd, size)
}

func writeAt(fd int, p []byte, at int64) error {
	if len(strings.Trim(string(p), "\x00")) == 0 {
		return nil
	}
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, at)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		p, at = p[max(n, 0):], at+int64(max(n, 0))
	}
	return nil
}

func (u *unpacker) link(dir int, base string, h *tar.Header) error {
	target, err := u.name(h.Linkname)
	if err != nil {
		return err
	}
	from, fromBase, err := u.parent(target)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	return unix.Linkat(from, fromBase, dir, base, 0) // 0: a link itself, not what it leads to
}

// finish sets what a link or a fifo has besides its name.
func (u *unpacker) finish(dir int, base string, h *tar.Header) error {
	if err := u.own(dir, base, h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeFifo {
		uid, _, err := u.owner(h)
		if err == nil {
			err = chmodNode(dir, base, u.mode(h), expected{unix.S_IFIFO, uid})
		}
		if err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dir, base, times(h.ModTime), unix.AT_SYMLINK_NOFOLLOW)
}

// expected is what an entry must still be, so that nothing is changed that was put in
// its place at the same time, and that the one who put it there may not change himself.
type expected struct {
	kind uint32
	uid  int
}

// made opens an entry that still is what it must be.
func made(dir int, base string, want expected) (int, error) {
	fd, err := openNode(dir, base)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != want.kind || int(st.Uid) != want.uid) {
		err = errors.New("it was replaced at the same time")
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// chmodNode goes by a descriptor: fchmodat(2) takes no flag against links before Linux 6.6.
func chmodNode(dir int, base string, mode uint32, want expected) error {
	fd, err := made(dir, base, want)
	if err != nil {
		return err
	}
	return errors.Join(unix.Chmod(selfFD(fd), mode), unix.Close(fd))
}

// own gives a new entry, which belongs to the tree's root still, its owner.
func (u *unpacker) own(dir int, base string, h *tar.Header) error {
	uid, gid, err := u.owner(h)
	if err != nil {
		return err
	}
	kind := map[byte]uint32{tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	fd, err := made(dir, base, expected{kind, int(u.t.ids.Base)})
	if err != nil {
		return err
	}
	return errors.Join(unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH), unix.Close(fd))
}

func (u *unpacker) owner(h *tar.Header) (uid, gid int, err error) {
	own := [2]int{h.Uid, h.Gid}
	if u.o.Owner != nil {
		own = *u.o.Owner
	}
	if uid, err = u.t.ids.outside(own[0]); err != nil {
		return 0, 0, err
	}
	gid, err = u.t.ids.outside(own[1])
	return uid, gid, err
}

func (u *unpacker) mode(h *tar.Header) uint32 {
	if u.o.Setid {
		return uint32(h.Mode) & 0o7777
	}
	return uint32(h.Mode) & 0o1777
}

// finishDirs sets modes and times, the innermost first: what is put into a
// directory changes its time, and may need its old mode.
func (u *unpacker) finishDirs() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		dir, base, err := u.parent(d.name)
		if err != nil {
			return pathError("unpack", d.name, err)
		}
		err = chmodNode(dir, base, d.mode, expected{unix.S_IFDIR, d.uid})
		if err == nil {
			err = unix.UtimesNanoAt(dir, base, times(d.time), unix.AT_SYMLINK_NOFOLLOW)
		}
		if err = errors.Join(err, unix.Close(dir)); err != nil {
			return pathError("unpack", d.name, err)
		}
	}
	return nil
}

func times(t time.Time) []unix.Timespec {
	ts := unix.NsecToTimespec(t.UnixNano())
	return []unix.Timespec{ts, ts}
}
