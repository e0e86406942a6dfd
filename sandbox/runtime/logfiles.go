package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
)

// logPart is one file of a log.
type logPart struct {
	*os.File // nil: somebody else has taken it
	inode    uint64
}

// Bounds of the wait for a rotation to be over: it renames a few files.
const (
	rotations  = 200
	renameTime = 5 * time.Millisecond
)

// openLog opens the files of a log, the oldest first. They are renamed by rotations, so
// it looks once more when all are open: if one has another name meanwhile, an older or
// younger one may have been missed. At any moment their order is right, also within
// a rotation, and behind a monitor that was killed in one.
func openLog(dir string) (files []logPart, err error) {
	for range rotations {
		before, err := logInodes(dir)
		if err != nil {
			return nil, err
		}
		files = nil
		for n := len(before) - 1; n >= 0; n-- {
			if before[n] == 0 {
				continue
			}
			f, err := os.Open(filepath.Join(dir, logName(n)))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return files, err
			}
			inode, err := inodeOf(f)
			files = append(files, logPart{f, inode})
			if err != nil {
				return files, err
			}
		}
		after, err := logInodes(dir)
		if err != nil || slices.Equal(before, after) {
			return files, err
		}
		closeFiles(files)
		time.Sleep(renameTime)
	}
	return nil, fmt.Errorf("it is rotated all the time: %d tries", rotations)
}

// logInodes are those of log, log.1 and so on; 0 where a file is missing.
func logInodes(dir string) ([]uint64, error) {
	all := make([]uint64, logFiles(dir)+1)
	for n := range all {
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(dir, logName(n)), &st)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			all[n] = st.Ino
		}
	}
	return all, nil
}

func inodeOf(f *os.File) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Ino, err
}

func closeFiles(files []logPart) {
	for _, f := range files {
		if f.File != nil {
			f.Close()
		}
	}
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

// logChunk is where the bytes of a chunk lie.
type logChunk struct {
	stream     byte
	start, end int64
}

// chunks are those that end at limit or before.
func (f logPart) chunks(limit int64) func(func(logChunk) bool) {
	return func(yield func(logChunk) bool) {
		var head [monitor.HeaderSize]byte
		for at := int64(0); ; {
			if _, err := f.ReadAt(head[:], at); err != nil {
				return
			}
			stream, n, _, ok := monitor.Header(head[:])
			if !ok { // an older tear
				at++
				continue
			}
			c := logChunk{stream, at + monitor.HeaderSize, at + monitor.HeaderSize + int64(n)}
			if c.end > limit || !yield(c) {
				return
			}
			at = c.end
		}
	}
}
