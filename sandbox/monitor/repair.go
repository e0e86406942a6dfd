package monitor

import "syscall"

// repair ends the last chunk of a log whose monitor was killed while it moved the
// bytes. What is missing is still in the pipe it came from, at the front; pipes are
// those of stdout and stderr, or None where they are gone with their container.
func (l *logFile) repair(pipes [2]int) {
	if l.fd < 0 || l.size == 0 {
		return
	}
	stream, start, want := l.lastChunk()
	have := int(l.size - start - HeaderSize)
	if want == 0 { // the log is whole, or ends in a part of a header
		if start < l.size {
			syscall.Ftruncate(l.fd, start)
			l.size = start
		}
		return
	}
	if stream <= StreamErr && pipes[stream-1] >= 0 {
		have += l.splice(pipes[stream-1], l.size, min(want-have, waiting(pipes[stream-1])))
	}
	l.size = start
	l.end(stream, want, have)
}

// lastChunk finds the chunk that the file breaks off in: where it starts and how
// many bytes its header promises. For a whole log start is the end.
func (l *logFile) lastChunk() (stream byte, start int64, want int) {
	b, err := syscall.Mmap(l.fd, 0, int(l.size), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return 0, l.size, 0
	}
	defer syscall.Munmap(b)
	pos := 0
	for pos+HeaderSize <= len(b) {
		s, n, _, ok := Header(b[pos:])
		switch {
		case !ok: // an older tear: go to the next header
			pos++
		case pos+HeaderSize+n > len(b):
			return s, int64(pos), n
		default:
			pos += HeaderSize + n
		}
	}
	return 0, int64(pos), 0
}
