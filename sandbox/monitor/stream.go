package monitor

import "syscall"

// livePatience is how many milliseconds the creator of a foreground container may
// leave its output unread: a pager that somebody forgot slows the container, and does
// not stop it for ever.
const livePatience = 10 * 60 * 1000

// stream is one output of the container.
type stream struct {
	id    byte
	in    int      // read end; None after its end
	buf   []byte   // made when somebody wants to see the output
	chunk []byte   // what the attached clients get now
	end   Position // of it in the log
}

// pump moves one read's worth of output to the log and to the clients.
func (m *monitor) pump(i int, what int16) {
	s := &m.out[i]
	if m.owed(i) {
		return
	}
	limit, keep := ChunkMax, []byte(nil)
	if m.attached() {
		if s.buf == nil {
			s.buf = make([]byte, MaxData)
		}
		limit, keep = len(s.buf), s.buf
	}
	n := m.log.move(s.id, s.in, limit, keep)
	if n == 0 && what&pollHup != 0 {
		bury(s.in)
		s.in = None
	}
	if n == 0 || keep == nil {
		return
	}
	s.chunk, s.end = keep[:n], m.log.position()
	for _, c := range m.clients {
		c.owes[i] = c.attached
	}
	m.deliver(i)
}

// drain reads what is left in the pipe; another process may still hold it open.
func (m *monitor) drain(i int) {
	s := &m.out[i]
	for range 1 << 12 {
		m.settle(i)
		if i == 0 && m.master >= 0 {
			m.feed()
		}
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
	for m.owed(i) {
		m.polled = m.polled[:0]
		for _, c := range m.clients {
			if c.owes[i] {
				m.watch(c.fd, pollOut)
			}
		}
		poll(m.polled, m.patience())
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
