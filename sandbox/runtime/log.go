package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
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
	files, err := openLog(dir)
	if err == nil {
		err = r.goOn(files)
	}
	closeFiles(files)
	return err
}

// goOn reads the next files; the last one stays open.
func (r *logReader) goOn(files []logPart) error {
	for i := range files {
		if r.file != nil {
			r.file.Close()
		}
		r.file, files[i].File, r.buf = files[i].File, nil, nil
		if err := r.drain(); err != nil {
			return err
		}
	}
	return nil
}

// more reads on, in the next file when the present one was rotated away.
func (r *logReader) more(dir string) error {
	if r.file != nil {
		if err := r.drain(); err != nil {
			return err
		}
	}
	files, err := openLog(dir)
	defer func() { closeFiles(files) }()
	if err != nil {
		return err
	}
	next := 0 // its file may be gone
	if r.file != nil {
		inode, err := inodeOf(r.file)
		if err != nil {
			return err
		}
		next = slices.IndexFunc(files, func(f logPart) bool { return f.inode == inode }) + 1
		if err := r.drain(); err != nil { // what came before the rotation
			return err
		}
	}
	return r.goOn(files[next:])
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
