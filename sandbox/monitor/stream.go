package monitor

import "syscall"

// copyPatience is how many milliseconds the creator of a foreground container may
// leave its output unread before its copies end: a pager that somebody forgot
// slows the container, and does not stop it for ever.
const copyPatience = 10 * 60 * 1000

// stream is one output of the container.
type stream struct {
	id      byte
	in      int  // read end, or the master of the terminal; None after its end
	tty     bool // it is a terminal, which cannot be spliced
	copy    int  // live copy, non-blocking; None without or after an error
	pending []byte
	stalled int64  // since when the copy takes nothing, monotonic; 0: it does
	buf     []byte // made when somebody wants to see the output
	chunk   []byte // what the attached clients get now
}

// pump moves one read's worth of output to the log, the live copy and the clients.
func (m *monitor) pump(i int, what int16) {
	s := &m.out[i]
	if len(s.pending) > 0 || m.owed(i) {
		s.flush()
		return
	}
	watched := s.copy >= 0 || m.attached()
	if s.buf == nil && (watched || s.tty) {
		s.buf = make([]byte, MaxData)
	}
	n := 0
	if s.tty {
		n = m.readTerminal(s)
	} else {
		limit, keep := ChunkMax, []byte(nil)
		if watched {
			limit, keep = len(s.buf), s.buf
		}
		n = m.log.move(s.id, s.in, limit, keep)
		if n == 0 && what&pollHup != 0 {
			syscall.Close(s.in)
			s.in = None
		}
	}
	if n == 0 || !watched {
		return
	}
	s.chunk = s.buf[:n]
	for _, c := range m.clients {
		c.owes[i] = c.attached
	}
	m.deliver(i)
	if s.copy >= 0 {
		s.pending = s.chunk
		s.flush()
	}
}

// readTerminal reads from the master and logs it.
func (m *monitor) readTerminal(s *stream) int {
	n, err := syscall.Read(s.in, s.buf)
	if err == syscall.EINTR || err == syscall.EAGAIN {
		return 0
	}
	if err != nil || n <= 0 {
		// Nobody has the terminal open now. It is not closed, as that would send
		// SIGHUP; the input keeps it.
		s.in = None
		return 0
	}
	m.log.write(s.id, s.buf[:n])
	return n
}

// flush writes to the live copy what it takes without blocking.
func (s *stream) flush() {
	if s.copy < 0 || len(s.pending) == 0 {
		return
	}
	n, err := syscall.Write(s.copy, s.pending)
	switch {
	case err == syscall.EINTR || err == syscall.EAGAIN:
		if s.stalled == 0 {
			s.stalled = monotonic()
		}
	case err != nil:
		s.endCopy()
	default:
		s.pending, s.stalled = s.pending[n:], 0
	}
}

func (s *stream) endCopy() {
	syscall.Close(s.copy)
	s.copy, s.pending, s.stalled = None, nil, 0
}

// drain reads what is left in the pipe; another process may still hold it open.
func (m *monitor) drain(i int) {
	s := &m.out[i]
	for range 1 << 12 {
		m.settle(i)
		if s.in < 0 {
			return
		}
		p := [1]pollFD{{fd: int32(s.in), events: pollIn}}
		poll(p[:], 0)
		if p[0].revents == 0 {
			return
		}
		before := s.in
		m.pump(i, p[0].revents)
		if p[0].revents&pollIn == 0 && s.in == before {
			return
		}
	}
}

// settle waits until every reader has what is pending, or has lost our patience.
func (m *monitor) settle(i int) {
	s := &m.out[i]
	for len(s.pending) > 0 || m.owed(i) {
		m.polled = m.polled[:0]
		if len(s.pending) > 0 {
			m.watch(s.copy, pollOut)
		}
		for _, c := range m.clients {
			if c.owes[i] {
				m.watch(c.fd, pollOut)
			}
		}
		poll(m.polled, m.patience())
		s.flush()
		m.deliver(i)
		m.dropStalled()
	}
}

// input is the way to the container's standard input.
type input struct {
	fd   int // master of the terminal, or write end of the fifo; None: it has ended
	rest []byte
	buf  [MaxInput]byte
}

func (in *input) blocked() bool { return len(in.rest) > 0 }

// put takes a message of a client; the next one is read when the container has
// taken this one.
func (in *input) put(data []byte) {
	if in.fd < 0 {
		return
	}
	in.rest = in.buf[:copy(in.buf[:], data)]
	in.flush()
}

func (in *input) flush() {
	for len(in.rest) > 0 {
		n, err := syscall.Write(in.fd, in.rest)
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.EAGAIN {
			return
		}
		if err != nil || n == 0 {
			in.rest = nil // the container has closed its end
			return
		}
		in.rest = in.rest[n:]
	}
}
