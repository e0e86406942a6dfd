package monitor

import (
	"syscall"
	"unsafe"

	"naru/sandbox/runtime/launch/step"
)

// client is one connection on monitor.sock. What an attached one has not taken yet
// lies in its socket's buffer (clientBuffer bytes); when that is full, it slows the
// container until its patience is over, and is dropped then. The log has
// everything in any case.
type client struct {
	fd       int
	attached bool
	at       bool // wants ReplyAt
	once     bool // the input ends with it
	exit     bool // wants ReplyExited
	owes     [2]bool
	stalled  int64 // since when it takes nothing, monotonic; 0: it does
	patience int64
}

// clientBuffer bounds the output on its way to one attached client.
const clientBuffer = 1 << 20

// events are what to wait for. A client whose input the container does not take
// is not read: its socket fills, and it waits.
func (c *client) events(in *input) (e int16) {
	if !in.blocked() {
		e = pollIn
	}
	if c.owes[0] || c.owes[1] {
		e |= pollOut
	}
	return e
}

// sayExit tells those who asked how it ended. Their buffers may be full.
func (m *monitor) sayExit(ws syscall.WaitStatus) {
	e := step.Encoder{Buf: []byte{ReplyExited}}
	e.U32(uint32(ws))
	for _, c := range m.clients {
		if c.exit {
			p := []pollFD{{fd: int32(c.fd), events: pollOut}}
			poll(p, c.patience)
			send(c.fd, e.Buf)
		}
	}
}

func (m *monitor) attached() bool {
	for _, c := range m.clients {
		if c.attached {
			return true
		}
	}
	return false
}

func (m *monitor) owed(i int) bool {
	for _, c := range m.clients {
		if c.owes[i] {
			return true
		}
	}
	return false
}

// accept takes a connection. Objects of earlier clients are used again.
func (m *monitor) accept() {
	fd, _, err := syscall.Accept4(m.listen, syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	m.client(fd)
}

func (m *monitor) client(fd int) *client {
	n := len(m.clients)
	m.clients = m.clients[:n+1]
	if m.clients[n] == nil {
		m.clients[n] = &client{}
	}
	*m.clients[n] = client{fd: fd}
	return m.clients[n]
}

func (m *monitor) clientOf(fd int) *client {
	for _, c := range m.clients {
		if c.fd == fd {
			return c
		}
	}
	return nil
}

func (m *monitor) clientEvent(fd int, what int16) {
	c := m.clientOf(fd)
	if c == nil {
		return
	}
	if what&pollOut != 0 {
		for i := range m.out {
			m.deliver(i)
		}
	}
	if m.clientOf(fd) == c && what&^pollOut != 0 && !m.input.blocked() {
		m.request(fd)
	}
}

// attach makes a client one that gets output.
func (m *monitor) attach(fd int, body []byte) {
	c := m.clientOf(fd)
	if c == nil || len(body) < 5 {
		reply32(fd, ReplyErrno, uint32(syscall.EINVAL), "")
		return
	}
	d := step.Decoder{Buf: body[1:]}
	m.show(c, int64(d.U32()))
	c.once, c.at = body[0]&AttachOnce != 0, body[0]&AttachAt != 0
	if !c.at {
		send(fd, []byte{ReplyOK})
		return
	}
	m.sayPosition(c)
}

// welcome attaches the creator of a foreground container, before anything is written.
func (m *monitor) welcome(fd int, patience int64) {
	c := m.client(fd)
	m.show(c, patience)
	c.at = true
	m.sayPosition(c)
}

func (m *monitor) show(c *client, patience int64) {
	enlarge(c.fd, clientBuffer)
	c.attached, c.exit, c.patience = true, true, patience
}

// sayPosition says from where on a client gets the output.
func (m *monitor) sayPosition(c *client) {
	reply := [1 + PositionSize]byte{ReplyOK}
	m.log.position().Put(reply[1:])
	send(c.fd, reply[:])
}

func enlarge(fd, size int) {
	const sndbufForce = 32 // SO_SNDBUFFORCE, socket(7)
	if syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, sndbufForce, size) != nil {
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, size)
	}
}

// deliver offers the present chunk of a stream to the clients that owe it.
func (m *monitor) deliver(i int) {
	s := &m.out[i]
	for k := 0; k < len(m.clients); k++ {
		c := m.clients[k]
		if !c.owes[i] {
			continue
		}
		switch c.send(s) {
		case 0:
			c.owes[i], c.stalled = false, 0
		case syscall.EAGAIN:
			if c.stalled == 0 {
				c.stalled = monotonic()
			}
		default:
			m.hangup(c.fd)
			k--
		}
	}
}

// send sends the present chunk without allocating.
func (c *client) send(s *stream) syscall.Errno {
	head, n := [2 + PositionSize]byte{ReplyData, s.id}, 2
	if c.at {
		head[0], n = ReplyAt, len(head)
		s.end.Put(head[2:])
	}
	vec := [2]syscall.Iovec{{Base: &head[0], Len: uint64(n)}, {Base: unsafe.SliceData(s.chunk), Len: uint64(len(s.chunk))}}
	msg := syscall.Msghdr{Iov: &vec[0], Iovlen: 2}
	for {
		_, _, e := syscall.Syscall(syscall.SYS_SENDMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&msg)), syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
		if e != syscall.EINTR {
			return e
		}
	}
}

// dropStalled ends the connection of clients that take nothing any more, and tells
// them, for which their buffer gets a little larger.
func (m *monitor) dropStalled() {
	for k := 0; k < len(m.clients); k++ {
		c := m.clients[k]
		if c.stalled > 0 && monotonic()-c.stalled >= c.patience {
			enlarge(c.fd, 2*clientBuffer)
			send(c.fd, []byte{ReplyDropped})
			m.hangup(c.fd)
			k--
		}
	}
}

// forget removes a client; its object moves behind the others.
func (m *monitor) forget(fd int) {
	for i, c := range m.clients {
		if c.fd != fd {
			continue
		}
		last := len(m.clients) - 1
		m.clients[i], m.clients[last] = m.clients[last], c
		m.clients = m.clients[:last]
		if c.once {
			m.endInput()
		}
		return
	}
}

// endInput lets the container read the end of its input. The fifo's name goes too:
// a later monitor must not open it again.
func (m *monitor) endInput() {
	if m.terminal || m.input.fd < 0 {
		return
	}
	bury(m.input.fd)
	m.input.fd, m.input.rest = None, nil
	syscall.Unlinkat(m.home, FileStdin)
}

// resize sets the window; the kernel sends SIGWINCH (ioctl_tty(2)).
func (m *monitor) resize(body []byte) syscall.Errno {
	if !m.terminal || m.input.fd < 0 {
		return syscall.ENOTTY
	}
	if len(body) < 4 {
		return syscall.EINVAL
	}
	size := [4]uint16{uint16(body[0]) | uint16(body[1])<<8, uint16(body[2]) | uint16(body[3])<<8}
	_, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(m.input.fd), syscall.TIOCSWINSZ, ptr(&size))
	return e
}
