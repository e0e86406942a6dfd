package events

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watcher waits for changes in a directory (inotify(7)).
type watcher struct {
	f   *os.File
	buf []byte
}

func newWatcher(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), f.Close())
	}
	return &watcher{f, make([]byte, 4096)}, nil
}

func (w *watcher) close() { _ = w.f.Close() } // nothing was written

// wait returns true when something may have changed, and false when ctx has ended.
func (w *watcher) wait(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	stop := context.AfterFunc(ctx, func() { w.close() })
	_, err := w.f.Read(w.buf)
	return stop() && err == nil
}
