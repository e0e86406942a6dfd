package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"time"

	"naru/sandbox/monitor"
)

// againTime bounds the wait for another monitor, or for the record of the end.
const againTime = time.Minute

// again connects to the monitor that has taken the place of one that was killed, and
// writes what the log has got meanwhile. If the container has ended, it writes the
// rest of the log.
func (a *Attachment) again(to [2]io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), againTime)
	defer cancel()
	for {
		c, err := Open(a.stateDir, a.dir)
		if errors.Is(err, ErrGone) { // nobody knows how it ended
			a.over, a.code = true, 255
			return a.replay(to, nil)
		}
		if err != nil {
			return err
		}
		over := c.State() == Stopped
		if over {
			err = a.finish(ctx, c, to)
		} else {
			err = a.join(ctx, c, to)
		}
		c.Close()
		if over || err == nil || a.isClosed() || !lost(err) && !errors.Is(err, ErrNotRunning) && !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
	}
}

// finish writes the end of the log.
func (a *Attachment) finish(ctx context.Context, c *Container, to [2]io.Writer) error {
	e, err := c.exit(ctx)
	if err != nil {
		return err
	}
	a.code, a.over = e.Code, true
	return a.replay(to, nil)
}

// join attaches to a running container once more.
func (a *Attachment) join(ctx context.Context, c *Container, to [2]io.Writer) error {
	next, err := c.Attach(ctx, AttachOptions{Once: a.once, Patience: a.patience})
	if err != nil {
		return err
	}
	a.mu.Lock()
	closed := a.closed
	if !closed {
		a.client.close()
		a.client = next.client
		close(a.next)
		a.next = make(chan struct{})
	}
	a.mu.Unlock()
	if closed {
		return next.Close()
	}
	until := next.seen[0]
	err = a.replay(to, &until)
	a.seen = next.seen
	return err
}

// replay writes what the log has behind what was seen, up to a position or, without
// one, up to its end.
func (a *Attachment) replay(to [2]io.Writer, until *monitor.Position) error {
	files, err := openLog(a.dir)
	defer closeFiles(files)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	first := [2]int{a.indexOf(files, 0), a.indexOf(files, 1)}
	for i, f := range files {
		limit := int64(1) << 62
		if until != nil && until.Inode == f.inode {
			limit = int64(until.Offset)
		}
		for c := range f.chunks(limit) {
			k := index(c.stream)
			if c.stream > monitor.StreamErr || i < first[k] || i == first[k] && uint64(c.end) <= a.seen[k].Offset {
				continue
			}
			data := make([]byte, c.end-c.start)
			if _, err := f.ReadAt(data, c.start); err != nil {
				return fmt.Errorf("read log: %w", err)
			}
			if err := write(to, c.stream, data); err != nil {
				return err
			}
			a.seen[k] = monitor.Position{Inode: f.inode, Offset: uint64(c.end)}
		}
		if until != nil && until.Inode == f.inode {
			return nil
		}
	}
	return nil
}

// indexOf is the file in which a stream was seen last; -1 where that was rotated away.
func (a *Attachment) indexOf(files []logPart, stream int) int {
	return slices.IndexFunc(files, func(f logPart) bool { return f.inode == a.seen[stream].Inode })
}

// livePatience is how long the reader of a foreground container may take no output, in
// a pager for instance, before it is given up and the container goes on without it.
const livePatience = 10 * time.Minute

// live shows the output of a foreground container to its creator.
type live struct {
	a    *Attachment
	to   [2]io.Writer
	done chan struct{}
}

// start begins to copy, until the end of the container.
func (l *live) start() {
	if l == nil {
		return
	}
	go func() {
		defer close(l.done)
		_ = l.a.Copy(l.to[0], l.to[1]) // what could not be shown is in the log
		_ = l.a.Close()
	}()
}

func (l *live) close() {
	if l != nil {
		_ = l.a.Close() // it is read only
	}
}

// willing writes as long as somebody takes it, and then nowhere: the other stream and
// the container go on.
type willing struct{ to *os.File }

// Write implements io.Writer.
func (w *willing) Write(p []byte) (int, error) {
	if w.to != nil {
		if _, err := w.to.Write(p); err != nil {
			w.to = nil
		}
	}
	return len(p), nil
}
