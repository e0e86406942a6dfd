package monitor

import (
	"syscall"
	"unsafe"

	"naru/sandbox/runtime/launch/step"
)

func ptr[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

// request answers one message of the creator or of a client of monitor.sock,
// who is root: the socket lies in a directory of mode 0700.
func (m *monitor) request(fd int) {
	n, _, err := syscall.Recvfrom(fd, m.msg[:], syscall.MSG_DONTWAIT) // descriptors that come along are dropped
	if err == syscall.EINTR || err == syscall.EAGAIN {
		return
	}
	if err != nil || n == 0 {
		m.hangup(fd)
		return
	}
	if m.attachedRequest(fd, m.msg[0], m.msg[1:n]) {
		return
	}
	switch m.msg[0] {
	case OpCommit:
		if m.solo {
			m.leaveInit(fd)
		}
		if fd == m.creator && !m.committed {
			m.commit()
		}
	case OpGo:
		writeAll(m.init.gate, "G")
	case OpStart:
		m.start(fd)
	case OpStatus:
		m.sayStatus(fd)
	case OpSignal:
		d := step.Decoder{Buf: m.msg[1:n]}
		if err := pidfdKill(m.init.pidfd, int(d.U32())); err != nil {
			reply32(fd, ReplyErrno, errnoOf(err), "")
			return
		}
		send(fd, []byte{ReplyOK})
	case OpGetFD:
		m.giveFDs(fd)
	case OpRotate:
		if m.log.fd >= 0 && m.log.size > 0 {
			m.log.rotate()
		}
		send(fd, []byte{ReplyOK})
	default:
		reply32(fd, ReplyErrno, uint32(syscall.ENOSYS), "") // a newer agent: it must do without
	}
}

// leaveInit opens the first gate of an init that waits for Start at a fifo of its own,
// and ends: the init is now the child of whoever adopts orphans of the creator.
func (m *monitor) leaveInit(fd int) {
	if err := writeAll(m.init.gate, "C"); err != nil {
		reply32(fd, ReplyErrno, errnoOf(err), "")
		return
	}
	send(fd, []byte{ReplyOK})
	syscall.Exit(0)
}

// attachedRequest serves what belongs to a terminal or to the standard input.
func (m *monitor) attachedRequest(fd int, op byte, body []byte) bool {
	switch op {
	case OpAttach:
		m.attach(fd, body)
	case OpInput:
		m.input.put(body)
	case OpEOF:
		m.endInput()
	case OpExit:
		if c := m.clientOf(fd); c != nil {
			c.exit = true
		}
	case OpResize:
		e, c := m.resize(body), m.clientOf(fd)
		switch {
		case c != nil && c.attached:
		case e != 0:
			reply32(fd, ReplyErrno, uint32(e), "")
		default:
			send(fd, []byte{ReplyOK})
		}
	default:
		return false
	}
	return true
}

func (m *monitor) sayStatus(fd int) {
	e := step.Encoder{Buf: []byte{ReplyStatus, m.state}}
	e.U32(uint32(m.init.pid))
	e.U32(Protocol)
	e.U64(m.mem.lost)
	e.U32(uint32(m.oom.kills()))
	send(fd, e.Buf)
}

func (m *monitor) giveFDs(fd int) {
	give := []int{m.init.pidfd}
	for i := range m.out {
		if m.out[i].in >= 0 {
			give = append(give, m.out[i].in)
		}
	}
	send(fd, []byte{ReplyFD}, give...)
}

func (m *monitor) start(fd int) {
	if m.state != StateCreated || m.waiter >= 0 || m.init.gate < 0 {
		reply32(fd, ReplyErrno, uint32(syscall.EALREADY), "")
		return
	}
	m.waiter = fd
	if err := writeAll(m.init.gate, "S"); err != nil {
		m.waiter = None
		reply32(fd, ReplyErrno, errnoOf(err), "")
	}
	bury(m.init.gate)
	m.init.gate = None
}

// hangup forgets a peer. A container that only its creator may start dies with it.
func (m *monitor) hangup(fd int) {
	if m.waiter == fd {
		m.waiter = None
	}
	if fd != m.creator {
		syscall.Close(fd)
		m.forget(fd)
		return
	}
	bury(fd)
	m.creator = None
	if !m.committed || m.init.gate >= 0 && !m.detached {
		pidfdKill(m.init.pidfd, int(syscall.SIGKILL))
	}
}
