package monitor

import (
	"syscall"

	"naru/sandbox/runtime/launch/step"
)

// execute is the exec helper: it clones a process that enters the container's
// namespaces and forks once more (a pid namespace takes only children), waits for
// that grandchild, which CLONE_PARENT made its child, and reports its end.
//
// Before the gate the grandchild's pid comes over the status pipe (8 bytes,
// the pid at offset 4), so that limits can be set from outside.
func execute(l *Launch, fds []int) {
	c, what, err := spawn(l, fds)
	if err != nil {
		reply32(Control, ReplyFailed, errnoOf(err), what)
		syscall.Exit(1)
	}
	closeOthers(fds)
	x := executor{child: c, pid: c.pid, code: l.Code, solo: l.Solo, terminal: l.Terminal, master: None}
	x.run()
}

type executor struct {
	child
	pid    int  // whose end counts; the grandchild's once it is known
	named  bool // the process that forks has said whom
	known  bool // pid is the grandchild's, who is not reported yet
	waits  bool // the grandchild is at its gate
	solo   bool // leaves once the grandchild runs
	failed bool // it never did: it is reaped here
	code   step.Code
	msg    [16]byte

	terminal   bool // the process has one
	grandchild int  // its pidfd
	rest       [4096]byte
	master     int // its master, until the process ends: also when the creator leaves it, it gets no SIGHUP
}

func (x *executor) run() {
	ctl := Control
	for {
		p := []pollFD{{fd: int32(x.status), events: pollIn}, {fd: int32(ctl), events: pollIn}, {fd: int32(x.pidfd), events: pollIn}}
		if x.named {
			p[2].fd = None
		}
		poll(p, -1)
		if p[1].revents != 0 {
			ctl = x.permission(ctl)
		}
		if p[0].revents != 0 && !x.report() {
			break
		}
		if p[2].revents != 0 && p[0].revents == 0 {
			x.orphaned()
			break
		}
	}
	if x.solo && !x.failed {
		syscall.Exit(0)
	}
	x.linger(ctl)
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			break // no child is left and the right one was not among them
		}
		if pid == x.pid {
			reply32(Control, ReplyExited, uint32(ws), "")
			break
		}
	}
	syscall.Exit(0)
}

// linger waits for the end of a process with a terminal. When its creator has left,
// it reads the terminal, so that what the process writes does not stop it.
func (x *executor) linger(ctl int) {
	if x.master < 0 {
		return
	}
	p := []pollFD{{fd: int32(x.grandchild), events: pollIn}, {fd: int32(ctl)}, {fd: None, events: pollIn}}
	for p[0].revents == 0 {
		poll(p, -1)
		if p[1].revents != 0 {
			p[1].fd, p[2].fd = None, int32(x.master)
		}
		if p[2].revents == 0 {
			continue
		}
		if n, err := syscall.Read(x.master, x.rest[:]); n <= 0 && err != syscall.EAGAIN && err != syscall.EINTR {
			p[2].fd = None // nobody has it open
		}
	}
}

// permission opens the gate when the creator says so, or kills when it is gone.
func (x *executor) permission(ctl int) int {
	n, fds, err := receive(ctl, x.msg[:], 0)
	closeOthers(fds)
	if err == syscall.EINTR {
		return ctl
	}
	if err != nil || n == 0 {
		syscall.Close(x.gate) // before execve the process sees the end of the gate and exits
		return None
	}
	if x.msg[0] == OpStart {
		writeAll(x.gate, "S")
	}
	return ctl
}

// orphaned is reached when the process that forks was killed before it said whom: its
// child, whom nobody can name, sees the end of the gate and exits.
func (x *executor) orphaned() {
	x.failed = true
	syscall.Close(x.gate)
	reply32(Control, ReplyFailed, uint32(syscall.ESRCH), "report pid")
}

// report is false once execve has happened or failed.
func (x *executor) report() bool {
	n, err := syscall.Read(x.status, x.msg[:8])
	if err == syscall.EINTR {
		return true
	}
	if err != nil || n != 8 {
		send(Control, []byte{ReplyOK})
		return false
	}
	d := step.Decoder{Buf: x.msg[4:8]}
	switch x.msg[0] {
	case 0:
		x.pid, x.named, x.known = int(d.U32()), true, true
	case 'R':
		x.waits = true
	default:
		x.failed = true
		reply32(Control, ReplyFailed, d.U32(), x.code.Name(int(x.msg[2])|int(x.msg[3])<<8))
		return false
	}
	if x.known && x.waits { // the two processes report in any order
		x.known = false
		x.ready()
	}
	return true
}

// ready gives the creator a pidfd of our own child, whose pid cannot be reused
// before we reap it.
func (x *executor) ready() {
	e := step.Encoder{Buf: []byte{ReplyReady}}
	e.U32(uint32(x.pid))
	fd, _, errno := syscall.Syscall(sysPidfdOpen, uintptr(x.pid), 0, 0)
	if errno != 0 {
		reply32(Control, ReplyFailed, uint32(errno), "pidfd_open")
		return
	}
	if !x.terminal {
		send(Control, e.Buf, int(fd))
		syscall.Close(int(fd))
		return
	}
	master, what, terr := takeTerminal(int(fd))
	if terr != 0 {
		reply32(Control, ReplyFailed, uint32(terr), what)
		return
	}
	x.master, x.grandchild = master, int(fd)
	send(Control, e.Buf, int(fd), master)
}
