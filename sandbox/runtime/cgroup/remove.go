package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Remove deletes the group's directories, those that processes of the container
// made below, and parents that this package made and that have become empty. Nothing
// to remove is no error.
func (g *Group) Remove() error {
	if err := g.valid(); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	var errs []error
	seen := map[string]bool{}
	for _, mount := range g.host.mounts() {
		if !seen[mount] {
			seen[mount] = true
			errs = append(errs, removeTree(filepath.Join(mount, g.path)))
			removeParents(mount, filepath.Dir(g.path))
		}
	}
	return errors.Join(errs...)
}

func (h Host) mounts() []string {
	var all []string
	if h.Unified != "" {
		all = append(all, h.Unified)
	}
	for _, m := range h.V1 {
		all = append(all, m)
	}
	return all
}

// removeTree removes directories only, deepest first; a dying process keeps its
// directory busy for a moment.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	for try := 0; err != nil && !errors.Is(err, fs.ErrNotExist) && try < 50; try++ {
		entries, readErr := os.ReadDir(dir)
		if errors.Is(readErr, fs.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		if err = unix.Rmdir(dir); errors.Is(err, unix.EBUSY) {
			time.Sleep(time.Duration(try) * 200 * time.Microsecond)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func removeParents(mount, path string) {
	for path != "." && path != "/" {
		dir := filepath.Join(mount, path)
		if _, err := unix.Getxattr(dir, madeXattr, nil); err != nil || unix.Rmdir(dir) != nil {
			return
		}
		path = filepath.Dir(path)
	}
}
