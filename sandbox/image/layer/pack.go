package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/xattr"
)

// Pack writes the layer tar of dir, a directory in overlay form that nothing
// else uses meanwhile, to w. The same tree gives the same bytes: names in byte
// order, times in whole seconds, no user names, PAX records only where USTAR
// cannot say it. The root itself has no entry, as with BuildKit.
func Pack(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // read only
	out := newAhead(w)
	p := &packer{tar: tar.NewWriter(out), links: map[inode]string{}, buf: make([]byte, 128<<10)}
	err = p.children(ctx, root, "")
	if err == nil {
		err = p.tar.Close()
	}
	if writeErr := out.close(); err == nil {
		err = writeErr // one that a write has returned already is in err
	}
	return err
}

type inode struct{ dev, ino uint64 }

type packer struct {
	tar   *tar.Writer
	links map[inode]string // the name that carried the data of a file with several
	buf   []byte
}

// children packs what is in the open directory dir, whose path is prefix ("" or "a/b/").
// The opaque marker comes first: some readers obey it when they see it.
func (p *packer) children(ctx context.Context, dir *os.File, prefix string) error {
	if isOpaque(int(dir.Fd())) {
		if err := p.marker(prefix + opaqueMarker); err != nil {
			return err
		}
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", prefix, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.entry(ctx, dir, prefix, name); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) entry(ctx context.Context, dir *os.File, prefix, name string) error {
	path := prefix + name
	if strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("pack %q: a layer cannot contain names that start with %q (image-spec, layer.md)", path, whiteoutPrefix)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("pack %q: %w", path, err)
	}
	// Whiteouts first: the kernel makes many of them hard links to one inode.
	if isWhiteout(&st) {
		return p.marker(prefix + whiteoutPrefix + name)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFSOCK { // means nothing without the process that listened
		return nil
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := p.links[id]; ok {
			h := header(path, &st)
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.write(h)
		}
		p.links[id] = path
	}
	var err error
	switch kind {
	case unix.S_IFREG, unix.S_IFDIR:
		err = p.opened(ctx, dir, prefix+name, &st)
	default:
		err = p.special(dir, path, name, &st)
	}
	if err != nil {
		return fmt.Errorf("pack %q: %w", path, err)
	}
	return nil
}

// opened packs a file or a directory of dir through one descriptor. A file's is not
// made an os.File, which costs as many calls as all the rest of a small one.
func (p *packer) opened(ctx context.Context, dir *os.File, path string, st *unix.Stat_t) error {
	name := path[strings.LastIndexByte(path, '/')+1:]
	fd, err := openAt(int(dir.Fd()), name)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		f := os.NewFile(uintptr(fd), name)
		defer func() { _ = f.Close() }() // read only
		return p.directory(ctx, f, path, st)
	}
	defer func() { _ = unix.Close(fd) }() // read only
	h := header(path, st)
	whiteout, err := p.attributes(fd, h)
	if err != nil {
		return err
	}
	if whiteout && st.Size == 0 {
		return p.marker(path[:len(path)-len(name)] + whiteoutPrefix + name)
	}
	h.Typeflag = tar.TypeReg
	if err := p.write(h); err != nil {
		return err
	}
	return p.content(ctx, fd, h.Size)
}

func openAt(dir int, name string) (fd int, err error) {
	for {
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func (p *packer) directory(ctx context.Context, f *os.File, path string, st *unix.Stat_t) error {
	h := header(path+"/", st)
	if _, err := p.attributes(int(f.Fd()), h); err != nil {
		return err
	}
	h.Typeflag, h.Size = tar.TypeDir, 0
	if err := p.write(h); err != nil {
		return err
	}
	return p.children(ctx, f, path+"/")
}

// content copies size bytes, and asks between the chunks whether to go on.
func (p *packer) content(ctx context.Context, fd int, size int64) error {
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Read(fd, p.buf[:min(size, int64(len(p.buf)))])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("read content: %w", err)
		case n == 0:
			return fmt.Errorf("read content: %w", io.ErrUnexpectedEOF)
		}
		if _, err := p.tar.Write(p.buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// attributes adds what belongs into the layer to h. whiteout reports the second form
// of one that newer kernels know, an empty file with trusted.overlay.whiteout.
func (p *packer) attributes(fd int, h *tar.Header) (whiteout bool, err error) {
	names, err := xattr.List(fd)
	if err != nil || len(names) == 0 {
		return false, err
	}
	for _, name := range names {
		switch name {
		case overlayPrefix + "redirect", overlayPrefix + "metacopy":
			// The data or the children are in another layer. The caller mounted
			// without redirect_dir=off,metacopy=off.
			return false, fmt.Errorf("%s is set: the directory is no complete layer", name)
		case overlayPrefix + "whiteout":
			whiteout = true
		}
	}
	attrs, err := layerXattrs(fd)
	h.PAXRecords = xattr.ToRecords(attrs)
	return whiteout, err
}

// special packs what has no content and whose attributes mean nothing.
func (p *packer) special(dir *os.File, path, name string, st *unix.Stat_t) error {
	h := header(path, st)
	h.Size = 0
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(dir.Fd()), name, target)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, string(target[:n])
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return fmt.Errorf("unknown file type %#o", st.Mode&unix.S_IFMT)
	}
	return p.write(h)
}

// marker writes an empty file that means something by its name.
func (p *packer) marker(path string) error {
	return p.write(&tar.Header{Name: path, Typeflag: tar.TypeReg, Format: tar.FormatPAX, ModTime: time.Unix(0, 0)})
}

func (p *packer) write(h *tar.Header) error {
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	return nil
}

func header(path string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Name: path, Mode: int64(st.Mode & 0o7777), Size: st.Size,
		Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, 0), Format: tar.FormatPAX,
	}
}
