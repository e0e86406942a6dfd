package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"naru/sandbox/monitor"
)

// LogOptions selects what ReadLog returns.
type LogOptions struct {
	// Tail is how many last lines to begin with; 0 or less means all.
	Tail int
	// Follow goes on until the container has ended or ctx is done.
	Follow bool
	// Since skips what was written before.
	Since time.Time
	// Timestamps puts the time (RFC 3339 with nanoseconds, UTC) before each line.
	Timestamps bool
}

// followInterval is how often a followed log is looked at.
const followInterval = 100 * time.Millisecond

// ReadLog copies the log in dir to the writers, each chunk to that of its stream.
// A log that was rotated away while it was read is continued with what is left.
func ReadLog(ctx context.Context, dir string, opt LogOptions, stdout, stderr io.Writer) error {
	r := &logReader{opt: opt, to: [2]io.Writer{stdout, stderr}, fresh: [2]bool{true, true}}
	if err := r.read(ctx, dir); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

type logReader struct {
	opt   LogOptions
	to    [2]io.Writer
	fresh [2]bool // the stream is at the start of a line
	skip  int     // lines before the tail
	lines int
	count bool // only count lines
	file  *os.File
	buf   []byte // what is read but not yet a whole chunk
}

func (r *logReader) read(ctx context.Context, dir string) error {
	defer func() {
		if r.file != nil {
			r.file.Close()
		}
	}()
	if r.opt.Tail > 0 {
		r.count = true
		if err := r.all(dir); err != nil {
			return err
		}
		r.count, r.skip, r.lines = false, r.lines-r.opt.Tail, 0
		r.fresh = [2]bool{true, true}
	}
	if err := r.all(dir); err != nil || !r.opt.Follow {
		return err
	}
	for {
		_, over, err := loadExit(dir)
		if err != nil {
			return err
		}
		if err := r.more(dir); err != nil || over {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followInterval):
		}
	}
}

// all reads the files of the log, the oldest first.
func (r *logReader) all(dir string) error {
	for n := logFiles(dir); n >= 0; n-- {
		found, err := r.open(dir, logName(n))
		if err != nil {
			return err
		}
		if found {
			if err := r.drain(); err != nil {
				return err
			}
		}
	}
	return nil
}

// logName is the file that is n rotations old.
func logName(n int) string {
	if n == 0 {
		return monitor.FileLog
	}
	return monitor.FileLog + "." + strconv.Itoa(n)
}

// logFiles is the number of the oldest file of a log; 0 is the present one. Where a
// monitor was killed between two renames, some number before it is missing.
func logFiles(dir string) (oldest int) {
	entries, _ := os.ReadDir(dir) // what cannot be read has no old files
	for _, d := range entries {
		if number, ok := strings.CutPrefix(d.Name(), monitor.FileLog+"."); ok {
			n, err := strconv.Atoi(number)
			if err == nil {
				oldest = max(oldest, n)
			}
		}
	}
	return oldest
}

// open goes on to a file, and stays where it is if there is none.
func (r *logReader) open(dir, name string) (found bool, err error) {
	f, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.buf = f, nil
	return true, nil
}

// renameTime is more than the renames of a rotation take.
const renameTime = 5 * time.Millisecond

// more reads on, in the next file when the present one was rotated away.
func (r *logReader) more(dir string) error {
	gap, err := r.advance(dir, false)
	if gap && err == nil {
		time.Sleep(renameTime)
		_, err = r.advance(dir, true)
	}
	return err
}

// advance is more; gap says that it stopped as a file is missing: for a moment, while
// a rotation is under way, or until the next one, if its monitor was killed.
func (r *logReader) advance(dir string, skip bool) (gap bool, err error) {
	if r.file != nil {
		if err := r.drain(); err != nil {
			return false, err
		}
	}
	next, err := r.age(dir)
	if err != nil || next == 0 {
		return false, err
	}
	if r.file != nil {
		if err := r.drain(); err != nil { // what came before the rotation
			return false, err
		}
	}
	for n := next - 1; n >= 0; n-- {
		found, err := r.open(dir, logName(n))
		if err != nil || !found && n == 0 { // before the first chunk
			return false, err
		}
		if !found && !skip {
			return true, nil
		}
		if found {
			if err := r.drain(); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// age is how often the file that is being read was rotated; one more than the oldest
// where it is gone, or none was open yet.
func (r *logReader) age(dir string) (int, error) {
	oldest := logFiles(dir)
	if r.file == nil {
		return oldest + 1, nil
	}
	have, err := r.file.Stat()
	if err != nil {
		return 0, err
	}
	for n := range oldest + 1 {
		if now, err := os.Stat(filepath.Join(dir, logName(n))); err == nil && os.SameFile(have, now) {
			return n, nil
		}
	}
	return oldest + 1, nil
}

// drain decodes whole chunks up to the present end of the file.
func (r *logReader) drain() error {
	block := make([]byte, 64<<10)
	for {
		n, err := r.file.Read(block)
		r.buf = append(r.buf, block[:n]...)
		if err := r.chunks(); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return r.again()
		}
		if err != nil {
			return err
		}
	}
}

// again goes back to the begin of a chunk that is not whole yet: should the disk be
// full, its header is still going to be changed.
func (r *logReader) again() error {
	_, err := r.file.Seek(-int64(len(r.buf)), io.SeekCurrent)
	r.buf = nil
	return err
}

func (r *logReader) chunks() error {
	for len(r.buf) >= monitor.HeaderSize {
		stream, n, nanos, ok := monitor.Header(r.buf)
		if !ok { // a torn write: go to the next header
			next := bytes.IndexByte(r.buf[1:], monitor.Magic0)
			if next < 0 {
				next = len(r.buf) - 1
			}
			r.buf = r.buf[1+next:]
			continue
		}
		if len(r.buf) < monitor.HeaderSize+n {
			return nil
		}
		data := r.buf[monitor.HeaderSize : monitor.HeaderSize+n]
		r.buf = r.buf[monitor.HeaderSize+n:]
		at := time.Unix(0, nanos)
		if at.Before(r.opt.Since) {
			continue
		}
		if err := r.emit(min(int(stream), monitor.StreamErr)-1, at, data); err != nil {
			return err
		}
	}
	return nil
}

// emit writes one chunk, line by line where lines matter.
func (r *logReader) emit(stream int, at time.Time, data []byte) error {
	if !r.count && r.skip <= 0 && !r.opt.Timestamps {
		_, err := r.to[stream].Write(data)
		return err
	}
	for len(data) > 0 {
		line := data
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			line = data[:i+1]
		}
		data = data[len(line):]
		begins := r.fresh[stream]
		r.fresh[stream] = line[len(line)-1] == '\n'
		if begins {
			r.lines++
		}
		if r.count || r.lines <= r.skip {
			continue
		}
		if begins && r.opt.Timestamps {
			if _, err := io.WriteString(r.to[stream], at.UTC().Format("2006-01-02T15:04:05.000000000Z")+" "); err != nil {
				return err
			}
		}
		if _, err := r.to[stream].Write(line); err != nil {
			return err
		}
	}
	return nil
}
