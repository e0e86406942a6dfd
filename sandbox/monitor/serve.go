package monitor

import (
	"syscall"
	"unsafe"

	"naru/sandbox/runtime/launch/step"
)

func ptr[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

func (m *monitor) accept() {
	fd, _, err := syscall.Accept4(m.listen, syscall.SOCK_CLOEXEC)
	if err == nil {
		m.clients = append(m.clients, fd)
	}
}

// request answers one message of the creator or of a client of monitor.sock,
// who is root: the socket lies in a directory of mode 0700.
func (m *monitor) request(fd int) {
	n, fds, err := receive(fd, m.msg[:], syscall.MSG_DONTWAIT)
	closeOthers(fds)
	if err == syscall.EINTR || err == syscall.EAGAIN {
		return
	}
	if err != nil || n == 0 {
		m.hangup(fd)
		return
	}
	switch m.msg[0] {
	case OpCommit:
		m.committed = m.committed || fd == m.creator
		if m.solo {
			m.leave(fd)
		}
	case OpGo:
		writeAll(m.init.gate, "G")
	case OpStart:
		m.start(fd)
	case OpStatus:
		e := step.Encoder{Buf: []byte{ReplyStatus, m.state}}
		e.U32(uint32(m.init.pid))
		send(fd, e.Buf)
	case OpSignal:
		d := step.Decoder{Buf: m.msg[1:n]}
		if err := pidfdKill(m.init.pidfd, int(d.U32())); err != nil {
			reply32(fd, ReplyErrno, errnoOf(err), "")
			return
		}
		send(fd, []byte{ReplyOK})
	case OpGetFD:
		m.giveFDs(fd)
	default:
		reply32(fd, ReplyErrno, uint32(syscall.ENOSYS), "") // a newer agent: it must do without
	}
}

// leave opens the first gate of an init that waits for Start at a fifo of its own,
// and ends: the init is now the child of whoever adopts orphans of the creator.
func (m *monitor) leave(fd int) {
	if err := writeAll(m.init.gate, "C"); err != nil {
		reply32(fd, ReplyErrno, errnoOf(err), "")
		return
	}
	send(fd, []byte{ReplyOK})
	syscall.Exit(0)
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
	syscall.Close(m.init.gate)
	m.init.gate = None
}

// hangup forgets a peer. A container that only its creator may start dies with it.
func (m *monitor) hangup(fd int) {
	syscall.Close(fd)
	if m.waiter == fd {
		m.waiter = None
	}
	if fd != m.creator {
		for i, c := range m.clients {
			if c == fd {
				m.clients = append(m.clients[:i], m.clients[i+1:]...)
				break
			}
		}
		return
	}
	m.creator = None
	if !m.committed || m.init.gate >= 0 && !m.detached {
		pidfdKill(m.init.pidfd, int(syscall.SIGKILL))
	}
}
