package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/xattr"
)

// PackOptions are the choices of one Pack.
type PackOptions struct {
	// As is the first name in the tar; empty: the content of a directory, without a name;
	// ".": with what the directory itself has (UnpackOptions.Root).
	As string
	// Follow packs what a link at the end of the path leads to.
	Follow bool
	// OneMount packs what is mounted below the source as empty directories.
	OneMount bool
	// NoDevices leaves devices out, which Unpack refuses.
	NoDevices bool
	// Sparse writes files with large holes in GNU tar's format, which GNU tar, bsdtar,
	// archive/tar and Unpack read, and BusyBox does not. Else holes are zeros.
	Sparse bool
}

// Pack writes the file or directory name as a tar, with the extended attributes that
// belong to files. Sockets are left out, and a file that shrinks while it is read is
// filled up with zeros.
func (t *Tree) Pack(ctx context.Context, w io.Writer, name string, o PackOptions) error {
	fd, err := t.openPath(name, o.Follow)
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(fd)
	if kernel, err := kernelFS(fd); err != nil || kernel {
		return pathError("copy", name, errors.Join(err, ErrKernelFile))
	}
	p := &packer{ids: t.ids, o: o, out: w, tar: tar.NewWriter(w), links: map[[2]uint64]string{}, buf: make([]byte, 128<<10)}
	if p.mount, err = mountOf(fd); err != nil {
		return pathError("copy", name, err)
	}
	if err := p.entry(ctx, fd, o.As); err != nil {
		return err
	}
	return p.tar.Close()
}

type packer struct {
	ids   IDs
	o     PackOptions
	out   io.Writer
	tar   *tar.Writer // on out
	mount uint64
	links map[[2]uint64]string // the first name of a file with several
	buf   []byte
}

// entry packs what the path descriptor fd names.
func (p *packer) entry(ctx context.Context, fd int, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError("stat", name, err)
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: p.ids.inside(st.Uid), Gid: p.ids.inside(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.header(h)
		}
		p.links[id] = name
	}
	switch kind {
	case unix.S_IFDIR:
		return p.directory(ctx, fd, h)
	case unix.S_IFREG:
		return p.file(ctx, fd, h, &st)
	case unix.S_IFSOCK:
		return nil // means nothing without the process that listens
	case unix.S_IFCHR, unix.S_IFBLK:
		if p.o.NoDevices {
			return nil
		}
	}
	return p.special(fd, h, &st)
}

func (p *packer) header(h *tar.Header) error { return pathError("pack", h.Name, p.tar.WriteHeader(h)) }

func (p *packer) special(fd int, h *tar.Header, st *unix.Stat_t) (err error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		h.Linkname, err = readlink(fd, "")
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		err = fmt.Errorf("unknown type %o", st.Mode&unix.S_IFMT)
	}
	if err != nil {
		return pathError("pack", h.Name, err)
	}
	return p.header(h)
}

func (p *packer) file(ctx context.Context, fd int, h *tar.Header, st *unix.Stat_t) error {
	f, err := reopen(fd, unix.O_RDONLY)
	if err != nil {
		return pathError("open", h.Name, err)
	}
	defer f.Close() // read only: nothing can be lost
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := p.attributes(f, h); err != nil {
		return err
	}
	parts := []extent{{0, h.Size}}
	if st.Blocks*512 < h.Size {
		if parts, err = extents(f, h.Size); err != nil {
			return pathError("read", h.Name, err)
		}
	}
	if p.o.Sparse && h.Size-total(parts) >= minHoles && len(parts) <= maxExtents {
		if err := p.sparseHeader(h, parts); err != nil {
			return pathError("pack", h.Name, err)
		}
		for _, part := range parts {
			if err := p.data(ctx, p.out, f, part); err != nil {
				return pathError("read", h.Name, err)
			}
		}
		return pathError("pack", h.Name, p.zeros(ctx, p.out, padding(total(parts))))
	}
	if err := p.header(h); err != nil {
		return err
	}
	at := int64(0)
	for _, part := range append(parts, extent{h.Size, 0}) {
		err := p.zeros(ctx, p.tar, part.at-at)
		if err == nil {
			err = p.data(ctx, p.tar, f, part)
		}
		if err != nil {
			return pathError("read", h.Name, err)
		}
		at = part.at + part.size
	}
	return nil
}

// data copies a part of f, and zeros for what is not there any more. It asks between
// the chunks whether to go on.
func (p *packer) data(ctx context.Context, w io.Writer, f io.ReaderAt, part extent) error {
	for part.size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		chunk := p.buf[:min(part.size, int64(len(p.buf)))]
		n, err := f.ReadAt(chunk, part.at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		clear(chunk[n:])
		if _, err := w.Write(chunk); err != nil {
			return err
		}
		part.at, part.size = part.at+int64(len(chunk)), part.size-int64(len(chunk))
	}
	return nil
}

func (p *packer) zeros(ctx context.Context, w io.Writer, n int64) error {
	return p.data(ctx, w, strings.NewReader(""), extent{0, n})
}

func (p *packer) attributes(f *os.File, h *tar.Header) error {
	attrs, err := p.ids.attributesInside(int(f.Fd()))
	if err != nil {
		return pathError("pack", h.Name, err)
	}
	h.PAXRecords = xattr.ToRecords(attrs)
	return nil
}

// directory packs one with its children; those on other mounts or of the kernel
// remain as empty directories.
func (p *packer) directory(ctx context.Context, fd int, h *tar.Header) error {
	name := h.Name
	h.Typeflag, h.Name = tar.TypeDir, name+"/"
	mount, err := mountOf(fd)
	if err != nil {
		return pathError("pack", name, err)
	}
	kernel, err := kernelFS(fd)
	if err != nil {
		return pathError("pack", name, err)
	}
	if kernel || p.o.OneMount && mount != p.mount {
		return p.header(h)
	}
	dir, err := reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return pathError("open", name, err)
	}
	defer dir.Close() // read only: nothing can be lost
	if name != "" {
		if err := p.attributes(dir, h); err != nil {
			return err
		}
		if err := p.header(h); err != nil {
			return err
		}
	}
	return p.children(ctx, dir, name)
}

func (p *packer) children(ctx context.Context, dir *os.File, name string) error {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return pathError("read directory", name, err)
	}
	slices.Sort(names)
	for _, base := range names {
		if err := p.child(ctx, int(dir.Fd()), base, path.Join(name, base)); err != nil {
			return err
		}
	}
	return nil
}

func (p *packer) child(ctx context.Context, dir int, base, name string) error {
	fd, err := openNode(dir, base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since the directory was read
	}
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(fd)
	return p.entry(ctx, fd, name)
}
