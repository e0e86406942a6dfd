// Package events is the record of what happened to containers: a log of lines
// that any process appends to and any process follows, without a daemon.
//
// The life of one event: its writer takes the lock of the file, mends a line that
// a crash or a full disk cut off, appends its own by one write(2), and renames the
// file to its older name when that has become too large. A follower reads both
// files and then waits with inotify(7) for more; it misses events only if both are
// replaced while it does not get to run. So the log is at most two files of
// half its bound; what is older is gone. It is not synced: after a power cut the
// last events may be missing.
package events

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Event is one thing that happened to one container.
type Event struct {
	Time       time.Time         `json:"time"`
	Action     string            `json:"action"` // create, start, die, oom, kill, stop, destroy, rename …
	ID         string            `json:"id"`
	Attributes map[string]string `json:"attributes,omitempty"` // name, image, exitCode, signal, labels
}

// Log is the file of one data root.
type Log struct {
	path string
	max  int64 // bytes of one of the two files
}

// Bound is how many bytes of events are kept by default.
const Bound = 4 << 20

// lineMax bounds one event: labels may be large.
const lineMax = 64 << 10

// New names the log at path, and how many bytes are kept.
func New(path string, bound int64) *Log { return &Log{path, bound / 2} }

func (l *Log) older() string { return l.path + ".1" }

// Append writes one event. One that is too large loses its attributes.
func (l *Log) Append(e Event) (err error) {
	line, err := json.Marshal(e)
	if err == nil && len(line) >= lineMax {
		e.Attributes = nil
		line, err = json.Marshal(e)
	}
	if err != nil {
		return fmt.Errorf("append event: %w", err)
	}
	f, size, err := l.lock()
	if err != nil {
		return fmt.Errorf("append event: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }() // and with it the lock
	line = append(line, '\n')
	if cut, err := endsInside(f, size); err != nil {
		return fmt.Errorf("append event: %w", err)
	} else if cut {
		line = append([]byte{'\n'}, line...)
	}
	if _, err := f.Write(line); err != nil {
		return fmt.Errorf("append event: %w", err)
	}
	if size+int64(len(line)) >= l.max {
		if err := os.Rename(l.path, l.older()); err != nil {
			return fmt.Errorf("rotate events: %w", err)
		}
	}
	return nil
}

// lock opens the file for appending and locks it; its last holder may have renamed it.
func (l *Log) lock() (*os.File, int64, error) {
	for {
		f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			return nil, 0, err
		}
		if err := flock(f); err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
		held, err := f.Stat()
		if err != nil {
			return nil, 0, errors.Join(err, f.Close())
		}
		if named, err := os.Stat(l.path); err == nil && os.SameFile(held, named) {
			return f, held.Size(), nil
		}
		if err := f.Close(); err != nil {
			return nil, 0, err
		}
	}
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// endsInside says whether the last line has no end.
func endsInside(f *os.File, size int64) (bool, error) {
	if size == 0 {
		return false, nil
	}
	last := make([]byte, 1)
	_, err := f.ReadAt(last, size-1)
	return err == nil && last[0] != '\n', err
}

// Query selects events. A zero time is no bound.
type Query struct {
	Since, Until time.Time
	// Follow waits for more after those that are there, until Until or the end of the context.
	Follow bool
	// Keep says which are wanted; nil: all.
	Keep func(Event) bool
}

// Read hands events to each, in the order they were written, until it returns an
// error. What cannot be read as an event is skipped.
func (l *Log) Read(ctx context.Context, q Query, each func(Event) error) error {
	if !q.Until.IsZero() && q.Follow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, q.Until)
		defer cancel()
	}
	r := &reader{log: l, query: q, each: each}
	if err := r.read(ctx); err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	return nil
}

// reader is one Read under way.
type reader struct {
	log   *Log
	query Query
	each  func(Event) error
	last  []string // what was handed out last: a crash may have written an end twice
}

func (r *reader) read(ctx context.Context) error {
	var watch *watcher
	if r.query.Follow {
		var err error
		if watch, err = newWatcher(filepath.Dir(r.log.path)); err != nil { // before we read, so that nothing falls between
			return err
		}
		defer watch.close()
	}
	// The newer file first: what it holds when it is renamed meanwhile is read to its end.
	now, err := openIfThere(r.log.path)
	if err != nil {
		return err
	}
	defer func() { now.close() }()
	old, err := openIfThere(r.log.older())
	if err != nil {
		return err
	}
	defer old.close()
	if now == nil || old == nil || !os.SameFile(now.info, old.info) {
		if err := r.lines(old); err != nil {
			return err
		}
	}
	for {
		if err := r.lines(now); err != nil || !r.query.Follow {
			return err
		}
		next, err := r.renewed(now)
		if err != nil {
			return err
		}
		if next != nil {
			if err := r.lines(now); err != nil { // what was written between our look and its renaming
				return err
			}
			now.close()
			now = next
			continue
		}
		if !watch.wait(ctx) {
			return nil
		}
	}
}

// renewed opens what comes after the file that is read, when that was renamed: the
// older of the two if it was renamed twice, else the newer.
func (r *reader) renewed(now *source) (*source, error) {
	info, err := os.Stat(r.log.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && now != nil && os.SameFile(now.info, info) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if now != nil {
		between, err := openIfThere(r.log.older())
		if err != nil {
			return nil, err
		}
		if between != nil && !os.SameFile(between.info, now.info) {
			return between, nil
		}
		between.close()
	}
	return openIfThere(r.log.path)
}

// source is a file with what was read of a line that has no end yet.
type source struct {
	f    *os.File
	info fs.FileInfo
	in   *bufio.Reader
	rest []byte
}

func openIfThere(path string) (*source, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &source{f: f, info: info, in: bufio.NewReader(f)}, nil
}

func (s *source) close() {
	if s != nil {
		_ = s.f.Close() // read only: nothing can be lost
	}
}

func (r *reader) lines(s *source) error {
	if s == nil {
		return nil
	}
	for {
		part, err := s.in.ReadSlice('\n')
		if len(s.rest) <= lineMax {
			s.rest = append(s.rest, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		line := s.rest
		s.rest = nil
		if err := r.line(line); err != nil {
			return err
		}
	}
}

func (r *reader) line(line []byte) error {
	var e Event
	if json.Unmarshal(bytes.TrimSpace(line), &e) != nil || e.Action == "" {
		return nil // cut off, or not ours
	}
	q := r.query
	if e.Time.Before(q.Since) || !q.Until.IsZero() && e.Time.After(q.Until) || q.Keep != nil && !q.Keep(e) {
		return nil
	}
	key := strings.Join([]string{e.ID, e.Action, e.Time.String()}, " ")
	if slices.Contains(r.last, key) {
		return nil
	}
	if r.last = append(r.last, key); len(r.last) > 64 {
		r.last = r.last[1:]
	}
	return r.each(e)
}
