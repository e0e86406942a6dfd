package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile is the name of a container's lock in its directory.
const lockFile = "lock"

// lock is a held flock(2). It ends with Unlock or with the process.
type lock struct{ f *os.File }

// tryLock takes the lock at path, which it creates if the directory exists, and
// fails with ErrBusy when somebody holds it.
func tryLock(path string, how int) (*lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(ErrBusy, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("flock: %w", err), f.Close())
	}
	// The holder before us may have removed or renamed the directory.
	if !sameFile(f, path) {
		return nil, errors.Join(ErrNotFound, f.Close())
	}
	return &lock{f}, nil
}

func sameFile(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(held, named)
}

// waitLock is tryLock that waits for the holder until ctx ends.
func waitLock(ctx context.Context, path string, how int) (*lock, error) {
	pause := 200 * time.Microsecond
	for {
		l, err := tryLock(path, how)
		if !errors.Is(err, ErrBusy) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// Unlock gives the lock back. Closing the only descriptor does it.
func (l *lock) Unlock() {
	if l != nil {
		_ = l.f.Close() // nothing was written: there is nothing to lose
	}
}

// lockWait is how long an operation waits for another one on the same
// container; none holds the lock while it waits for the container itself.
const lockWait = 30 * time.Second

func (e *Engine) lockContainer(ctx context.Context, id string) (*lock, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	l, err := waitLock(ctx, filepath.Join(e.dir(id), lockFile), unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("lock container %s: %w", short(id), err)
	}
	return l, nil
}

// lockRoot takes the lock of the whole root: shared while a container is being
// claimed, exclusive while Recover looks for claims without an owner.
func (e *Engine) lockRoot(ctx context.Context, how int) (*lock, error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	l, err := waitLock(ctx, filepath.Join(e.root, lockFile), how)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return l, nil
}

// short is the part of an id that people read.
func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}
