package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/tree"
)

// CopyPlace is a path in a container, or on the host without one.
type CopyPlace struct{ Container, Path string }

// CopyOptions are the choices of one Copy.
type CopyOptions struct {
	Archive bool // keep owners, setuid and setgid bits, and extended attributes
	Follow  bool // copy what the source leads to, should it be a link
}

// Copy copies a file or directory between a container and the host, or two
// containers, with the rules of docker cp: into a directory that exists, else as
// the destination itself; a source that ends in "/." means its content. Without
// Archive everything belongs to root of the container, or to the caller.
//
// It works on stopped containers too. Nothing of a container is executed, and no link
// in it leads out (package tree).
func (e *Engine) Copy(ctx context.Context, from, to CopyPlace, o CopyOptions) error {
	src, err := e.openPlace(ctx, from)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer src.Close() // read only: nothing can be lost
	dst, err := e.openPlace(ctx, to)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	info, err := src.Stat(from.Path, o.Follow)
	if err == nil {
		err = copyTrees(ctx, src.Tree, dst.Tree, plannedCopy{from.Path, to.Path, info.Mode.IsDir(), o, owner(to, o)})
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}

// openPlace opens the tree that a path is in.
func (e *Engine) openPlace(ctx context.Context, p CopyPlace) (*openedTree, error) {
	if p.Container == "" {
		if !filepath.IsAbs(p.Path) {
			return nil, fmt.Errorf("path %q on the host is not absolute", p.Path)
		}
		t, err := tree.Open("/")
		return &openedTree{Tree: t}, err
	}
	id, err := e.resolve(p.Container)
	if err != nil {
		return nil, err
	}
	r, err := e.load(id)
	if err != nil {
		return nil, err
	}
	return e.openTree(ctx, r)
}

// owner of what is made at a place; nil keeps what it has.
func owner(to CopyPlace, o CopyOptions) *[2]int {
	switch {
	case o.Archive:
		return nil
	case to.Container != "":
		return &[2]int{0, 0}
	}
	return &[2]int{os.Geteuid(), os.Getegid()}
}

// plannedCopy is a copy whose source is known.
type plannedCopy struct {
	from, to string
	dir      bool // the source is one
	options  CopyOptions
	owner    *[2]int
}

// place decides into which directory, and under which name; "" is the content of a directory alone.
func (p plannedCopy) place(dst *tree.Tree) (dir, name string, err error) {
	to, err := dst.Resolve(p.to)
	if err != nil {
		return "", "", err
	}
	info, err := dst.Stat(to, true)
	wantsDir := strings.HasSuffix(p.to, "/") || strings.HasSuffix(p.to, "/.")
	switch {
	case err == nil && info.Mode.IsDir():
		if p.dir && (strings.HasSuffix(p.from, "/.") || path.Clean("/"+p.from) == "/") {
			return to, "", nil
		}
		return to, path.Base(path.Clean("/" + p.from)), nil
	case err == nil && (p.dir || wantsDir):
		return "", "", &fs.PathError{Op: "copy to", Path: p.to, Err: unix.ENOTDIR}
	case errors.Is(err, fs.ErrNotExist) && (p.dir || !wantsDir), err == nil:
		clean := strings.TrimRight(to, "/")
		return path.Dir(clean), path.Base(clean), nil
	}
	return "", "", err
}

func copyTrees(ctx context.Context, src, dst *tree.Tree, p plannedCopy) error {
	dir, name, err := p.place(dst)
	if err != nil {
		return err
	}
	return src.CopyTo(ctx, p.from, tree.PackOptions{As: name, Follow: p.options.Follow}, tree.Place{
		Tree: dst, Dir: dir, Options: tree.UnpackOptions{Owner: p.owner, Archive: p.options.Archive},
	})
}

// CopyOut writes a file or directory of a container as a tar.
func (e *Engine) CopyOut(ctx context.Context, from CopyPlace, o CopyOptions, w io.Writer) error {
	src, err := e.openPlace(ctx, from)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer src.Close() // read only: nothing can be lost
	name := path.Base(path.Clean("/" + from.Path))
	if strings.HasSuffix(from.Path, "/.") || name == "/" {
		name = ""
	}
	if err := src.Pack(ctx, w, from.Path, tree.PackOptions{As: name, Follow: o.Follow}); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}

// CopyIn unpacks a tar into a directory of a container. Owners are those of the
// tar with Archive, and root's without.
func (e *Engine) CopyIn(ctx context.Context, to CopyPlace, o CopyOptions, r io.Reader) error {
	dst, err := e.openPlace(ctx, to)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	err = dst.Unpack(ctx, r, to.Path, tree.UnpackOptions{Owner: owner(to, o), Archive: o.Archive})
	if err = errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}

// Export writes the root file system of a container as a tar, without what is in
// its volumes.
func (e *Engine) Export(ctx context.Context, ref string, w io.Writer) error {
	src, err := e.openPlace(ctx, CopyPlace{ref, "/"})
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer src.Close() // read only: nothing can be lost
	if err := src.Pack(ctx, w, "/", tree.PackOptions{OneMount: true}); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}
