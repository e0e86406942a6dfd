package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// PackOptions are the choices of one Pack.
type PackOptions struct {
	// As is the first name in the tar; empty: the content of a directory, without a name.
	As string
	// Follow packs what a link at the end of the path leads to.
	Follow bool
	// OneMount packs what is mounted below the source as empty directories.
	OneMount bool
	// Capabilities keeps the file capabilities, which Unpack leaves out.
	Capabilities bool
	// Skip leaves paths below the source out, such as "etc/hosts".
	Skip []string
}

// Pack writes the file or directory name as a tar. Sockets are left out, and a
// file that shrinks while it is read is filled up with zeros.
func (t *Tree) Pack(ctx context.Context, w io.Writer, name string, o PackOptions) error {
	fd, err := t.openPath(name, o.Follow)
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(fd)
	if kernel, err := kernelFS(fd); err != nil || kernel {
		return pathError("copy", name, errors.Join(err, ErrKernelFile))
	}
	p := &packer{ids: t.ids, o: o, tar: tar.NewWriter(w), links: map[[2]uint64]string{}, buf: make([]byte, 128<<10)}
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
	tar   *tar.Writer
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
		return p.file(ctx, fd, h, st.Size)
	case unix.S_IFSOCK:
		return nil // means nothing without the process that listens
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

func (p *packer) file(ctx context.Context, fd int, h *tar.Header, size int64) error {
	f, err := reopen(fd, unix.O_RDONLY)
	if err != nil {
		return pathError("open", h.Name, err)
	}
	defer f.Close() // read only: nothing can be lost
	h.Typeflag, h.Size = tar.TypeReg, size
	if p.o.Capabilities {
		value := make([]byte, 64) // a vfs_ns_cap_data has 24 bytes
		if n, err := unix.Fgetxattr(int(f.Fd()), "security.capability", value); err == nil {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(value[:n])}
		} else if !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return pathError("read capabilities", h.Name, err)
		}
	}
	if err := p.header(h); err != nil {
		return err
	}
	return pathError("read", h.Name, p.content(ctx, f, size))
}

// content copies size bytes, and asks between the chunks whether to go on.
func (p *packer) content(ctx context.Context, r io.Reader, size int64) error {
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := p.buf[:min(size, int64(len(p.buf)))]
		n, err := io.ReadFull(r, part)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			clear(part[n:])
		} else if err != nil {
			return err
		}
		if _, err := p.tar.Write(part); err != nil {
			return err
		}
		size -= int64(len(part))
	}
	return nil
}

// directory packs one with its children; those on other mounts or of the kernel
// remain as empty directories.
func (p *packer) directory(ctx context.Context, fd int, h *tar.Header) error {
	name := h.Name
	if name != "" {
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		if err := p.header(h); err != nil {
			return err
		}
	}
	if mount, err := mountOf(fd); err != nil || p.o.OneMount && mount != p.mount {
		return pathError("pack", name, err)
	}
	if kernel, err := kernelFS(fd); err != nil || kernel {
		return pathError("pack", name, err)
	}
	dir, err := reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return pathError("open", name, err)
	}
	defer dir.Close() // read only: nothing can be lost
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return pathError("read directory", name, err)
	}
	slices.Sort(names)
	for _, base := range names {
		child := path.Join(name, base)
		if slices.Contains(p.o.Skip, child) {
			continue
		}
		if err := p.child(ctx, int(dir.Fd()), base, child); err != nil {
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
