package volume

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// xattrPrefix is how tar programs carry extended attributes in PAX records.
const xattrPrefix = "SCHILY.xattr."

// maxID is the largest owner; the one above means "none" (chown(2)).
const maxID = 1<<32 - 2

// Pack writes the content of a directory as a tar: owners as they are on disk
// (container ids), modes, times, hard links, and the attributes that travels
// accepts. Links are written, never followed. Holes are zeros in the stream, which
// Unpack makes holes again. Sockets are left out, as tar(1) does. A file that
// shrinks meanwhile is filled up with zeros, so that the stream stays whole.
func Pack(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	defer root.Close() // read only: nothing can be lost
	p := packer{root: root, tar: tar.NewWriter(w), seen: map[[2]uint64]string{}}
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name != "." {
			return nil // deleted since its directory was read
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = p.entry(name)
		}
		if err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
		return nil
	})
	return errors.Join(err, p.tar.Close())
}

type packer struct {
	root *os.Root
	tar  *tar.Writer
	seen map[[2]uint64]string // first name of files with several
}

func (p *packer) entry(name string) error {
	info, err := p.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := statOf(info)
	if err != nil || info.Mode()&fs.ModeSocket != 0 {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = p.root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(plainInfo{info}, target)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Format = name, int(st.Uid), int(st.Gid), tar.FormatPAX
	h.ModTime = info.ModTime()
	if info.IsDir() {
		h.Name += "/"
	}
	if st.Nlink > 1 && !info.IsDir() {
		key := [2]uint64{st.Dev, st.Ino}
		if first, ok := p.seen[key]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.tar.WriteHeader(h)
		}
		p.seen[key] = name
	}
	if info.Mode().IsRegular() || info.IsDir() {
		return p.content(name, h)
	}
	return p.tar.WriteHeader(h)
}

// content writes what has a descriptor: attributes, and a file's bytes.
func (p *packer) content(name string, h *tar.Header) error {
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close() // read only: nothing can be lost
	attrs, err := xattrs(f)
	if err != nil {
		return err
	}
	for key, value := range attrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+key] = value
	}
	if err := p.tar.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	n, err := io.Copy(p.tar, io.LimitReader(f, h.Size))
	if err != nil {
		return err
	}
	_, err = io.CopyN(p.tar, zeros{}, h.Size-n)
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// plainInfo hides the host's names of owners from archive/tar, which would look
// them up: they mean nothing for container ids.
type plainInfo struct{ fs.FileInfo }

func (i plainInfo) Uname() (string, error) { return "", nil }
func (i plainInfo) Gname() (string, error) { return "", nil }

// Unpack makes the entries of a tar in an empty directory. No entry, and no link
// that an entry makes, leads out of it (os.Root). Devices are refused: a volume
// has no use for them. Owners must be ids that exist; a tar without a PAX header
// gives seconds for times.
func Unpack(ctx context.Context, r io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer root.Close() // each file was closed by itself
	u := unpacker{root: root, buf: make([]byte, 1<<20)}
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("unpack: %w", err)
		}
		if err := u.entry(h, in); err != nil {
			return fmt.Errorf("unpack %q: %w", h.Name, err)
		}
	}
	// The last one first: making an entry changes its directory's time.
	for i := len(u.dirs) - 1; i >= 0; i-- {
		if err := u.finish(u.dirs[i].name, u.dirs[i].h); err != nil {
			return fmt.Errorf("unpack %q: %w", u.dirs[i].h.Name, err)
		}
	}
	return nil
}

type unpacker struct {
	root *os.Root
	buf  []byte
	dirs []madeDir
}

type madeDir struct {
	name string
	h    *tar.Header
}

func (u *unpacker) entry(h *tar.Header, in io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := path.Clean("/" + h.Name)[1:]
	if strings.Contains("/"+h.Name+"/", "/../") {
		return errors.New("the name leads upwards")
	}
	if h.Uid < 0 || h.Gid < 0 || h.Uid > maxID || h.Gid > maxID {
		return fmt.Errorf("owner %d:%d is none", h.Uid, h.Gid)
	}
	if name == "" {
		name = "."
	}
	if h.Typeflag == tar.TypeDir {
		if err := u.root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		u.dirs = append(u.dirs, madeDir{name, h})
		return nil
	}
	if name == "." {
		return errors.New("the directory itself is no file")
	}
	if err := u.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return u.make(name, h, in)
}

func (u *unpacker) make(name string, h *tar.Header, in io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, '\x00':
		if err := u.file(name, in); err != nil {
			return err
		}
	case tar.TypeLink:
		return u.root.Link(path.Clean("/" + h.Linkname)[1:], name)
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return u.root.Lchown(name, h.Uid, h.Gid)
	case tar.TypeFifo:
		if err := u.fifo(name); err != nil {
			return err
		}
	default:
		return fmt.Errorf("type %q is not possible in a volume", h.Typeflag)
	}
	return u.finish(name, h)
}

func (u *unpacker) fifo(name string) error {
	dir, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	err = unix.Mknodat(int(dir.Fd()), path.Base(name), unix.S_IFIFO|0o600, 0)
	return errors.Join(err, dir.Close())
}

// file writes a file, and seeks over blocks of zeros.
func (u *unpacker) file(name string, in io.Reader) error {
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = u.sparse(f, in)
	return errors.Join(err, f.Close())
}

func (u *unpacker) sparse(f *os.File, in io.Reader) error {
	const block = 4096
	size := int64(0)
	for {
		n, err := io.ReadFull(in, u.buf)
		for at := 0; at < n; at += block {
			part := u.buf[at:min(at+block, n)]
			if allZero(part) {
				continue
			}
			if _, err := f.WriteAt(part, size+int64(at)); err != nil {
				return err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			// A tar that is cut off is said by the next Next.
			return f.Truncate(size)
		}
		if err != nil {
			return err
		}
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// finish sets owner, mode, attributes and times, in this order: chown(2) takes
// setuid bits and file capabilities away.
func (u *unpacker) finish(name string, h *tar.Header) error {
	if err := u.root.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := u.root.Chmod(name, h.FileInfo().Mode()); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeFifo {
		attrs := map[string]string{}
		for key, value := range h.PAXRecords {
			if key, ok := strings.CutPrefix(key, xattrPrefix); ok && travels(key) {
				attrs[key] = value
			}
		}
		if err := u.attributes(name, attrs); err != nil {
			return err
		}
	}
	if h.ModTime.IsZero() {
		return nil
	}
	return u.root.Chtimes(name, time.Now(), h.ModTime)
}

func (u *unpacker) attributes(name string, attrs map[string]string) error {
	if len(attrs) == 0 {
		return nil
	}
	f, err := u.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(setXattrs(f, attrs), f.Close())
}

// Export writes the volume's content as a tar.
func (s *Store) Export(ctx context.Context, name string, w io.Writer) error {
	v, err := s.Get(name)
	if err != nil {
		return err
	}
	if err := Pack(ctx, v.Path, w); err != nil {
		return fmt.Errorf("export volume %s: %w", name, err)
	}
	return nil
}

// Import makes a volume of a tar. One that exists is ErrExists, or is given the
// content of the tar in place of its own. Either way the old or the new content
// is there, whole, whenever the process dies. The caller has made sure that no
// running container mounts the volume.
func (s *Store) Import(ctx context.Context, name string, r io.Reader, replace bool) error {
	fill := func(data string) error { return Unpack(ctx, r, data) }
	if _, err := s.Get(name); errors.Is(err, ErrNotFound) {
		_, err = s.Create(name, nil, fill)
		return err
	} else if err != nil {
		return err
	}
	if !replace {
		return fmt.Errorf("import volume %s: %w", name, ErrExists)
	}
	tmp, unlock, err := s.temp()
	if err != nil {
		return fmt.Errorf("import volume %s: %w", name, err)
	}
	defer unlock()
	data := filepath.Join(tmp, dataDir)
	if err = makeData(data, fill); err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, data, unix.AT_FDCWD, filepath.Join(s.dir, name, dataDir), unix.RENAME_EXCHANGE)
	}
	if err != nil {
		err = fmt.Errorf("import volume %s: %w", name, err)
	}
	return errors.Join(err, Discard(tmp))
}
