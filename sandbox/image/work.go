package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// workspace is a private directory below tmp/ for one operation. Its owner
// holds a lock on it, which the kernel drops when the process dies.
type workspace struct {
	dir  string
	lock *os.File // nil: its owner died before it made one, or removes it now
	gone bool
}

const lockName = "lock"

// newWorkspace creates and locks one. Both happen while the store is locked,
// so that Sweep never sees a workspace that is not locked yet.
func (s *Store) newWorkspace() (w *workspace, err error) {
	err = s.locked(unix.LOCK_SH, func() error {
		dir, err := os.MkdirTemp(s.path("tmp"), "")
		if err != nil {
			return err
		}
		lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		w = &workspace{dir: dir, lock: lock}
		return flock(lock, unix.LOCK_EX|unix.LOCK_NB)
	})
	if err != nil {
		return nil, fmt.Errorf("create workspace: %w", err)
	}
	return w, nil
}

func (w *workspace) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

// mkdir creates a new directory in the workspace with exactly this mode.
func (w *workspace) mkdir(pattern string, mode fs.FileMode) (string, error) {
	dir, err := os.MkdirTemp(w.dir, pattern)
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, mode)
}

// remove deletes the workspace; a second call does nothing.
func (w *workspace) remove() error {
	if w.gone {
		return nil
	}
	w.gone = true
	err := removeTree(w.dir)
	if w.lock != nil {
		err = errors.Join(err, w.lock.Close())
	}
	if err != nil {
		return fmt.Errorf("remove workspace: %w", err)
	}
	return nil
}

// removeTree deletes a tree below tmp/. Mounts in it go first: deleting through
// one would empty what is mounted there.
func removeTree(dir string) error {
	// mountinfo shows no symbolic links
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != real && !strings.HasPrefix(m.Mountpoint, real+"/"), false
	})
	if err != nil {
		return fmt.Errorf("look for mounts below %s: %w", dir, err)
	}
	for i := len(mounts) - 1; i >= 0; i-- { // the last mounted first
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", mounts[i].Mountpoint, err)
		}
	}
	return os.RemoveAll(real)
}

// Sweep removes the workspaces and leases of processes that no longer run.
// Open calls it; a process that runs for long may call it again at any time.
func (s *Store) Sweep() error {
	dead, err := s.deadWorkspaces()
	for _, w := range dead { // outside the lock: trees can be large
		err = errors.Join(err, w.remove())
	}
	if err != nil {
		return fmt.Errorf("sweep image store: %w", err)
	}
	return nil
}

func (s *Store) deadWorkspaces() (dead []*workspace, err error) {
	err = s.locked(unix.LOCK_EX, func() error {
		entries, err := os.ReadDir(s.path("tmp"))
		if err != nil {
			return err
		}
		for _, e := range entries {
			dir := s.path("tmp", e.Name())
			lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
			if errors.Is(err, fs.ErrNotExist) { // nobody is making one: the store is locked
				dead = append(dead, &workspace{dir: dir})
				continue
			}
			if err != nil {
				return err
			}
			if flock(lock, unix.LOCK_EX|unix.LOCK_NB) != nil {
				_ = lock.Close() // its owner lives
				continue
			}
			dead = append(dead, &workspace{dir: dir, lock: lock})
		}
		_, err = s.liveLeases(nil)
		return err
	})
	return dead, err
}

// Hold protects layers that no image names yet, and those whose image somebody
// else may remove: while it is held, no layer that was asked for (Lower,
// LayerDir, HasLayer) or made (Commit) since it was taken is removed. It dies
// with the process. A build, and a container being created, takes one.
type Hold struct{ file *os.File }

// Hold takes a hold. Release it.
func (s *Store) Hold() (*Hold, error) {
	h := &Hold{}
	err := s.locked(unix.LOCK_SH, func() (err error) {
		if h.file, err = os.CreateTemp(s.path("leases"), ""); err != nil {
			return err
		}
		if err := os.Chtimes(h.file.Name(), time.Time{}, time.Now()); err != nil {
			return err
		}
		return flock(h.file, unix.LOCK_EX|unix.LOCK_NB)
	})
	if err != nil {
		return nil, fmt.Errorf("hold layers: %w", err)
	}
	return h, nil
}

// Release ends the hold; a second call does nothing.
func (h *Hold) Release() error {
	if h.file == nil {
		return nil
	}
	err := errors.Join(os.Remove(h.file.Name()), h.file.Close())
	h.file = nil
	if err != nil {
		return fmt.Errorf("release hold: %w", err)
	}
	return nil
}

// liveLeases removes dead leases and gives the time at which the oldest
// living one but own was taken; the zero time if there is none. The store is locked exclusively.
func (s *Store) liveLeases(own *Hold) (oldest time.Time, err error) {
	entries, err := os.ReadDir(s.path("leases"))
	if err != nil {
		return oldest, err
	}
	for _, e := range entries {
		path := s.path("leases", e.Name())
		if own != nil && own.file != nil && path == own.file.Name() {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return oldest, err
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = errors.Join(ignoreMissing(os.Remove(path)), f.Close())
		} else if st, statErr := f.Stat(); statErr != nil {
			err = errors.Join(statErr, f.Close())
		} else {
			if oldest.IsZero() || st.ModTime().Before(oldest) {
				oldest = st.ModTime()
			}
			err = f.Close()
		}
		if err != nil {
			return oldest, err
		}
	}
	return oldest, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
