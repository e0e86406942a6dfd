package monitor

import (
	"syscall"
	"unsafe"
)

// MinLog is the smallest log bound, in bytes.
const MinLog = 4 << 10

// defaultLogFiles is how many files share the bound of a log that names no number.
const defaultLogFiles = 2

// scrap is the part of a file, 1/scrap, that is not worth a chunk of its own.
const scrap = 8

// logFile appends to log, and keeps log, log.1 and so on together within a bound.
//
// The bytes of a pipe are moved by splice(2), which takes from the pipe exactly
// what it has written: whenever the monitor is killed, each byte is either in the
// pipe or in the file.
type logFile struct {
	dir, fd int
	size    int64 // of log
	each    int64 // bound of one file
	files   int
	ino     uint64  // of log
	mem     *memory // what is lost, and told of
	errno   syscall.Errno
	copies  bool // the file system cannot splice
	header  [HeaderSize]byte
	scratch [16 << 10]byte
}

func openLog(dir int, limit uint64, files uint32, mem *memory) *logFile {
	l := &logFile{dir: dir, fd: None, files: int(files), mem: mem}
	if l.files < 1 {
		l.files = defaultLogFiles
	}
	l.each = max(int64(limit), MinLog) / int64(l.files)
	l.each = max(l.each, 2*HeaderSize)
	l.open()
	return l
}

func (l *logFile) open() {
	fd, err := openAt(l.dir, FileLog, syscall.O_RDWR|syscall.O_CREAT|syscall.O_NOFOLLOW, 0o600)
	if err != nil { // no log is better than a stopped container; the next chunk tries again
		l.errno = syscall.Errno(errnoOf(err))
		return
	}
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) == nil {
		l.size, l.ino = st.Size, st.Ino
	}
	l.fd = fd
}

// room makes place for a chunk of at most n bytes and says how many fit. What does not
// fit is cut in two: a file that large chunks left half empty would cost the log that
// half. Only a scrap at its end is left free.
func (l *logFile) room(n int) int {
	n = min(n, ChunkMax, int(l.each-HeaderSize))
	if free := l.each - l.size - HeaderSize; l.fd >= 0 && int64(n) > free {
		if free >= l.each/scrap {
			return int(free)
		}
		l.rotate()
	}
	if l.fd < 0 {
		l.open()
	}
	if l.fd >= 0 && l.size+int64(HeaderSize+n) > l.each {
		l.errno = syscall.EFBIG // the rotation failed: the bound goes before the log
		return 0
	}
	if l.fd < 0 {
		return 0
	}
	return n
}

// position is where the log ends now.
func (l *logFile) position() Position {
	if l.fd < 0 {
		l.open()
	}
	if l.fd < 0 {
		return Position{}
	}
	return Position{l.ino, uint64(l.size)}
}

// rotate begins a new file. The oldest goes first, so that the bound holds at every
// moment; it is emptied before, as somebody who reads it would keep its blocks. A
// monitor that was killed between two renames left a gap, which is filled first: then
// nothing has to go.
func (l *logFile) rotate() {
	syscall.Close(l.fd)
	l.fd, l.size = None, 0
	free := min(1, l.files-1)
	for free < l.files-1 && syscall.Faccessat(l.dir, logName(free), 0, 0) == nil {
		free++
	}
	if fd, err := openAt(l.dir, logName(free), syscall.O_WRONLY|syscall.O_TRUNC|syscall.O_NOFOLLOW, 0); err == nil {
		syscall.Close(fd)
		syscall.Unlinkat(l.dir, logName(free))
	}
	for i := free; i > 0; i-- {
		syscall.Renameat(l.dir, logName(i-1), l.dir, logName(i))
	}
}

// logName is the file that is n rotations old.
func logName(n int) string {
	if n == 0 {
		return FileLog
	}
	return FileLog + "." + itoa(n)
}

// move takes up to limit bytes of a pipe into the log and returns how many it took.
// Where keep is given, with room for limit bytes, they are there too.
func (l *logFile) move(stream byte, pipe, limit int, keep []byte) int {
	n := min(limit, waiting(pipe))
	if n == 0 {
		return 0
	}
	if l.copies {
		return l.copy(stream, pipe, n, keep)
	}
	l.notice()
	fits := l.room(n)
	if fits == 0 || !l.begin(stream, fits) {
		return l.lose(pipe, n, keep)
	}
	at := l.size + HeaderSize
	done := l.splice(pipe, at, fits)
	l.end(stream, fits, done)
	switch {
	case done == 0 && l.errno == syscall.EINVAL:
		l.copies = true
		return l.copy(stream, pipe, n, keep)
	case done == 0:
		return l.lose(pipe, fits, keep)
	case keep != nil:
		syscall.Pread(l.fd, keep[:done], at)
	}
	return done
}

// copy is move for a file system that cannot splice.
func (l *logFile) copy(stream byte, pipe, n int, keep []byte) int {
	if keep == nil {
		keep = l.scratch[:]
	}
	n = readPipe(pipe, keep[:min(n, len(keep))])
	l.write(stream, keep[:n])
	return n
}

// lose takes n bytes from a pipe that cannot be logged: the container goes on.
func (l *logFile) lose(pipe, n int, keep []byte) (done int) {
	if keep == nil {
		keep = l.scratch[:]
	}
	done = readPipe(pipe, keep[:min(n, len(keep))])
	l.mem.lost += uint64(done)
	return done
}

// splice moves n bytes that are in the pipe to the file.
func (l *logFile) splice(pipe int, at int64, n int) (done int) {
	const move, nonblock = 1, 2
	for done < n {
		k, _, e := syscall.Syscall6(syscall.SYS_SPLICE, uintptr(pipe), 0, uintptr(l.fd), ptr(&at), uintptr(n-done), move|nonblock)
		if e == syscall.EINTR {
			continue
		}
		if e != 0 || k == 0 {
			l.errno = e
			break
		}
		done += int(k)
	}
	return done
}

// begin writes the header of a chunk.
func (l *logFile) begin(stream byte, n int) bool {
	PutHeader(l.header[:], stream, n, now())
	k, err := syscall.Pwrite(l.fd, l.header[:], l.size)
	if err == nil && k == HeaderSize {
		return true
	}
	l.errno = syscall.Errno(errnoOf(err))
	if err == nil {
		l.errno = syscall.ENOSPC
	}
	syscall.Ftruncate(l.fd, l.size)
	return false
}

// end closes a chunk of which only a part could be written.
func (l *logFile) end(stream byte, want, done int) {
	if done == 0 {
		syscall.Ftruncate(l.fd, l.size)
		return
	}
	if done < want {
		PutHeader(l.header[:], stream, done, now())
		syscall.Pwrite(l.fd, l.header[:], l.size) // the block is there: a full disk does not matter
		syscall.Ftruncate(l.fd, l.size+int64(HeaderSize+done))
	}
	l.size += int64(HeaderSize + done)
}

// write appends bytes that are in memory, as one chunk if they fit; it returns
// where they are, or a negative number where they are lost.
func (l *logFile) write(stream byte, data []byte) int64 {
	if stream != StreamNotice {
		l.notice()
	}
	at := int64(-1)
	for len(data) > 0 {
		n := l.room(len(data))
		if n == 0 || !l.begin(stream, n) {
			l.mem.lost += uint64(len(data))
			return -1
		}
		done, err := syscall.Pwrite(l.fd, data[:n], l.size+HeaderSize)
		if err != nil {
			done, l.errno = 0, syscall.Errno(errnoOf(err))
		}
		at = l.size + HeaderSize
		l.end(stream, n, done)
		if done < n {
			l.mem.lost += uint64(len(data) - done)
			return -1
		}
		data = data[n:]
	}
	return at
}

// notice says in the log what is missing from it, once there is room again.
func (l *logFile) notice() {
	missing := l.mem.lost - l.mem.told
	if missing == 0 || l.fd < 0 {
		return
	}
	text := "naru: " + itoa(int(missing)) + " bytes of output were not logged: errno " + itoa(int(l.errno)) + "\n"
	before := l.mem.lost
	if l.write(StreamNotice, []byte(text)) >= 0 {
		l.mem.told = before
	}
	l.mem.lost = before
}

func readPipe(pipe int, b []byte) int {
	for {
		k, err := syscall.Read(pipe, b)
		if err != syscall.EINTR {
			return max(k, 0)
		}
	}
}

func (l *logFile) sync() {
	if l.fd >= 0 {
		syscall.Fsync(l.fd)
	}
}

// waiting is how many bytes are in a pipe (pipe(7), FIONREAD).
func waiting(pipe int) int {
	const fionread = 0x541b
	var n int32
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(pipe), fionread, uintptr(unsafe.Pointer(&n))); e != 0 {
		return 0
	}
	return int(n)
}

func now() int64 {
	var tv syscall.Timeval
	syscall.Gettimeofday(&tv)
	return tv.Nano()
}
