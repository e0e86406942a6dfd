package monitor

import (
	"syscall"

	"naru/sandbox/runtime/launch/step"
)

// child is a process that was cloned to run a program.
type child struct {
	pid, pidfd int
	gate       int // write one byte for each permission
	status     int // reports arrive here; end of file is a successful execve
}

// spawn clones the process of l, maps its ids and opens the first gate. On an error the child is dead and reaped.
func spawn(l *Launch, fds []int) (child, string, error) {
	var gate, status [2]int
	if err := syscall.Pipe2(gate[:], syscall.O_CLOEXEC); err != nil {
		return child{}, "pipe", err
	}
	if err := syscall.Pipe2(status[:], syscall.O_CLOEXEC); err != nil {
		return child{}, "pipe", err
	}
	if what, err := prepare(l.before, fds); err != nil {
		return child{}, what, err
	}
	r, ok := step.Compile(l.Code, fds)
	if !ok {
		return child{}, "compile program", syscall.EBADMSG
	}
	r.Regs[step.RegStatus], r.Regs[step.RegGate], r.Regs[step.RegGateWrite] = uintptr(status[1]), uintptr(gate[0]), uintptr(gate[1])
	pid, pidfd, errno := step.Clone(l.Flags, fdOf(fds, l.Cgroup), r)
	syscall.Close(gate[0])
	syscall.Close(status[1])
	if errno != 0 {
		syscall.Close(gate[1])
		syscall.Close(status[0])
		return child{}, "clone", errno
	}
	c := child{pid: pid, pidfd: pidfd, gate: gate[1], status: status[0]}
	if what, err := c.admit(l); err != nil {
		c.abort()
		return child{}, what, err
	}
	return c, "", nil
}

// prepare runs what the child is to inherit in this thread, which is the one that clones.
func prepare(code step.Code, fds []int) (string, error) {
	if len(code) == 0 {
		return "", nil
	}
	r, ok := step.Compile(code, fds)
	if !ok {
		return "compile program", syscall.EBADMSG
	}
	if i, errno := r.Run(); errno != 0 {
		return code.Name(i), errno
	}
	return "", nil
}

// admit does to the waiting child what only its parent can.
func (c child) admit(l *Launch) (string, error) {
	proc := "/proc/" + itoa(c.pid)
	if l.UIDMap != "" {
		if err := writeFile(proc+"/uid_map", l.UIDMap); err != nil {
			return "write uid_map", err
		}
		if err := writeFile(proc+"/gid_map", l.GIDMap); err != nil {
			return "write gid_map", err
		}
	}
	return "open the gate", writeAll(c.gate, "M")
}

// abort kills and reaps the child and drops its descriptors.
func (c child) abort() {
	pidfdKill(c.pidfd, int(syscall.SIGKILL))
	var ws syscall.WaitStatus
	for {
		if _, err := syscall.Wait4(c.pid, &ws, 0, nil); err != syscall.EINTR {
			break
		}
	}
	syscall.Close(c.gate)
	syscall.Close(c.status)
	syscall.Close(c.pidfd)
}

// makeUserNS answers OpUserNS: a namespace that only exists to be named by
// mount_setattr(2) MOUNT_ATTR_IDMAP. The process that makes it ends at once.
func makeUserNS(ctl int, body []byte) {
	d := &step.Decoder{Buf: body}
	l := NewLaunch()
	l.UIDMap, l.GIDMap, l.Flags = d.String(), d.String(), syscall.CLONE_NEWUSER
	scratch := step.Arg{Kind: step.Scratch}
	program := step.Program{
		step.Call("close gate", syscall.SYS_CLOSE, step.R(step.RegGateWrite)),
		step.Call("wait for maps", syscall.SYS_READ, step.R(step.RegGate), scratch, step.I(1)),
		step.Call("wait for the end", syscall.SYS_READ, step.R(step.RegGate), scratch, step.I(1)),
	}
	var e step.Encoder
	program.Encode(&e)
	l.Code = e.Buf
	c, _, err := spawn(l, nil)
	if err != nil {
		reply32(ctl, ReplyErrno, errnoOf(err), "")
		return
	}
	defer c.abort()
	fd, err := openAt(-1, "/proc/"+itoa(c.pid)+"/ns/user", syscall.O_RDONLY, 0)
	if err != nil {
		reply32(ctl, ReplyErrno, errnoOf(err), "")
		return
	}
	send(ctl, []byte{ReplyFD}, fd)
	syscall.Close(fd)
}

func errnoOf(err error) uint32 {
	if e, ok := err.(syscall.Errno); ok {
		return uint32(e)
	}
	return uint32(syscall.EIO)
}

func fdOf(fds []int, i int) int {
	if i < 0 || i >= len(fds) {
		return None
	}
	return fds[i]
}

func writeFile(path, text string) error {
	fd, err := openAt(-1, path, syscall.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = writeAll(fd, text)
	syscall.Close(fd)
	return err
}
