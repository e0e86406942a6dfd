// Package overlay opens the directories of an overlay mount and stacks them on
// kernels whose overlayfs takes neither descriptors nor one layer at a time.
//
// The life of one mount: Open clones every directory out of sight, id-mapped if
// the caller's function does so; Mount attaches the clones in a mount namespace
// that only its own thread sees, mounts there with short relative names, and
// returns a detached clone of the result. Nothing is ever attached where
// another process could find it, and after an error nothing is left.
//
// Newer kernels do the same by fsconfig(2), with less work: "lowerdir+" is Linux
// 6.7, descriptors as its value 6.13, and of detached mounts 6.15. Before,
// overlayfs wants mounts of the caller's own namespace and all layers in one
// string, which fsconfig(2) limits to 255 bytes.
package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Dirs names the directories: Lower bottom first, Upper and Work both or none.
type Dirs struct {
	Lower       []string
	Upper, Work string
}

// Layers are the same as descriptors of detached mounts.
type Layers struct {
	Lower       []*os.File // top first, as the kernel wants them
	Upper, Work *os.File   // nil without
	tree        *os.File   // the mount that both lie in
}

// Clone is the plain way to open a directory: a detached clone of its mount that
// begins there (open_tree(2)).
func Clone(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Open clones each directory. Upper and work must lie in one mount for
// overlayfs, so their common parent is cloned.
func Open(d Dirs, clone func(path string) (*os.File, error)) (_ *Layers, err error) {
	l := &Layers{}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	for i := len(d.Lower) - 1; i >= 0; i-- {
		f, err := clone(d.Lower[i])
		if err != nil {
			return nil, err
		}
		l.Lower = append(l.Lower, f)
	}
	if d.Upper == "" {
		return l, nil
	}
	parent := commonDir(d.Upper, d.Work)
	if l.tree, err = clone(parent); err != nil {
		return nil, err
	}
	if l.Upper, err = openBelow(l.tree, parent, d.Upper); err != nil {
		return nil, err
	}
	l.Work, err = openBelow(l.tree, parent, d.Work)
	return l, err
}

// Close drops the descriptors; a mount made of them stays.
func (l *Layers) Close() {
	for _, f := range append([]*os.File{l.Upper, l.Work, l.tree}, l.Lower...) {
		if f != nil {
			f.Close()
		}
	}
}

func commonDir(a, b string) string {
	dir := filepath.Dir(filepath.Clean(a))
	for dir != "/" && dir != "." && !strings.HasPrefix(filepath.Clean(b)+"/", dir+"/") {
		dir = filepath.Dir(dir)
	}
	return dir
}

func openBelow(tree *os.File, parent, path string) (*os.File, error) {
	rel, err := filepath.Rel(parent, path)
	if err != nil {
		return nil, err
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(int(tree.Fd()), rel, how)
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Appends says whether fsconfig(2) adds layers to an overlay one by one. It asks
// so that nothing appears in the kernel's log: a kernel before 6.5 would take
// the unknown option and complain at the mount.
var Appends = sync.OnceValue(func() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetFd(fs, "lowerdir+", fs) // refused, but where strings are all there is (EOPNOTSUPP) for that reason
	return !errors.Is(err, unix.EOPNOTSUPP) && unix.FsconfigSetString(fs, "lowerdir+", "/") == nil
})

// MountDirs is Open with Clone, then Mount.
func MountDirs(d Dirs, options []string, flags uintptr) (int, error) {
	l, err := Open(d, Clone)
	if err != nil {
		return -1, err
	}
	defer l.Close()
	return l.Mount(options, flags)
}

// Mount stacks the layers by mount(2). Options are overlayfs' own, such as
// "index=off", without commas; flags are MS_*. The layers cannot be mounted
// a second time. It returns the descriptor of a detached mount.
func (l *Layers) Mount(options []string, flags uintptr) (fd int, err error) {
	err = Apart(func() error {
		if err := enterScratch(); err != nil {
			return err
		}
		names, err := l.attach()
		if err != nil {
			return err
		}
		data := strings.Join(append(names, options...), ",")
		if err := unix.Mount("overlay", dirMerged, "overlay", flags, data); err != nil {
			return fmt.Errorf("mount overlay of %d layers: %w", len(l.Lower), err)
		}
		fd, err = unix.OpenTree(unix.AT_FDCWD, dirMerged, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open_tree overlay: %w", err)
		}
		return nil
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// The names in the scratch directory, beside those of the lower layers: "0", "1"…
const (
	dirMerged = "merged"
	dirTree   = "tree"
)

// enterScratch makes an empty tmpfs, attached above the root of this thread's
// namespace, the working directory.
func enterScratch() error {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen tmpfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("create tmpfs: %w", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount tmpfs: %w", err)
	}
	defer unix.Close(dir)
	if err := unix.MoveMount(dir, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach tmpfs: %w", err)
	}
	if err := unix.Fchdir(dir); err != nil {
		return fmt.Errorf("enter tmpfs: %w", err)
	}
	return unix.Mkdir(dirMerged, 0o700)
}

// attach puts the clones into the scratch directory and names them for overlayfs.
func (l *Layers) attach() (options []string, err error) {
	put := func(f *os.File, name string) error {
		if err := unix.Mkdir(name, 0o700); err != nil {
			return err
		}
		if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach %s: %w", f.Name(), err)
		}
		return nil
	}
	var names []string
	for i, f := range l.Lower {
		names = append(names, strconv.Itoa(i))
		if err := put(f, names[i]); err != nil {
			return nil, err
		}
	}
	options = []string{"lowerdir=" + strings.Join(names, ":")}
	if l.Upper == nil {
		return options, nil
	}
	// By descriptor: their names below the tree may hold what the option's syntax uses.
	return append(options, fmt.Sprintf("upperdir=/proc/self/fd/%d", l.Upper.Fd()), fmt.Sprintf("workdir=/proc/self/fd/%d", l.Work.Fd())),
		put(l.tree, dirTree)
}
