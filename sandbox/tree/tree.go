// Package tree packs and unpacks directory trees that a hostile program may
// change at the same time.
//
// A Tree is a directory descriptor and a translation of ids. The life of one
// copy: Pack finds its source below the descriptor, walks it by descriptors, each
// entry opened by its last name alone and never through a link, and writes a tar;
// Unpack reads a tar and makes each entry in a directory that it has found the same
// way. Every path is resolved by the kernel with openat2(2) (RESOLVE_IN_ROOT,
// RESOLVE_NO_MAGICLINKS), so that no link, and no link that is put in place
// between a look and its use, leads out of the tree (CVE-2018-15664,
// GHSA-rg2x-37c3-w2rh, GHSA-vp62-88p7-qqf5). Nothing in the tree is ever executed.
//
// Files of the kernel (proc, sysfs, cgroup …) are neither read nor written, and
// devices are never opened: both act on the machine.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/openat"
)

// ErrKernelFile says that a path lies on a file system whose files are the
// kernel's own.
var ErrKernelFile = errors.New("a file of the kernel, which is not copied")

// IDs translates the ids of a tree's files, which begin at Base on this side, to
// those of its own view, 0 to Count-1. A Count of 0 translates nothing.
type IDs struct{ Base, Count uint32 }

// nobody is what the kernel shows for an id without a translation.
const nobody = 65534

func (i IDs) inside(id uint32) int {
	switch {
	case i.Count == 0:
		return int(id)
	case id >= i.Base && id-i.Base < i.Count:
		return int(id - i.Base)
	}
	return nobody
}

func (i IDs) outside(id int) (int, error) {
	last := int64(1<<32 - 2) // the kernel takes the one above for "none", and cuts off what is higher (chown(2))
	if i.Count > 0 {
		last = int64(i.Count) - 1
	}
	if id < 0 || int64(id) > last {
		return 0, fmt.Errorf("id %d is outside 0..%d", id, last)
	}
	return int(i.Base) + id, nil
}

// Tree is a directory with everything below it.
type Tree struct {
	root int
	ids  IDs
	// Links says that the links of existing directories below a destination are
	// followed, within the tree, when Unpack goes through them.
	Links bool
}

// New makes a tree of the directory root, which it owns from here on.
func New(root int, ids IDs) *Tree { return &Tree{root: root, ids: ids} }

// Open makes a tree of a directory of this machine, without a translation.
func Open(dir string) (*Tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("open", dir, err)
	}
	return New(fd, IDs{}), nil
}

// Close gives the directory back.
func (t *Tree) Close() error { return unix.Close(t.root) }

// Info is what Stat finds.
type Info struct {
	Mode fs.FileMode
	Size int64
	Link string // where a link leads
}

// Stat looks at a path, and with follow at what a link leads to.
func (t *Tree) Stat(name string, follow bool) (Info, error) {
	fd, err := t.openPath(name, follow)
	if err != nil {
		return Info{}, pathError("stat", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Info{}, pathError("stat", name, err)
	}
	i := Info{Mode: fileMode(st.Mode), Size: st.Size}
	if i.Mode&fs.ModeSymlink != 0 {
		if i.Link, err = readlink(fd, ""); err != nil {
			return i, pathError("readlink", name, err)
		}
	}
	return i, nil
}

// Resolve follows the links of a path to its end and gives the place that it
// names, within the tree; the last part may be missing.
func (t *Tree) Resolve(name string) (string, error) {
	const most = 40 // as in the kernel, path_resolution(7)
	for range most {
		info, err := t.Stat(name, false)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode&fs.ModeSymlink == 0 {
			return name, nil
		}
		if err != nil {
			return "", err
		}
		if path.IsAbs(info.Link) {
			name = info.Link
		} else {
			name = path.Dir(path.Clean("/"+name)) + "/" + info.Link // not cleaned: ".." may follow a link
		}
	}
	return "", pathError("resolve", name, unix.ELOOP)
}

// openPath gives a path descriptor of name, whatever it is.
func (t *Tree) openPath(name string, follow bool) (int, error) {
	flags := uint64(unix.O_PATH)
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	return openIn(t.root, name, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

func openIn(dir int, name string, flags, resolve uint64) (int, error) {
	if name = strings.TrimLeft(name, "/"); name == "" {
		name = "."
	}
	return openat.Open(dir, name, flags, resolve)
}

// openNode gives a path descriptor of one entry of a directory.
func openNode(dir int, base string) (int, error) {
	for {
		fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// reopen opens what a path descriptor names for reading. The caller has seen that it is a
// directory or a regular file: to open a device acts on it.
func reopen(fd int, flags int) (*os.File, error) {
	f, err := unix.Open(selfFD(fd), flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(f), "entry"), nil
}

func selfFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// kernelFS says whether fd lies on a file system of the kernel's own files.
func kernelFS(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, fmt.Errorf("statfs: %w", err)
	}
	const mqueue = 0x19800202
	return slices.Contains([]int64{
		unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC, mqueue,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.BPF_FS_MAGIC, unix.SECURITYFS_MAGIC, unix.NSFS_MAGIC, unix.EFIVARFS_MAGIC,
	}, int64(st.Type)), nil
}

// mountOf is the id of the mount that fd lies on (statx(2), Linux 5.8).
func mountOf(fd int) (uint64, error) {
	var x unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &x); err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	return x.Mnt_id, nil
}

func readlink(dir int, base string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m | map[uint32]fs.FileMode{
		unix.S_IFDIR: fs.ModeDir, unix.S_IFLNK: fs.ModeSymlink, unix.S_IFIFO: fs.ModeNamedPipe, unix.S_IFSOCK: fs.ModeSocket,
		unix.S_IFBLK: fs.ModeDevice, unix.S_IFCHR: fs.ModeDevice | fs.ModeCharDevice,
	}[mode&unix.S_IFMT]
}

func pathError(op, name string, err error) error {
	if err == nil || errors.As(err, new(*fs.PathError)) {
		return err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}
