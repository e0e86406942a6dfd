package monitor

import (
	"syscall"
	"unsafe"
)

// memory is what a monitor knows that no descriptor tells, at the start of its record.
type memory struct {
	started           int64  // monotonic milliseconds
	lost, told        uint64 // bytes that were not logged, and of these, how many the log tells of
	oomKnown, oomLast int64  // kills for memory, and when the last one was, monotonic; 0: none
	oomMet            int64  // 1: v1 has told of a kill that may not be counted yet
	resumed, hasty    int64  // when it was resumed last, monotonic, and how often within hastyTime of the time before
	fds               [keptCount]int32
}

// memorySize is the room for it.
const memorySize = int(unsafe.Sizeof(memory{}))

// Environment is that of the tiny program: it never collects garbage.
func Environment() []string { return []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=16MiB"} }

// A monitor that something kills all the time, or that cannot go on, must not cost a
// processor: after hastyMany times, each within hastyTime milliseconds of the one
// before, it waits as long.
const (
	hastyTime = 1000
	hastyMany = 1000
)

func (m *memory) slowDown() {
	before := m.resumed
	m.resumed = monotonic()
	if m.resumed-before > hastyTime {
		m.hasty = 0
	}
	if m.hasty++; m.hasty > hastyMany {
		sleep(hastyTime)
	}
}

// resume goes on where a killed monitor stopped: with its descriptors, and the record
// that says which is which.
func resume(record int) {
	syscall.Syscall(sysCloseRange, Control, ^uintptr(0), closeRangeCloexec)
	l, ok := readLaunch(record)
	if !ok {
		syscall.Exit(1)
	}
	setName(l.Name)
	l.memory.slowDown()
	fds := make([]int, MaxFDs)
	for i := range fds {
		fds[i] = None
	}
	for _, k := range l.kept() {
		if *k.index >= 0 {
			fds[*k.index] = l.memory.found(k.what)
		}
	}
	m := newMonitor(l, fds)
	m.creator, m.committed, m.detached, m.resumed = None, true, true, true
	m.init = child{pidfd: m.mem.found(keptInit), gate: m.mem.found(keptGate), status: m.mem.found(keptStatus)}
	if info, e := infoOf(m.init.pidfd); e == 0 {
		m.init.pid = int(info.pid)
	}
	if m.terminal {
		m.out[0].in, m.feeder, m.master = m.mem.found(keptOut), m.mem.found(keptTerminal), m.mem.found(keptIn)
		m.input.fd = m.master
	}
	m.keeper.start()
	if creator := m.mem.found(keptCreator); creator >= 0 { // it asks again, by the socket
		syscall.Shutdown(creator, syscall.SHUT_RDWR)
		bury(creator)
	}
	m.resumeAt()
	m.run()
}

// resumeAt finds out how far the killed one was.
func (m *monitor) resumeAt() {
	if m.init.status < 0 {
		m.state = StateRunning
	}
	recorded := syscall.Faccessat(m.dir, FileExit, 0, 0) == nil
	if m.lock < 0 || recorded && m.state == StateRunning {
		m.leave()
	}
	m.log.repair([2]int{m.out[0].in, m.out[1].in})
	if m.state == StateRunning {
		m.forgetCode()
		m.call.begin()
	}
}

const closeRangeCloexec = 4 // CLOSE_RANGE_CLOEXEC, close_range(2)
