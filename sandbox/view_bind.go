package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/openat"
)

// bindIdle attaches a host path below root, where a path of the image is resolved
// by the kernel inside of it.
func bindIdle(root int, source, target string, options []string) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if slices.Contains(options, "rbind") {
		flags |= unix.AT_RECURSIVE
	}
	bound, err := unix.OpenTree(unix.AT_FDCWD, source, flags)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: source, Err: err}
	}
	defer unix.Close(bound)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if slices.Contains(options, "ro") {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(bound, "", unix.AT_EMPTY_PATH|flags&unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(bound, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	at, err := mountPoint(root, target, st.Mode&unix.S_IFMT == unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	return unix.MoveMount(bound, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// mountPoint opens the place of a mount, and makes it when the container has never
// run.
func mountPoint(root int, target string, dir bool) (int, error) {
	at, err := openInRoot(root, target)
	if !errors.Is(err, unix.ENOENT) {
		return at, err
	}
	parent, err := mountPoint(root, path.Dir(target), true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if dir {
		err = unix.Mkdirat(parent, path.Base(target), 0o755)
	} else {
		err = unix.Mknodat(parent, path.Base(target), unix.S_IFREG|0o644, 0)
	}
	if err != nil {
		return -1, fmt.Errorf("make %s: %w", target, err)
	}
	return openInRoot(root, target)
}

func openInRoot(root int, target string) (int, error) {
	return openat.Open(root, target, unix.O_PATH, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}
