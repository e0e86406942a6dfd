package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"naru/internal/decompress"
)

// UnpackOptions are the choices of one Unpack.
type UnpackOptions struct {
	// Owner of everything, in the tree's own ids; nil: what the tar says.
	Owner *[2]int
	// Archive keeps setuid and setgid bits, and extended attributes.
	Archive bool
	// Root gives the destination what the tar says of "./".
	Root bool
}

// Unpack makes the entries of a tar below the directory name. A file replaces
// what is no directory, a directory goes on with one that exists; the other
// cases, and devices, are errors, as is a tar without its end. The tar may be compressed
// (package decompress). It reads r to its end, so that whoever writes it can finish, and
// the checksum of a compression is looked at.
func (t *Tree) Unpack(ctx context.Context, r io.Reader, name string, o UnpackOptions) error {
	return t.asOwner(func() error {
		base, err := openIn(t.root, name, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
		if err != nil {
			return pathError("open", name, err)
		}
		defer unix.Close(base)
		plain, _, err := decompress.Open(r)
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		defer plain.Close() // read only: nothing can be lost
		u := &unpacker{t: t, base: base, dest: name, o: o, in: &source{r: plain}, dirs: map[string]dirEnd{}, buf: make([]byte, 128<<10)}
		u.tar = tar.NewReader(u.in)
		if err := u.run(ctx); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, u.in); err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		return u.finishDirs()
	})
}

// source notices its end, which the end of the archive comes before: a tar that was cut
// off between two entries looks whole to archive/tar.
type source struct {
	r     io.Reader
	ended bool
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.ended = n == 0 && errors.Is(err, io.EOF)
	return n, err
}

type unpacker struct {
	t    *Tree
	base int // the destination
	dest string
	o    UnpackOptions
	in   *source
	tar  *tar.Reader       // of in
	dirs map[string]dirEnd // that were made here
	buf  []byte
	zero [4096]byte
}

// dirEnd is what a directory gets when its content is complete.
type dirEnd struct {
	uid    int         // what it has already
	header *tar.Header // nil: the tar only names what is in it
}

func (u *unpacker) run(ctx context.Context) error {
	for {
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) && u.in.ended {
			err = io.ErrUnexpectedEOF
		} else if errors.Is(err, io.EOF) {
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
		name, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		if err := u.entry(ctx, h, name); err != nil {
			return pathError("unpack", name, err)
		}
	}
}

// cleanName makes a name of the tar relative; "." is the destination.
func cleanName(s string) (string, error) {
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			return "", fmt.Errorf("unpack %q: the name leads upwards", s)
		}
	}
	if name := path.Clean("/" + s)[1:]; name != "" {
		return name, nil
	}
	return ".", nil
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
	if name == "." {
		return u.root(h)
	}
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
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
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
	err = unix.Mkdirat(dir, base, 0o755)
	if err == nil {
		u.dirs[name] = dirEnd{uid: int(u.t.ids.Base)}
	} else if !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// root is the tar's "./".
func (u *unpacker) root(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return errors.New("cannot replace the destination itself")
	}
	if !u.o.Root {
		return nil
	}
	uid, gid, err := u.owner(h)
	if err != nil {
		return err
	}
	u.dirs["."] = dirEnd{uid, h}
	return unix.Fchownat(u.base, "", uid, gid, unix.AT_EMPTY_PATH)
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
	was := dirEnd{uid: int(u.t.ids.Base)}
	err := unix.Mkdirat(dir, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		kind, made := st.Mode&unix.S_IFMT, false
		if kind != unix.S_IFDIR && (kind != unix.S_IFLNK || !u.t.Links) {
			return errors.New("cannot replace what is no directory with one")
		}
		if was, made = u.dirs[name]; !made {
			return nil // it keeps what it has
		}
	} else if err != nil {
		return err
	}
	uid, gid, err := u.owner(h)
	if err != nil {
		return err
	}
	u.dirs[name] = dirEnd{uid, h}
	return chownNode(dir, base, expected{unix.S_IFDIR, was.uid}, uid, gid)
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
	if err != nil {
		return err
	}
	return u.meta(fd, h)
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
		if err := u.writeBlocks(fd, part, at); err != nil {
			return err
		}
		at += int64(len(part))
	}
	return unix.Ftruncate(fd, size)
}

// writeBlocks writes p without the blocks that are zero, those in a row at once.
func (u *unpacker) writeBlocks(fd int, p []byte, at int64) error {
	isZero := func(p []byte) bool { n := min(len(p), len(u.zero)); return bytes.Equal(p[:n], u.zero[:n]) }
	for len(p) > 0 {
		n, hole := 0, isZero(p)
		for n < len(p) && isZero(p[n:]) == hole {
			n = min(n+len(u.zero), len(p))
		}
		if !hole {
			if err := writeAt(fd, p[:n], at); err != nil {
				return err
			}
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

func writeAt(fd int, p []byte, at int64) error {
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
	target, err := cleanName(h.Linkname)
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
