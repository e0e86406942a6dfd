package monitor

import (
	"syscall"
	"unsafe"
)

// The log is a sequence of chunks: a header of HeaderSize bytes, then the bytes
// as the container wrote them in one go.
//
//	0  magic   0xA7
//	1  magic   0x1E
//	2  stream  1 stdout, 2 stderr
//	3  check   exclusive or of all other header bytes
//	4  length  u32, little endian, 1 to ChunkMax
//	8  time    u64, little endian, nanoseconds since 1970
//
// A chunk is written by one writev(2), so only a power cut leaves a part of one;
// a reader finds the next header by magic and check.
const (
	HeaderSize = 16
	Magic0     = 0xA7
	Magic1     = 0x1E
	ChunkMax   = 64 << 10
)

// MinLog is the smallest log bound, in bytes.
const MinLog = 4 << 10

// PutHeader fills b[:HeaderSize].
func PutHeader(b []byte, stream byte, n int, nanos int64) {
	b[0], b[1], b[2], b[3] = Magic0, Magic1, stream, 0
	for i := range 4 {
		b[4+i] = byte(n >> (8 * i))
	}
	for i := range 8 {
		b[8+i] = byte(nanos >> (8 * i))
	}
	b[3] = check(b)
}

// Header reads a header; ok is false when b does not begin with one.
func Header(b []byte) (stream byte, n int, nanos int64, ok bool) {
	if len(b) < HeaderSize || b[0] != Magic0 || b[1] != Magic1 || b[2] != 1 && b[2] != 2 || check(b) != b[3] {
		return 0, 0, 0, false
	}
	for i := range 4 {
		n |= int(b[4+i]) << (8 * i)
	}
	for i := range 8 {
		nanos |= int64(b[8+i]) << (8 * i)
	}
	return b[2], n, nanos, n > 0 && n <= ChunkMax
}

func check(b []byte) (x byte) {
	for i, c := range b[:HeaderSize] {
		if i != 3 {
			x ^= c
		}
	}
	return x
}

// logFile appends to log, and keeps log and log.1 together within max bytes.
type logFile struct {
	dir, fd   int
	size, max int64
	header    [HeaderSize]byte
}

func openLog(dir int, limit uint64) *logFile {
	l := &logFile{dir: dir, fd: None, max: max(int64(limit), MinLog)}
	l.open()
	return l
}

func (l *logFile) open() {
	fd, err := openAt(l.dir, FileLog, syscall.O_WRONLY|syscall.O_APPEND|syscall.O_CREAT|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return // no log is better than a stopped container; the next chunk tries again
	}
	var st syscall.Stat_t
	if syscall.Fstat(fd, &st) == nil {
		l.size = st.Size
	}
	l.fd = fd
}

// write logs one read's worth of output.
func (l *logFile) write(stream byte, data []byte) {
	for len(data) > 0 {
		n := min(len(data), ChunkMax, int(l.max/2-HeaderSize))
		if l.fd >= 0 && l.size+int64(HeaderSize+n) > l.max/2 {
			l.rotate()
		}
		if l.fd < 0 {
			l.open()
		}
		l.chunk(stream, data[:n])
		data = data[n:]
	}
}

func (l *logFile) rotate() {
	syscall.Close(l.fd)
	l.fd, l.size = None, 0
	syscall.Renameat(l.dir, FileLog, l.dir, FileLogOld)
}

// chunk appends header and data, or nothing: after a short write (the disk is
// full) the file is cut back to whole chunks.
func (l *logFile) chunk(stream byte, data []byte) {
	if l.fd < 0 || l.size+int64(HeaderSize+len(data)) > l.max/2 {
		return // the rotation failed: the bound goes before the log
	}
	PutHeader(l.header[:], stream, len(data), now())
	vec := [2]syscall.Iovec{{Base: &l.header[0], Len: HeaderSize}, {Base: &data[0], Len: uint64(len(data))}}
	n, _, e := syscall.Syscall(syscall.SYS_WRITEV, uintptr(l.fd), uintptr(unsafe.Pointer(&vec)), 2)
	if e == 0 && int(n) == HeaderSize+len(data) {
		l.size += int64(n)
		return
	}
	syscall.Ftruncate(l.fd, l.size)
}

func (l *logFile) sync() {
	if l.fd >= 0 {
		syscall.Fsync(l.fd)
	}
}

func now() int64 {
	var tv syscall.Timeval
	syscall.Gettimeofday(&tv)
	return tv.Nano()
}
