package build

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// root is a directory tree that no operation leads out of: not by "..", not by
// a link, not by a link that is put there between a look and the use of it. All
// its methods but resolve take clean paths relative to the root ("" is the root
// itself) and follow no link at all (openat2(2), RESOLVE_NO_SYMLINKS).
//
// Files that outlived a check by path are what most CVEs of builders are about:
// CVE-2024-1753, CVE-2024-23651, CVE-2026-17106, CVE-2026-55686.
type root struct{ fd int }

// maxLinks is how many links a path may lead through, as in the kernel.
const maxLinks = 40

// openRoot opens the directory at a path that the caller trusts.
func openRoot(dir string) (*root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &root{fd}, nil
}

// sub opens a directory of the tree as a tree of its own.
func (r *root) sub(p string) (*root, error) {
	fd, err := r.openAt(p, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return &root{fd}, nil
}

// Close ends the use of the tree.
func (r *root) Close() error { return unix.Close(r.fd) }

func (r *root) openAt(p string, flags uint64) (int, error) {
	name := p
	if name == "" {
		name = "."
	}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(r.fd, name, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err == unix.EINTR || err == unix.EAGAIN && try < 100 {
			continue // EAGAIN: something was renamed meanwhile (openat2(2))
		}
		if err != nil {
			return -1, pathError("open", p, err)
		}
		return fd, nil
	}
}

// in calls f with the directory that holds p, and p's name in it.
func (r *root) in(op, p string, f func(dir int, name string) error) error {
	dir, name := path.Split(p)
	if name == "" {
		return pathError(op, p, unix.EBUSY) // the root itself has no name
	}
	dir = strings.TrimSuffix(dir, "/")
	at := r.fd
	if dir != "" {
		fd, err := r.openAt(dir, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		at = fd
	}
	if err := f(at, name); err != nil {
		return pathError(op, p, err)
	}
	return nil
}

// open opens a file for reading. It does not wait for the other end of a fifo.
func (r *root) open(p string) (*os.File, error) {
	fd, err := r.openAt(p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), p), nil
}

// list returns the names in a directory, in byte order.
func (r *root) list(p string) ([]string, error) {
	f, err := r.open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	return namesIn(f)
}

func namesIn(dir *os.File) ([]string, error) {
	list, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read directory: %w", err)
	}
	slices.Sort(list)
	return list, nil
}

func (r *root) lstat(p string) (st unix.Stat_t, err error) {
	if p == "" {
		if err := unix.Fstat(r.fd, &st); err != nil {
			return st, pathError("stat", p, err)
		}
		return st, nil
	}
	err = r.in("stat", p, func(dir int, name string) error {
		return unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return st, err
}

func (r *root) readlink(p string) (target string, err error) {
	err = r.in("readlink", p, func(dir int, name string) error {
		target, err = readlinkAt(dir, name)
		return err
	})
	return target, err
}

func readlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// create makes a file that did not exist; nobody else may read it yet.
func (r *root) create(p string) (f *os.File, err error) {
	err = r.in("create", p, func(dir int, name string) error {
		fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err == nil {
			f = os.NewFile(uintptr(fd), p)
		}
		return err
	})
	return f, err
}

func (r *root) mkdir(p string) error {
	return r.in("mkdir", p, func(dir int, name string) error { return unix.Mkdirat(dir, name, 0o700) })
}

func (r *root) symlink(target, p string) error {
	return r.in("symlink", p, func(dir int, name string) error { return unix.Symlinkat(target, dir, name) })
}

func (r *root) link(old, p string) error {
	return r.in("link", old, func(oldDir int, oldName string) error {
		return r.in("link", p, func(dir int, name string) error {
			return unix.Linkat(oldDir, oldName, dir, name, 0)
		})
	})
}

// mknod makes a fifo or a device. A character device 0:0 is how overlayfs says
// "deleted" and never made.
func (r *root) mknod(p string, mode uint32, rdev uint64) error {
	return r.in("mknod", p, func(dir int, name string) error {
		if mode&unix.S_IFMT == unix.S_IFCHR && rdev == 0 {
			return unix.EPERM
		}
		return unix.Mknodat(dir, name, mode&unix.S_IFMT|0o600, int(rdev))
	})
}

func (r *root) remove(p string) error {
	return r.in("remove", p, func(dir int, name string) error {
		err := unix.Unlinkat(dir, name, 0)
		if err == unix.EISDIR {
			err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
		}
		return err
	})
}

// removeAll removes p and what is below it. That p does not exist is no error.
func (r *root) removeAll(p string) error {
	err := r.remove(p)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	list, err := r.list(p)
	if err != nil {
		return err
	}
	for _, name := range list {
		if err := r.removeAll(path.Join(p, name)); err != nil {
			return err
		}
	}
	return r.remove(p)
}

// meta is what a file has besides its content.
type meta struct {
	mode     uint32        // permissions with setuid, setgid and sticky bit; or keep
	uid, gid int           // -1: as it is
	mtime    unix.Timespec // access time is set to the same
	caps     []byte        // security.capability as it is on disk, nil for none
}

// capsName is the only extended attribute that goes into layers, as in BuildKit.
const capsName = "security.capability"

// keep is the mode that changes nothing.
const keep = 1 << 31

// setMeta sets the metadata of p, which is no link.
func (r *root) setMeta(p string, m meta) error {
	fd, err := r.openAt(p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A path descriptor takes no fchmod before Linux 6.6; its name in proc does
	// on all, and it is a directory, file or device: never a link.
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	// The owner first: chown takes setuid bits and capabilities away (chown(2)).
	if err := unix.Fchownat(fd, "", m.uid, m.gid, unix.AT_EMPTY_PATH); err != nil {
		return pathError("chown", p, err)
	}
	if m.mode != keep {
		if err := unix.Chmod(name, m.mode&0o7777); err != nil {
			return pathError("chmod", p, err)
		}
	}
	if m.caps != nil {
		if err := unix.Setxattr(name, capsName, m.caps, 0); err != nil {
			return pathError("set capabilities", p, err)
		}
	}
	return r.setTime(p, m.mtime)
}

// setFileMeta is setMeta for a file that is open for writing.
func setFileMeta(f *os.File, m meta) error {
	fd := int(f.Fd())
	if err := unix.Fchown(fd, m.uid, m.gid); err != nil {
		return pathError("chown", f.Name(), err)
	}
	if err := unix.Fchmod(fd, m.mode&0o7777); err != nil {
		return pathError("chmod", f.Name(), err)
	}
	if m.caps != nil {
		if err := unix.Fsetxattr(fd, capsName, m.caps, 0); err != nil {
			return pathError("set capabilities", f.Name(), err)
		}
	}
	ts := []unix.Timespec{m.mtime, m.mtime}
	if err := unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH); err != nil {
		return pathError("set times", f.Name(), err)
	}
	return nil
}

// setTime sets the times of p itself, be it a link or not.
func (r *root) setTime(p string, at unix.Timespec) error {
	ts := []unix.Timespec{at, at}
	if p == "" {
		return pathError("set times", p, unix.UtimesNanoAt(r.fd, ".", ts, 0))
	}
	return r.in("set times", p, func(dir int, name string) error {
		return unix.UtimesNanoAt(dir, name, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (r *root) lchown(p string, uid, gid int) error {
	return r.in("chown", p, func(dir int, name string) error {
		return unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// caps reads the capabilities of an open file; nil if it has none.
func caps(fd int) ([]byte, error) {
	var buf [64]byte // a vfs_ns_cap_data has 24 bytes
	n, err := unix.Fgetxattr(fd, capsName, buf[:])
	switch {
	case err == unix.ENODATA || err == unix.ENOTSUP:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return bytes.Clone(buf[:n]), nil
}

// isOpaque tells whether a directory of a layer hides what is below it. When
// that cannot be found out, it does.
func (r *root) isOpaque(p string) bool {
	f, err := r.open(p)
	if err != nil {
		return true
	}
	defer f.Close() // read only: nothing can be lost
	_, err = unix.Fgetxattr(int(f.Fd()), "trusted.overlay.opaque", make([]byte, 8))
	return err != unix.ENODATA
}

// resolve follows the links of p, the last one too, as a process would whose
// root directory this is, and returns the path without links. What does not
// exist is taken by its name: it may be made there.
func (r *root) resolve(p string) (string, error) {
	todo := strings.Split(p, "/")
	done := ""
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if done = path.Dir(done); done == "." {
				done = ""
			}
			continue
		}
		next := path.Join(done, name)
		target, err := r.readlink(next)
		switch {
		case err == nil:
			if links++; links > maxLinks {
				return "", pathError("resolve", p, unix.ELOOP)
			}
			if path.IsAbs(target) {
				done = ""
			}
			todo = append(strings.Split(target, "/"), todo...)
		case errors.Is(err, unix.EINVAL), errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			done = next
		default:
			return "", err
		}
	}
	return done, nil
}

func pathError(op, p string, err error) error {
	if err == nil {
		return nil
	}
	var inner *fs.PathError
	if errors.As(err, &inner) {
		return err
	}
	return &fs.PathError{Op: op, Path: "/" + p, Err: err}
}

func isDir(st *unix.Stat_t) bool  { return st.Mode&unix.S_IFMT == unix.S_IFDIR }
func isFile(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }
