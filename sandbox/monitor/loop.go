package monitor

import (
	"syscall"

	"naru/sandbox/runtime/launch/step"
)

// maxClients bounds the connections on monitor.sock; further ones wait in the backlog.
const maxClients = 16

// stream is one output of the container.
type stream struct {
	in      int // read end, non-blocking; None after end of file
	copy    int // live copy, non-blocking; None without or after an error
	pending []byte
	buf     []byte
}

// monitor is the state of the process; everything runs in one thread.
type monitor struct {
	init      child
	ours      bool // we are the init's parent
	state     byte
	committed bool
	detached  bool
	solo      bool // leaves at OpCommit
	creator   int
	listen    int
	lock      int
	clients   []int
	waiter    int // client that waits for the result of OpStart
	code      step.Code
	launched  []byte // where code lies, until execve
	dir, home int
	kill, oom int
	out       [2]stream
	log       *logFile
	msg       [256]byte
	polled    []pollFD
}

func newMonitor(l *Launch, fds []int) *monitor {
	m := &monitor{
		creator: Control, waiter: None, detached: l.Detached, solo: l.Solo, state: StateCreated,
		listen: fdOf(fds, l.Listen), lock: fdOf(fds, l.Lock), dir: fdOf(fds, l.Dir), home: fdOf(fds, l.State),
		kill: fdOf(fds, l.Kill), oom: fdOf(fds, l.OOM),
		clients: make([]int, 0, maxClients), polled: make([]pollFD, 0, maxClients+8),
		log: openLog(fdOf(fds, l.Dir), l.LogMax),
	}
	for i := range m.out {
		m.out[i] = stream{in: fdOf(fds, l.Out[i]), copy: fdOf(fds, l.Copy[i]), buf: make([]byte, 32<<10)}
	}
	m.code, m.launched = l.Code, l.record
	return m
}

// launch clones the init; the answer to the creator comes from its report.
func (m *monitor) launch(l *Launch, fds []int) {
	m.ours = true
	c, what, err := spawn(l, fds)
	if err != nil {
		reply32(m.creator, ReplyFailed, errnoOf(err), what)
		syscall.Exit(1)
	}
	m.init = c
	e := step.Encoder{Buf: []byte{ReplyCloned}}
	e.U32(uint32(c.pid))
	send(m.creator, e.Buf, c.pidfd)
	m.drop(fds)
}

// adopt takes over a running container whose monitor died.
func (m *monitor) adopt(l *Launch, fds []int) {
	m.init = child{pidfd: fdOf(fds, l.Pidfd), gate: None, status: None}
	m.committed, m.state = true, StateRunning
	send(m.creator, []byte{ReplyOK})
}

func (m *monitor) drop(fds []int) {
	closeOthers(fds, m.listen, m.lock, m.dir, m.home, m.kill, m.oom,
		m.out[0].in, m.out[1].in, m.out[0].copy, m.out[1].copy)
}

func (m *monitor) run() {
	for {
		m.wait()
		for _, p := range m.polled {
			if p.revents != 0 {
				m.event(int(p.fd))
			}
		}
	}
}

// wait polls everything that may happen in the present state.
func (m *monitor) wait() {
	m.polled = m.polled[:0]
	m.watch(m.init.pidfd, pollIn)
	m.watch(m.init.status, pollIn)
	m.watch(m.creator, pollIn)
	if len(m.clients) < maxClients && m.committed {
		m.watch(m.listen, pollIn)
	}
	for _, c := range m.clients {
		m.watch(c, pollIn)
	}
	for i := range m.out {
		if len(m.out[i].pending) > 0 {
			m.watch(m.out[i].copy, pollOut) // a slow reader slows the container, as a terminal does
		} else {
			m.watch(m.out[i].in, pollIn)
		}
	}
	poll(m.polled, -1)
}

func (m *monitor) watch(fd int, events int16) {
	if fd >= 0 {
		m.polled = append(m.polled, pollFD{fd: int32(fd), events: events})
	}
}

func (m *monitor) event(fd int) {
	switch fd {
	case m.init.status:
		m.report()
	case m.init.pidfd:
		m.ended()
	case m.listen:
		m.accept()
	case m.creator:
		m.request(fd)
	case m.out[0].in, m.out[0].copy:
		m.out[0].pump(1, m.log)
	case m.out[1].in, m.out[1].copy:
		m.out[1].pump(2, m.log)
	default:
		m.request(fd)
	}
}

// report reads what the init says of itself: ready, failed, or (end of file)
// that execve closed the pipe.
func (m *monitor) report() {
	n, err := syscall.Read(m.init.status, m.msg[:8])
	switch {
	case err == syscall.EINTR:
	case err == nil && n == 8 && (m.msg[0] == ReplyReady || m.msg[0] == ReplyHalt):
		send(m.creator, m.msg[:1])
	case err == nil && n == 8 && m.msg[0] == 'F':
		d := step.Decoder{Buf: m.msg[4:8]}
		m.refused(int(m.msg[2])|int(m.msg[3])<<8, d.U32())
	default:
		m.closeStatus()
		if m.waiter >= 0 {
			m.started()
		}
	}
}

func (m *monitor) closeStatus() {
	syscall.Close(m.init.status)
	m.init.status = None
}

// refused passes on the step that failed; the init exits by itself.
func (m *monitor) refused(index int, errno uint32) {
	to := m.creator
	if m.waiter >= 0 {
		to = m.waiter
	}
	m.waiter = None
	reply32(to, ReplyFailed, errno, m.code.Name(index))
}

// started is reached when the status pipe ends while somebody waits for it: by
// execve, or because the init was killed, which the pidfd tells.
func (m *monitor) started() {
	client := m.waiter
	m.waiter = None
	polled := []pollFD{{fd: int32(m.init.pidfd), events: pollIn}}
	poll(polled, 0)
	if polled[0].revents != 0 && !m.execed() {
		reply32(client, ReplyFailed, uint32(syscall.ESRCH), "start")
		return
	}
	m.state = StateRunning
	m.code = nil
	syscall.Munmap(m.launched)
	if fd, err := openAt(m.home, FileStarted, syscall.O_CREAT|syscall.O_WRONLY, 0o600); err == nil {
		syscall.Close(fd)
	}
	send(client, []byte{ReplyOK})
}

// execed tells a program that ended at once from an init that was killed before
// execve: only the latter dies of SIGKILL that soon, and then nothing is lost by
// calling it a failed start.
func (m *monitor) execed() bool {
	const wnowait, wexited, pPidfd = 0x01000000, 4, 3
	var info [128]byte
	_, _, e := syscall.Syscall6(syscall.SYS_WAITID, pPidfd, uintptr(m.init.pidfd), ptr(&info), wexited|wnowait, 0, 0)
	return e == 0 && !(info[8] == 2 && info[24] == byte(syscall.SIGKILL)) // si_code CLD_KILLED, si_status
}
