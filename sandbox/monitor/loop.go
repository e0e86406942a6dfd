package monitor

import (
	"syscall"

	"naru/sandbox/runtime/launch/step"
)

// maxClients bounds the connections on monitor.sock; further ones wait in the backlog.
const maxClients = 16

// monitor is the state of the process; everything runs in one thread.
type monitor struct {
	init      child
	ours      bool // we are the init's parent
	state     byte
	committed bool
	resumed   bool // we were its keeper
	failed    bool // the init has said that it cannot be the program
	detached  bool
	solo      bool // leaves at OpCommit
	passing   bool // Launch.Passing
	creator   int
	listen    int
	lock      int
	clients   []*client // fixed objects: those beyond len are free
	waiter    int       // client that waits for the result of OpStart
	code      step.Code
	launched  []byte // where code lies, until execve
	head      int    // length of the record without it
	dir, home int
	kill      int
	oom       oomWatch
	terminal  bool
	master    int // of the terminal; None without, and after its end
	feeder    int // write end of the pipe that it is moved to
	file      int // memfd of the record until OpCommit
	out       [2]stream
	input     input
	call      caller
	log       *logFile
	mem       *memory
	keeper    *keeper
	msg       [1 + MaxInput]byte
	polled    []pollFD
}

func newMonitor(l *Launch, fds []int) *monitor {
	m := &monitor{
		creator: Control, waiter: None, detached: l.Detached, solo: l.Solo, passing: l.Passing, state: StateCreated,
		listen: fdOf(fds, l.Listen), lock: fdOf(fds, l.Lock), dir: fdOf(fds, l.Dir), home: fdOf(fds, l.State),
		kill: fdOf(fds, l.Kill), oom: newOOMWatch(fdOf(fds, l.OOM), fdOf(fds, l.OOMEvent), l.memory),
		clients: make([]*client, 0, maxClients), polled: make([]pollFD, 0, 2*maxClients+16),
		log: openLog(fdOf(fds, l.Dir), l.LogMax, l.LogFiles, l.memory), call: newCaller(l, fds),
		input: input{fd: fdOf(fds, l.In)}, terminal: l.Terminal, master: None, feeder: None, mem: l.memory,
		file: l.file, code: l.Code, launched: l.record, head: l.head, keeper: newKeeper(l.Name, l.memory),
	}
	for i := range m.out {
		m.out[i] = stream{in: fdOf(fds, l.Out[i]), id: byte(i + 1)}
	}
	if fd := fdOf(fds, l.Live); fd >= 0 {
		m.welcome(fd, livePatience)
	}
	return m
}

// launch clones the init; the answer to the creator comes from its report.
func (m *monitor) launch(l *Launch, fds []int) {
	m.ours = true
	m.hold(l, fds)
	m.log.repair([2]int{None, None}) // of an earlier life
	c, what, err := spawn(l, fds)
	if err != nil {
		reply32(m.creator, ReplyFailed, errnoOf(err), what)
		syscall.Exit(1)
	}
	m.init = c
	m.mem.keep(keptInit, c.pidfd)
	m.mem.keep(keptGate, c.gate)
	m.mem.keep(keptStatus, c.status)
	e := step.Encoder{Buf: []byte{ReplyCloned}}
	e.U32(uint32(c.pid))
	send(m.creator, e.Buf, c.pidfd)
	m.mem.oomKnown = int64(m.oom.kills())
	m.drop(l, fds)
	m.run()
}

// adopt takes over a running container whose monitor died, and its keeper.
func (m *monitor) adopt(l *Launch, fds []int) {
	m.init = child{pidfd: fdOf(fds, l.Pidfd), gate: None, status: None}
	m.state = StateRunning
	m.mem.oomKnown = int64(m.oom.kills())
	m.hold(l, fds)
	m.keeper.start()
	m.commit()
	m.log.repair([2]int{m.out[0].in, m.out[1].in})
	m.forgetCode()
	m.call.begin()
	send(m.creator, []byte{ReplyOK})
	m.run()
}

// drop closes what was for the child alone.
func (m *monitor) drop(l *Launch, fds []int) {
	keep := []int{fdOf(fds, l.Live)}
	for _, k := range l.kept() {
		keep = append(keep, fdOf(fds, *k.index))
	}
	closeOthers(fds, keep...)
}

// forgetCode gives the list of the start back, of which the record has the most.
func (m *monitor) forgetCode() {
	m.code = nil
	syscall.Munmap(m.launched)
	syscall.Ftruncate(m.mem.found(keptRecord), int64(m.head))
}

func (m *monitor) run() {
	for {
		m.wait()
		for i := range m.polled {
			if p := m.polled[i]; p.revents != 0 {
				m.event(int(p.fd), p.revents)
			}
		}
		m.timers()
	}
}

// wait polls everything that may happen in the present state.
func (m *monitor) wait() {
	m.polled = m.polled[:0]
	m.watch(m.init.pidfd, pollIn)
	m.watch(m.init.status, pollIn)
	m.watch(m.creator, pollIn)
	m.watch(m.call.pidfd, pollIn)
	m.watch(m.keeper.pidfd, pollIn)
	m.watch(m.oom.fd(), m.oom.events())
	if len(m.clients) < maxClients && m.committed {
		m.watch(m.listen, pollIn)
	}
	for _, c := range m.clients {
		if events := c.events(&m.input); events != 0 {
			m.watch(c.fd, events)
		}
	}
	if m.input.blocked() {
		m.watch(m.input.fd, pollOut)
	}
	for i := range m.out {
		if !m.owed(i) { // a slow reader slows the container, as a terminal does
			m.watch(m.out[i].in, pollIn)
		}
	}
	if m.master >= 0 && waiting(m.out[0].in) == 0 {
		m.watch(m.master, pollIn)
	}
	poll(m.polled, m.patience())
}

// patience is the time until the next timer in milliseconds, or -1: an idle
// container has none.
func (m *monitor) patience() int64 {
	next := m.call.at
	for _, c := range m.clients {
		if c.stalled > 0 && (next == 0 || c.stalled+c.patience < next) {
			next = c.stalled + c.patience
		}
	}
	if next == 0 {
		return -1
	}
	return max(next-monotonic(), 0)
}

func (m *monitor) timers() {
	if m.call.at > 0 && m.call.pidfd < 0 && monotonic() >= m.call.at {
		m.call.run()
	}
	m.dropStalled()
}

func (m *monitor) watch(fd int, events int16) {
	if fd >= 0 {
		m.polled = append(m.polled, pollFD{fd: int32(fd), events: events})
	}
}

// event serves one descriptor. A client's may have been closed a moment ago; then
// nothing knows it any more.
func (m *monitor) event(fd int, what int16) {
	switch fd {
	case m.init.status:
		m.report()
	case m.init.pidfd:
		m.ended()
	case m.listen:
		m.accept()
	case m.creator:
		m.request(fd)
	case m.call.pidfd:
		m.call.reap()
	case m.keeper.pidfd:
		m.keeper.ended()
	case m.oom.fd():
		m.oom.seen()
	case m.out[0].in:
		m.pump(0, what)
	case m.out[1].in:
		m.pump(1, what)
	case m.input.fd, m.master:
		m.input.flush()
		if fd == m.master && what&^pollOut != 0 {
			m.feed()
		}
	default:
		m.clientEvent(fd, what)
	}
}

// report reads what the init says of itself: ready, failed, or (end of file)
// that execve closed the pipe.
func (m *monitor) report() {
	n, err := syscall.Read(m.init.status, m.msg[:8])
	switch {
	case err == syscall.EINTR:
	case err == nil && n == 8 && m.msg[0] == ReplyHalt:
		send(m.creator, m.msg[:1])
	case err == nil && n == 8 && m.msg[0] == ReplyReady:
		m.ready()
	case err == nil && n == 8 && m.msg[0] == 'F':
		d := step.Decoder{Buf: m.msg[4:8]}
		m.refused(int(m.msg[2])|int(m.msg[3])<<8, d.U32())
	default:
		m.closeStatus()
		if !m.failed && (m.init.gate < 0 || m.resumed) {
			m.started()
		}
	}
}

// ready takes the terminal, if there is one, and tells the creator. While that does
// what it has left to do, nobody waits for us: the keeper is made.
func (m *monitor) ready() {
	if m.terminal {
		master, what, errno := takeTerminal(m.init.pidfd)
		if errno == 0 {
			what, errno = m.connect(master)
		}
		if errno != 0 {
			reply32(m.creator, ReplyFailed, uint32(errno), what)
			return
		}
	}
	send(m.creator, []byte{ReplyReady})
	if !m.solo {
		m.keeper.start()
	}
}

func (m *monitor) closeStatus() {
	bury(m.init.status)
	m.init.status = None
}

// refused passes on the step that failed; the init exits by itself.
func (m *monitor) refused(index int, errno uint32) {
	to := m.creator
	if m.waiter >= 0 {
		to = m.waiter
	}
	m.waiter, m.failed = None, true
	reply32(to, ReplyFailed, errno, m.code.Name(index))
}

// endPatience is how many milliseconds lie at most between the end of the status pipe
// and that of its process, if it has one.
const endPatience = 100

// started is reached when the status pipe ends: by execve, or because the init was
// killed, which the pidfd tells. Who waits for it may be gone.
func (m *monitor) started() {
	client := m.waiter
	m.waiter = None
	polled := []pollFD{{fd: int32(m.init.pidfd), events: pollIn}}
	patience := int64(0)
	if m.init.gate >= 0 { // resumed: perhaps the killed monitor had opened the gate
		patience = endPatience
		bury(m.init.gate)
		m.init.gate = None
	}
	poll(polled, patience)
	if polled[0].revents != 0 && !m.execed() {
		reply32(client, ReplyFailed, uint32(syscall.ESRCH), "start")
		return
	}
	m.state = StateRunning
	m.forgetCode()
	m.call.begin()
	if fd, err := openAt(m.home, FileStarted, syscall.O_CREAT|syscall.O_WRONLY, 0o600); err == nil {
		syscall.Close(fd)
	}
	send(client, []byte{ReplyOK})
}

// execed tells a program that ended at once from an init that was killed before
// execve: only the latter dies of SIGKILL that soon, and then nothing is lost by
// calling it a failed start.
func (m *monitor) execed() bool {
	if !m.ours {
		ws, known := ExitStatus(m.init.pidfd)
		return known && !(ws.Signaled() && ws.Signal() == syscall.SIGKILL)
	}
	const wnowait, wexited, pPidfd = 0x01000000, 4, 3
	var info [128]byte
	_, _, e := syscall.Syscall6(syscall.SYS_WAITID, pPidfd, uintptr(m.init.pidfd), ptr(&info), wexited|wnowait, 0, 0)
	return e == 0 && !(info[8] == 2 && info[24] == byte(syscall.SIGKILL)) // si_code CLD_KILLED, si_status
}
