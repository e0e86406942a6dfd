package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Discard deletes the tree at path, and detaches first whatever is mounted in
// it: deleting through a forgotten bind mount would empty what lies behind. A
// missing path is no error.
func Discard(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := detach(path); err != nil {
		return err
	}
	// os.RemoveAll walks by descriptor and follows no link (unlinkat(2)).
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	return nil
}

// detach unmounts everything strictly below path, the deepest first.
func detach(path string) error {
	resolved, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	prefix := filepath.Join(resolved, filepath.Base(path))
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != prefix && !strings.HasPrefix(m.Mountpoint, prefix+"/"), false
	})
	if err != nil {
		return fmt.Errorf("discard: read mounts: %w", err)
	}
	// mountinfo lists a mount after the one it lies on.
	for i := len(mounts) - 1; i >= 0; i-- {
		at := mounts[i].Mountpoint
		if err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("discard: unmount %s: %w", at, err)
		}
	}
	return nil
}
