package monitor

import (
	"syscall"

	"naru/sandbox/runtime/launch/step"
)

// A keeper is a process beside the monitor that shares its table of descriptors
// (CLONE_FILES) and sleeps until the monitor is gone. It is a fork that runs a list of
// raw calls, as the container's init does. When the monitor was killed, it becomes a
// monitor again (execve, ArgResume), with the same lock, socket, pipes and pidfd: so
// neither an exit code nor a byte of output is lost, and nobody has to notice.
//
// What it must find keeps its number from the start to the end: a descriptor that is
// closed is replaced by the null device (bury), so that no other gets its number. The
// numbers are in the record, for the monitor to be. That there is something to resume
// is told by the number of the record itself: it is one from OpCommit until all is done.
//
// Between its execve and its own keeper a resumed monitor is guarded as well: the
// keeper forks before it executes, and the fork, with a copy of the table, runs the same
// list from the start. So only whoever kills both at once finds nobody. For a moment a
// resumed monitor has two that would follow it: they take a token, an eventfd, which is
// read once. Who has read it makes another, for those who follow him.
//
// No descriptor is added where it can be helped: to enlarge a shared table (64 at
// first) takes a grace period of RCU, that is milliseconds.
const (
	keptRecord  = iota // memfd of the launch record
	keptCreator        // its connection, which a resumed monitor ends: the init has it, too
	keptSelf           // pidfd of the monitor
	keptToken          // eventfd
	keptGuard          // pidfd of the fork that guards a resumed monitor until it has a keeper
	keptInit           // pidfd
	keptGate
	keptStatus
	keptLock
	keptListen
	keptDir
	keptState
	keptKill
	keptOOM
	keptOOMEvent
	keptRoot
	keptIn
	keptOut
	keptErr
	keptTerminal // write end of the pipe between a terminal and the log
	keptHold
	keptHold2
	keptCount
)

// kept lists the descriptors of a record that are kept.
func (l *Launch) kept() []keptFD {
	return []keptFD{{&l.Lock, keptLock}, {&l.Listen, keptListen}, {&l.Dir, keptDir}, {&l.State, keptState}, {&l.Kill, keptKill}, {&l.OOM, keptOOM},
		{&l.OOMEvent, keptOOMEvent}, {&l.CgroupRoot, keptRoot}, {&l.In, keptIn}, {&l.Out[0], keptOut}, {&l.Out[1], keptErr},
		{&l.Hold[0], keptHold}, {&l.Hold[1], keptHold2}, {&l.Pidfd, keptInit}}
}

type keptFD struct {
	index *int
	what  int
}

// keep notes the number of a descriptor.
func (m *memory) keep(what, fd int) int {
	m.fds[what] = int32(fd)
	return fd
}

// hold notes the numbers of what came with a record, and reserves those that come later.
func (m *monitor) hold(l *Launch, fds []int) {
	for i := range m.mem.fds {
		m.mem.fds[i] = None
	}
	if l.Solo {
		return
	}
	for _, k := range l.kept() {
		m.mem.keep(k.what, fdOf(fds, *k.index))
	}
	m.mem.keep(keptCreator, Control)
	for _, what := range []int{keptRecord, keptGuard} {
		m.mem.keep(what, dup(null))
	}
	const flags = syscall.O_CLOEXEC | syscall.O_NONBLOCK
	if fd, _, e := syscall.Syscall(syscall.SYS_EVENTFD2, 1, flags, 0); e == 0 {
		m.mem.keep(keptToken, int(fd))
	}
	if fd, _, e := syscall.Syscall(sysPidfdOpen, uintptr(syscall.Getpid()), 0, 0); e == 0 {
		m.mem.keep(keptSelf, int(fd))
	}
}

// commit says that there is something to resume.
func (m *monitor) commit() {
	m.committed = true
	syscall.Dup3(m.file, int(m.mem.fds[keptRecord]), syscall.O_CLOEXEC)
	syscall.Close(m.file)
}

// null is a descriptor of the null device, with which we are started.
const null = 0

func dup(fd int) int {
	n, _, e := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, 0)
	if e != 0 {
		return None
	}
	return int(n)
}

// bury closes a kept descriptor.
func bury(fd int) {
	if fd >= 0 {
		syscall.Dup3(null, fd, syscall.O_CLOEXEC)
	}
}

// found is the number of a kept descriptor, None if it was closed.
func (m *memory) found(what int) int {
	fd := int(m.fds[what])
	var st, none syscall.Stat_t
	if fd < 0 || syscall.Fstat(fd, &st) != nil {
		return None
	}
	if what != keptHold && syscall.Fstat(null, &none) == nil && st.Rdev == none.Rdev && st.Mode&syscall.S_IFMT == syscall.S_IFCHR {
		return None
	}
	return fd
}

const (
	sysPidfdOpen  = 434 // the same numbers on every architecture
	sysCloseRange = 436
	getSeals      = 1034 // F_GET_SEALS, fcntl(2)
)

// keeperProgram is the list of a keeper.
func keeperProgram(id string, fds []int32) step.Program {
	const prSetName = 15 // PR_SET_NAME, prctl(2)
	const pid, fd = step.FirstFD, step.FirstFD + 1
	own := func(what int) step.Arg { return step.I(int(fds[what])) }
	guard := step.Program{
		step.Call("name of the guard", syscall.SYS_PRCTL, step.I(prSetName), step.S("naru-guard:"+id)),
		step.Call("do the same", step.Again).Then(1),
	}
	parent := step.Program{
		step.Call("keep a name of it", sysPidfdOpen, step.R(pid), step.I(0)).Into(fd),
		step.Call("keep a name of it", syscall.SYS_DUP3, step.R(fd), own(keptGuard), step.I(0)),
		step.Call("close", syscall.SYS_CLOSE, step.R(fd)),
	}
	resume := step.Program{}
	for _, n := range fds {
		if n >= 0 {
			resume = append(resume, step.Call("keep descriptor", syscall.SYS_FCNTL, step.I(int(n)), step.I(syscall.F_SETFD), step.I(0)))
		}
	}
	resume = append(resume,
		step.Call("unblock signals", syscall.SYS_RT_SIGPROCMASK, step.I(2), step.B(make([]byte, 8)), step.I(0), step.I(8)),
		step.Call("execve", syscall.SYS_EXECVE, step.S("/proc/self/exe"), step.V([]string{ArgResume, itoa(int(fds[keptRecord]))}), step.V(Environment())))
	p := step.Program{
		step.Call("name", syscall.SYS_PRCTL, step.I(prSetName), step.S("naru-keep:"+id)),
		step.Call("wait for the monitor's end", syscall.SYS_PPOLL, step.B(pollBytes(fds[keptSelf])), step.I(1), step.I(0), step.I(0), step.I(0)),
		step.Call("anything to resume", syscall.SYS_FCNTL, own(keptRecord), step.I(getSeals)),                       // of a memfd only
		step.Call("nobody else resumes", syscall.SYS_READ, own(keptToken), step.Arg{Kind: step.Scratch}, step.I(8)), // or EAGAIN
		step.Call("make another token", syscall.SYS_EVENTFD2, step.I(1), step.I(syscall.O_CLOEXEC|syscall.O_NONBLOCK)).Into(fd),
		step.Call("make another token", syscall.SYS_DUP3, step.R(fd), own(keptToken), step.I(syscall.O_CLOEXEC)),
		step.Call("close", syscall.SYS_CLOSE, step.R(fd)),
		step.Call("name itself", syscall.SYS_GETPID).Into(pid),
		step.Call("name itself", sysPidfdOpen, step.R(pid), step.I(0)).Into(fd),
		step.Call("name itself", syscall.SYS_DUP3, step.R(fd), own(keptSelf), step.I(syscall.O_CLOEXEC)),
		step.Call("close", syscall.SYS_CLOSE, step.R(fd)),
		// Without a guard it is still a monitor.
		step.Call("fork a guard", syscall.SYS_CLONE, step.I(int(syscall.SIGCHLD)), step.I(0), step.I(0), step.I(0), step.I(0)).Into(pid).
			On(0, len(parent)+len(resume)).On(-int(syscall.EAGAIN), len(parent)).On(-int(syscall.ENOMEM), len(parent)),
	}
	return append(append(append(p, parent...), resume...), guard...)
}

// pollBytes is a struct pollfd that waits for input.
func pollBytes(fd int32) []byte {
	return []byte{byte(fd), byte(fd >> 8), 0, 0, pollIn, 0, 0, 0}
}

// keeper is what a monitor knows of its keeper.
type keeper struct {
	id     string // of the container
	mem    *memory
	runner *step.Runner
	code   step.Code // in which runner points
	pid    int
	pidfd  int
}

func newKeeper(name string, mem *memory) *keeper {
	const prefix = "naru:"
	if len(name) > len(prefix) && name[:len(prefix)] == prefix {
		name = name[len(prefix):]
	}
	return &keeper{id: name, mem: mem, pidfd: None}
}

// start makes a keeper, and then ends the guard that a killed monitor may have left.
// Should it fail, the container goes on: then a killed monitor is missed until somebody
// opens the container.
func (k *keeper) start() {
	if k.runner == nil {
		if k.mem.fds[keptSelf] < 0 || k.mem.fds[keptToken] < 0 {
			return
		}
		var e step.Encoder
		keeperProgram(k.id, k.mem.fds[:]).Encode(&e)
		k.code = e.Buf
		k.runner, _ = step.Compile(k.code, nil)
		k.runner.Regs[step.RegStatus] = ^uintptr(0) // it has nobody to report to
	}
	pid, pidfd, errno := step.Clone(step.CloneFiles, None, k.runner)
	if errno != 0 {
		return
	}
	k.pid, k.pidfd = pid, pidfd
	if guard := k.mem.found(keptGuard); guard >= 0 {
		pidfdKill(guard, int(syscall.SIGKILL))
		await(guard)
		bury(guard)
	}
}

// ended makes another one where it was killed. One that ended by itself could not do
// its work, and another could not either.
func (k *keeper) ended() {
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(k.pid, &ws, syscall.WNOHANG, nil); err == nil && pid != k.pid {
		return
	}
	syscall.Close(k.pidfd)
	k.pidfd = None
	if ws.Signaled() {
		k.start()
	}
}

// dismiss ends it: what was to be done is done. Whoever is killed from here on leaves
// nothing to be resumed.
func (k *keeper) dismiss() {
	bury(k.mem.found(keptRecord))
	if k.pidfd < 0 {
		return
	}
	pidfdKill(k.pidfd, int(syscall.SIGKILL))
	await(k.pidfd)
	syscall.Close(k.pidfd)
	k.pidfd = None
}

// await reaps a child.
func await(pidfd int) {
	const pPidfd, wexited = 3, 4
	for {
		if _, _, e := syscall.Syscall6(syscall.SYS_WAITID, pPidfd, uintptr(pidfd), 0, wexited, 0, 0); e != syscall.EINTR {
			return
		}
	}
}
