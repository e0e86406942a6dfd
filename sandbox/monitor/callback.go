package monitor

import (
	"syscall"

	"naru/sandbox/runtime/launch/step"
)

// Callback is a program outside the container that the monitor starts: when the
// container has ended, and at intervals while it runs (health checks). That is how
// a container is restarted, removed and probed without a daemon. Times are in
// milliseconds; 0 means never.
type Callback struct {
	Program   step.Program // ends in execve; empty: none
	Ended     bool         // run it after the end
	Delay     uint64       // wait before that
	DelayMin  uint64       // instead, if the container ran at least Settled
	Settled   uint64
	First     uint64 // from the start to the first run
	Every     uint64 // from the end of one run to the next
	EverySoon uint64 // instead, after exit code CallbackSoon
	Group     string // name of its cgroup below the root of the hierarchy, two components
	code      step.Code
}

// CallbackSoon is the exit code of a callback that wants to be run again after EverySoon.
const CallbackSoon = 10

// callbackTries bounds how often a callback after the end is repeated that was killed.
const callbackTries = 20

// callbackPause is the time before that, in milliseconds.
const callbackPause = 200

func (c *Callback) times() []*uint64 {
	return []*uint64{&c.Delay, &c.DelayMin, &c.Settled, &c.First, &c.Every, &c.EverySoon}
}

func (c *Callback) encode(e *step.Encoder) {
	e.U32(flag(c.Ended))
	e.String(c.Group)
	for _, t := range c.times() {
		e.U64(*t)
	}
	var program step.Encoder
	if len(c.Program) > 0 {
		c.Program.Encode(&program)
	}
	e.Bytes(program.Buf)
}

func (c *Callback) decode(d *step.Decoder) {
	c.Ended, c.Group = d.U32() != 0, d.String()
	for _, t := range c.times() {
		*t = d.U64()
	}
	c.code = append(step.Code(nil), d.Bytes()...) // it is needed when the record is long unmapped
}

// caller runs a Callback.
type caller struct {
	Callback
	runner *step.Runner // compiled once: nothing may be allocated each time
	root   int          // of the cgroup2 hierarchy
	pid    int          // of the one that runs
	pidfd  int
	at     int64   // when to run it next, monotonic milliseconds; 0: not
	mem    *memory // when the container was started
}

func newCaller(l *Launch, fds []int) caller {
	c := caller{Callback: l.Callback, root: fdOf(fds, l.CgroupRoot), pidfd: None, mem: l.memory}
	if len(c.code) == 0 {
		return c
	}
	if r, ok := step.Compile(c.code, fds); ok {
		c.runner = r
	}
	return c
}

// begin is the start of the container, or its adoption, or that its monitor was
// killed and is back.
func (c *caller) begin() {
	if c.mem.started == 0 {
		c.mem.started = monotonic()
	}
	if c.runner != nil && c.First > 0 {
		c.at = monotonic() + int64(c.First)
	}
}

// run starts the callback. In its own cgroup it outlives the monitor's, which
// the callback itself may remove.
func (c *caller) run() {
	c.at = 0
	var pid, pidfd int
	var errno syscall.Errno
	for range placeTries {
		group := c.place()
		pid, pidfd, errno = step.Clone(0, group, c.runner)
		if group >= 0 {
			syscall.Close(group)
		}
		if errno != syscall.ENODEV {
			break
		}
	}
	if errno != 0 {
		c.at = monotonic() + int64(c.Every)
		return
	}
	c.pid, c.pidfd = pid, pidfd
}

// placeTries is how often a cgroup is made again that another monitor, the last one
// in it, removes at that moment.
const placeTries = 5

// place opens the cgroup of callbacks, and makes it where it is missing.
func (c *caller) place() int {
	if c.root < 0 || c.Group == "" {
		return None
	}
	syscall.Mkdirat(c.root, c.Group, 0o755)
	fd, err := openAt(c.root, c.Group, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return None
	}
	return fd
}

// enter moves this process into it, and its keeper.
func (c *caller) enter(k *keeper) error {
	group := c.place()
	if group < 0 {
		return nil
	}
	defer syscall.Close(group)
	if k.pidfd >= 0 {
		if err := enterGroup(group, k.pid); err != nil && err != syscall.ESRCH { // its parent has not reaped it: the pid is its own
			return err
		}
	}
	return enterGroup(group, 0)
}

// enterGroup moves a process, 0 for this one.
func enterGroup(dir, pid int) error {
	fd, err := openAt(dir, "cgroup.procs", syscall.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	return writeAll(fd, itoa(pid))
}

// reap plans the next run of a periodic callback.
func (c *caller) reap() {
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(c.pid, &ws, syscall.WNOHANG, nil)
	if err == nil && pid != c.pid {
		return
	}
	syscall.Close(c.pidfd)
	c.pidfd = None
	pause := c.Every
	if ws.Exited() && ws.ExitStatus() == CallbackSoon && c.EverySoon > 0 {
		pause = c.EverySoon
	}
	if pause > 0 {
		c.at = monotonic() + int64(pause)
	}
}

// wanted says whether there is a callback after the end of the container.
func (c *caller) wanted() bool { return c.runner != nil && c.Ended }

// withdraw leaves the container's cgroup, with the keeper, so that a next start finds
// it free: as long as somebody has the lock, nobody kills what is there.
func (c *caller) withdraw(k *keeper) {
	for range placeTries {
		if c.enter(k) == nil {
			return
		}
	}
}

// after runs the callback that follows the end of the container, of which the monitor
// owns nothing any more; it stays only to start the callback again if that is killed.
func (c *caller) after(k *keeper) {
	defer c.vacate(k)
	delay := c.Delay
	if monotonic()-c.mem.started >= int64(c.Settled) {
		delay = c.DelayMin
	}
	sleep(int64(delay))
	for range callbackTries {
		c.run()
		var ws syscall.WaitStatus
		for c.pidfd >= 0 {
			pid, err := syscall.Wait4(c.pid, &ws, 0, nil)
			if pid == c.pid || err == syscall.ECHILD {
				break
			}
		}
		if c.pidfd >= 0 && ws.Exited() {
			return
		}
		sleep(callbackPause)
	}
}

// vacate leaves the callbacks' cgroup and removes it with its parent, if we were the
// last; an error means that others are there.
func (c *caller) vacate(k *keeper) {
	k.dismiss()
	if c.root < 0 || c.Group == "" {
		return
	}
	enterGroup(c.root, 0)
	const removeDir = 0x200 // AT_REMOVEDIR
	for name := c.Group; name != ""; name = parent(name) {
		b := append([]byte(name), 0)
		syscall.Syscall(syscall.SYS_UNLINKAT, uintptr(c.root), ptr(&b[0]), removeDir)
	}
}

// parent cuts the last component off a path; "" has none.
func parent(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i]
		}
	}
	return ""
}

func sleep(ms int64) {
	for end := monotonic() + ms; ms > 0; ms = end - monotonic() {
		poll(nil, ms)
	}
}

// monotonic is milliseconds of CLOCK_MONOTONIC, clock_gettime(2).
func monotonic() int64 {
	const clockMonotonic = 1
	var t syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, ptr(&t), 0)
	return t.Nano() / 1e6
}
