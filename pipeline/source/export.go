package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"
)

// limits bound what one export may write.
type limits struct {
	bytes   int64 // sum of all files
	entries int   // files, directories and symlinks
	depth   int   // directories in each other
}

// defaultLimits are far above the largest public repositories that deploy by a
// Dockerfile (the Linux kernel: 1.6 GB, 90,000 files).
var defaultLimits = limits{bytes: 4 << 30, entries: 500_000, depth: 100}

const (
	maxSymlink = 4095 // PATH_MAX without the NUL, symlink(7)
	maxName    = 255  // NAME_MAX
	maxPointer = 1024 // an LFS pointer is smaller, says its specification
	lfsPointer = "version https://git-lfs.github.com/spec/"
)

type exportJob struct {
	objects storer.EncodedObjectStorer
	commit  *object.Commit
	root    *os.Root // empty
	limits  limits
}

// exporter writes one tree.
type exporter struct {
	ctx     context.Context // of this one export
	objects storer.EncodedObjectStorer
	root    *os.Root
	left    limits
	mtime   time.Time
	dirs    []string
	links   []string
	// asIs writes links that lead outside and LFS pointers too: for a tree that
	// nobody follows links in.
	asIs bool
	// submodule is called for submodules; nil: they are refused.
	submodule func(name string, id plumbing.Hash) error
}

// export writes the commit's tree into the directory.
func export(ctx context.Context, j exportJob) error {
	tree, err := j.commit.Tree()
	if err != nil {
		return &corruptError{err}
	}
	e := &exporter{ctx: ctx, objects: j.objects, root: j.root, left: j.limits, mtime: j.commit.Committer.When}
	if err := e.directory("", tree, 0); err != nil {
		return err
	}
	return e.finish()
}

// emptyRoot opens the directory, and makes it when it is not there. What is in it
// is removed only when ours is set: a former try of this export wrote it.
func emptyRoot(dir string, ours bool) (*os.Root, error) {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 && !ours {
		return nil, fmt.Errorf("%s is not empty", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := root.RemoveAll(e.Name()); err != nil {
			return nil, errors.Join(err, root.Close())
		}
	}
	return root, nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}

// directory writes the entries of one tree below the directory at, "" for the top.
func (e *exporter) directory(at string, tree *object.Tree, depth int) error {
	if depth > e.left.depth {
		return refuse("%.200q is more than %d directories deep", at, e.left.depth)
	}
	for i := range tree.Entries {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		entry := &tree.Entries[i]
		if err := checkName(entry.Name); err != nil {
			return fmt.Errorf("%w in %.200q", err, at)
		}
		if e.left.entries--; e.left.entries < 0 {
			return refuse("it has too many files")
		}
		if err := e.entry(path.Join(at, entry.Name), entry, depth); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses names that git itself never writes. ".git" in any case is one
// of them: a program that runs git in the tree would obey its config.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") || strings.EqualFold(name, ".git") {
		return refuse("the file name %.80q is not allowed", name)
	}
	return nil
}

func (e *exporter) entry(name string, entry *object.TreeEntry, depth int) error {
	switch entry.Mode {
	case filemode.Dir:
		if err := e.root.Mkdir(name, 0o755); err != nil {
			return twice(err)
		}
		e.dirs = append(e.dirs, name)
		child, err := object.GetTree(e.objects, entry.Hash)
		if err != nil {
			return &corruptError{fmt.Errorf("directory %q: %w", name, err)}
		}
		return e.directory(name, child, depth+1)
	case filemode.Submodule:
		if e.submodule != nil {
			return e.submodule(name, entry.Hash)
		}
		return refuse("%q is a submodule, which is not supported: put its files into the repository", name)
	case filemode.Regular, filemode.Deprecated, filemode.Executable, filemode.Symlink:
	default:
		return refuse("%q has the unknown mode %s", name, entry.Mode)
	}
	// Not Tree.File: it looks names up a second time, and refuses control
	// characters in them, which git allows.
	file, err := object.GetBlob(e.objects, entry.Hash)
	if err != nil {
		return &corruptError{fmt.Errorf("file %q: %w", name, err)}
	}
	if e.left.bytes -= file.Size; file.Size < 0 || e.left.bytes < 0 {
		return refuse("its files are too large together, at %q", name)
	}
	content, err := file.Reader()
	if err != nil {
		return &corruptError{fmt.Errorf("file %q: %w", name, err)}
	}
	defer content.Close() // only read from: nothing is lost if closing fails
	if entry.Mode == filemode.Symlink {
		return e.symlink(name, file.Size, content)
	}
	return e.file(name, entry.Mode, file.Size, content)
}

// twice names the one reason why something can already be there: the directory was
// empty, so the tree has two entries of a name, which git never makes.
func twice(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return refuse("a name is there twice: %v", err)
	}
	return err
}

// file writes one file. O_EXCL: what is there already is never written to,
// followed or truncated.
func (e *exporter) file(name string, mode filemode.FileMode, size int64, content io.Reader) (err error) {
	perm := fs.FileMode(0o644)
	if mode == filemode.Executable {
		perm = 0o755
	}
	f, err := e.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return twice(err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r := &reader{ctx: e.ctx, r: content}
	if size < maxPointer {
		head := make([]byte, size)
		if _, err := io.ReadFull(r, head); err != nil {
			return r.failed(name, err)
		}
		if bytes.HasPrefix(head, []byte(lfsPointer)) && !e.asIs {
			return refuse("%q is kept in Git LFS, which is not supported: only a pointer to it is in the repository", name)
		}
		if _, err := f.Write(head); err != nil {
			return err
		}
	} else if n, err := io.Copy(f, io.LimitReader(r, size)); err != nil || n != size {
		return r.failed(name, err)
	}
	if err := f.Chmod(perm); err != nil { // past the umask
		return err
	}
	return e.root.Chtimes(name, e.mtime, e.mtime)
}

// reader tells errors of reading, which are damage of the mirror, from those of
// writing, which are not.
type reader struct {
	ctx context.Context // of this one export
	r   io.Reader
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// failed explains why fewer bytes were copied than the file has.
func (r *reader) failed(name string, err error) error {
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case r.err != nil:
		return &corruptError{fmt.Errorf("file %q: %w", name, r.err)}
	case err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return &corruptError{fmt.Errorf("file %q is shorter than its size", name)}
	default:
		return err
	}
}

// symlink writes a link whose text stays inside the tree; where it really leads
// is checked by finish, when all is there.
func (e *exporter) symlink(name string, size int64, content io.Reader) error {
	if size == 0 || size > maxSymlink {
		return refuse("the symlink %q has a target of %d bytes", name, size)
	}
	r := &reader{ctx: e.ctx, r: content}
	text := make([]byte, size)
	if _, err := io.ReadFull(r, text); err != nil {
		return r.failed(name, err)
	}
	target := string(text)
	if strings.ContainsRune(target, 0) {
		return refuse("the symlink %q has a NUL in its target", name)
	}
	if e.asIs {
		return twice(e.root.Symlink(target, name))
	}
	if to := path.Join(path.Dir(name), target); path.IsAbs(target) || to == ".." || strings.HasPrefix(to, "../") {
		return refuse("the symlink %q leaves the repository: %.200q", name, target)
	}
	e.links = append(e.links, name)
	return twice(e.root.Symlink(target, name))
}

// finish follows every symlink, since a path through another symlink can leave the
// tree although its text does not, and sets the times of the directories, deepest
// first. A link to something that is not there is allowed, as in git. A long chain
// is not: os.Root gives up after fewer links than the kernel does, so where the
// chain leads would be unknown.
func (e *exporter) finish() error {
	for _, name := range e.links {
		_, err := e.root.Stat(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return refuse("the symlink %q leaves the repository or is one of a long chain: %v", name, err)
		}
	}
	for i := len(e.dirs) - 1; i >= 0; i-- {
		if err := e.root.Chtimes(e.dirs[i], e.mtime, e.mtime); err != nil {
			return err
		}
	}
	return nil
}
