package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/internal/loosen"
	"naru/sandbox/monitor"
	"naru/sandbox/runtime/launch/step"
	"naru/sandbox/runtime/seccomp"
)

// Exec runs one more process in the container and waits for its end; when ctx
// ends the process is killed. The seccomp policy is e's, or the default one
// for the process's capabilities.
func (c *Container) Exec(ctx context.Context, e ExecConfig) (Exit, error) {
	x, err := c.exec(ctx, e)
	if err != nil {
		return x, fmt.Errorf("exec in container %s: %w", c.rec.ID, err)
	}
	return x, nil
}

func (c *Container) exec(ctx context.Context, e ExecConfig) (Exit, error) {
	if c.State() != Running {
		return Exit{}, ErrNotRunning
	}
	if e.Process == nil {
		return Exit{}, errors.New("no process")
	}
	if e.Process.Terminal != (e.Terminal != nil) {
		return Exit{}, errors.New("process.terminal: somebody must take the terminal, and only then")
	}
	if err := validateProcess(e.Process, idMap{}); err != nil {
		return Exit{}, err
	}
	h, err := spawn(monitor.ArgExec, nil)
	if err != nil {
		return Exit{}, err
	}
	defer h.close()
	if c.rec.Foreign != nil {
		return c.execForeign(ctx, h, e)
	}
	if err := c.launchExec(ctx, h, e); err != nil {
		return Exit{}, err
	}
	ready, err := h.expect(ctx, monitor.ReplyReady)
	if err != nil {
		return Exit{}, err
	}
	pidfd, err := takeReady(ready, e)
	if err != nil {
		return Exit{}, err
	}
	defer unix.Close(pidfd)
	if err := setLimits(int(ready.value), e.Process); err != nil {
		return Exit{}, err // closing the socket ends the waiting process
	}
	if _, err := h.call(ctx, []byte{monitor.OpStart}, monitor.ReplyOK); lost(err) && !e.Detach {
		return helperKilled(ctx, pidfd, false, err)
	} else if err != nil {
		return Exit{}, err
	}
	if e.Detach {
		return Exit{}, nil
	}
	return waitExec(ctx, h, pidfd)
}

// takeReady returns the pidfd of a process that waits at its gate, and hands its
// terminal to whom it belongs.
func takeReady(r reply, e ExecConfig) (int, error) {
	want := 1
	if e.Process.Terminal {
		want = 2
	}
	if len(r.fds) != want {
		for _, fd := range r.fds {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("internal error: helper sent %d descriptors, want %d", len(r.fds), want)
	}
	if want == 2 {
		e.Terminal(os.NewFile(uintptr(r.fds[1]), "terminal"))
	}
	return r.fds[0], nil
}

func waitExec(ctx context.Context, h *client, pidfd int) (Exit, error) {
	r, err := h.expect(ctx, monitor.ReplyExited)
	if err != nil && ctx.Err() != nil {
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return Exit{}, err
		}
		return Exit{Code: 128 + int(unix.SIGKILL), At: time.Now()}, ctx.Err()
	}
	if lost(err) {
		return helperKilled(ctx, pidfd, true, err)
	}
	if err != nil {
		return Exit{Code: 255, At: time.Now()}, err
	}
	return Exit{Code: monitor.ExitCode(syscall.WaitStatus(r.value)), Known: true, At: time.Now()}, nil
}

// helperKilled goes on waiting without the helper: the kernel keeps the exit status for
// whoever holds a pidfd (Linux 6.15). A process that was still at its gate exits with
// notStarted, which is no code of a program then.
func helperKilled(ctx context.Context, pidfd int, started bool, why error) (Exit, error) {
	w, err := newExitWaiter(pidfd)
	if err != nil {
		return Exit{Code: 255, At: time.Now()}, err
	}
	defer w.close()
	stop := context.AfterFunc(ctx, func() {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // ESRCH: it has just ended
	})
	err = w.wait()
	if !stop() {
		return Exit{Code: 128 + int(unix.SIGKILL), At: time.Now()}, ctx.Err()
	}
	if err != nil {
		return Exit{Code: 255, At: time.Now()}, err
	}
	for range 100 { // its new parent reaps it any moment
		if ws, ok := monitor.ExitStatus(pidfd); ok && !started && monitor.ExitCode(ws) == notStarted {
			break
		} else if ok {
			return Exit{Code: monitor.ExitCode(ws), Known: true, At: time.Now()}, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return Exit{Code: 255, At: time.Now()}, why
}

// notStarted is the exit code of a process whose list of steps was cut off.
const notStarted = 125

// launchExec sends the helper its program and everything it needs.
func (c *Container) launchExec(ctx context.Context, h *client, e ExecConfig) error {
	p := &program{}
	defer p.close()
	l := monitor.NewLaunch()
	l.Name = "naru-exec"
	l.Terminal = e.Process.Terminal
	stdio := [3]int16{regSlave, regSlave, regSlave}
	for i, f := range []*os.File{e.Stdin, e.Stdout, e.Stderr} {
		if e.Process.Terminal {
			break
		}
		own, err := duplicate(f)
		if err != nil {
			return err
		}
		stdio[i] = p.file(own)
	}
	fd, err := unix.FcntlInt(uintptr(c.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate pidfd: %w", err)
	}
	pidfd := p.file(os.NewFile(uintptr(fd), "pidfd"))
	if err := groupFiles(l, p, c.group); err != nil {
		return err
	}
	filter, err := e.filter()
	if err != nil {
		return err
	}
	tasks, err := openTasks(c.group)
	if err != nil {
		return err
	}
	steps := c.execProgram(p, entry{pidfd: pidfd, stdio: stdio, tasks: tasks, filter: filter}, e.Process)
	p.files = loosen.Apply(ctx, p.files)
	l.Program = loosen.Apply(ctx, steps)
	return h.launch(monitor.OpLaunch, l, p.files)
}

// filter is nil where the process is not to have one.
func (e *ExecConfig) filter() (*seccomp.Filter, error) {
	switch {
	case e.NoSeccomp:
		return nil, nil
	case e.Seccomp != nil:
		return Filter(e.Seccomp)
	}
	return Filter(seccomp.Default(boundingOf(e.Process)))
}

// entry is what a process needs on its way into a container.
type entry struct {
	pidfd  int16    // register of the init's pidfd
	stdio  [3]int16 // registers
	tasks  []*os.File
	filter *seccomp.Filter

	namespaces     uint64 // to enter, CLONE_NEW*
	mapped         bool   // a user namespace is among them
	keyring        string // name of the container's session keyring; empty: none of its own
	initial, final string // processors before and after entering the cgroup
}

// duplicate gives a descriptor of our own; nil becomes a null device.
func duplicate(f *os.File) (*os.File, error) {
	if f == nil {
		return privateNull()
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func boundingOf(p *specs.Process) []string {
	if p.Capabilities == nil {
		return nil
	}
	return p.Capabilities.Bounding
}

// execProgram is one more process of a container with a monitor.
func (c *Container) execProgram(p *program, e entry, proc *specs.Process) step.Program {
	e.namespaces, e.mapped, e.keyring = c.rec.Namespaces, c.rec.Mapped, keyringOf(c.rec.ID)
	p.enter(e)
	if proc.Terminal {
		p.terminal(proc, regInside)
	}
	p.readyAndWait()
	p.process(proc, entrance{stdio: e.stdio, filter: e.filter})
	return p.steps
}

// enter enters the container and forks once more: a pid namespace takes only
// children. With CLONE_PARENT the grandchild becomes the helper's child.
// Between setns and execve the process cannot be traced by the container: it is
// not dumpable, and its memory holds nothing but this program.
func (p *program) enter(e entry) {
	const report = 4 // offset in Scratch of {0, 0, 0, 0, pid}
	p.waitForParent()
	p.runOn("initial", e.initial)
	p.enterCgroups(e.tasks)
	p.runOn("final", e.final)
	if e.namespaces != 0 {
		p.add(step.Call("enter namespaces", unix.SYS_SETNS, step.R(e.pidfd), step.I(e.namespaces)))
	}
	parent := step.Program{
		step.Call("report pid", unix.SYS_WRITE, step.R(step.RegStatus), step.Arg{Kind: step.Scratch, Val: report}, step.I(8)),
		step.Call("exit", unix.SYS_EXIT_GROUP, step.I(0)),
	}
	p.add(step.Call("fork into pid namespace", unix.SYS_CLONE, step.I(unix.CLONE_PARENT|unix.CLONE_PARENT_SETTID|int(unix.SIGCHLD)),
		step.I(0), step.Arg{Kind: step.Scratch, Val: report + 4}, step.I(0), step.I(0)).On(0, len(parent)))
	p.add(parent...)
	p.keyring(e.keyring)
	if e.mapped {
		p.becomeRoot()
	}
}

// runOn sets the processors of the process, a list that was checked before.
func (p *program) runOn(which, list string) {
	if mask, _ := bitList(list); len(mask) > 0 {
		p.add(step.Call("set "+which+" cpu affinity", unix.SYS_SCHED_SETAFFINITY, step.I(0), step.I(len(mask)), step.B(mask)))
	}
}
