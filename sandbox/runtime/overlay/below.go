package overlay

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CloneBelow returns a detached mount that begins at a file or directory of root,
// which is a detached mount too. Linux clones such a one since 6.15; before, it is
// attached where only the calling thread sees it, and then no longer detached.
func CloneBelow(root, at *os.File) (*os.File, error) {
	clone := func() (int, error) {
		return unix.OpenTree(int(at.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	}
	fd, err := clone()
	if errors.Is(err, unix.EINVAL) {
		err = Apart(func() error {
			if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
				return fmt.Errorf("attach: %w", err)
			}
			fd, err = clone()
			return err
		})
	}
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: at.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), at.Name()), nil
}
