package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
)

// foreignJob is one exec by another runtime: a directory with what it is told and what
// it says.
type foreignJob struct {
	c   *Container
	dir string
	e   ExecConfig
}

// newJob writes the process down for the runtime.
func (c *Container) newJob(e ExecConfig) (*foreignJob, error) {
	dir, err := os.MkdirTemp(c.stateDir, jobPattern)
	if err != nil {
		return nil, err
	}
	j := &foreignJob{c, dir, e}
	data, err := json.Marshal(e.Process)
	if err == nil {
		err = os.WriteFile(j.file("process.json"), data, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, j.remove())
	}
	return j, nil
}

func (j *foreignJob) file(name string) string { return filepath.Join(j.dir, name) }
func (j *foreignJob) pidFile() string         { return j.file("pid") }
func (j *foreignJob) log() string             { return j.file("log") }
func (j *foreignJob) remove() error           { return os.RemoveAll(j.dir) }

// process is the runtime's own.
func (j *foreignJob) process() *specs.Process {
	f := j.c.rec.Foreign
	return &specs.Process{
		Args: foreignArgs(f.Path, j.c.stateDir, j.log(), "exec", "--process", j.file("process.json"), "--pid-file", j.pidFile(), j.c.rec.ID),
		Env:  foreignEnv(), Cwd: "/", Terminal: j.e.Process.Terminal, ConsoleSize: j.e.Process.ConsoleSize,
	}
}

// execForeign has the runtime's exec run beside its run: in the same mount and network
// namespaces, connected to the same helper as an exec of ours.
func (c *Container) execForeign(ctx context.Context, h *client, e ExecConfig) (Exit, error) {
	if err := CheckForeign(c.rec.Foreign.Path); err != nil {
		return Exit{}, err
	}
	job, err := c.newJob(e)
	if err != nil {
		return Exit{}, err
	}
	exit, err := job.run(ctx, h)
	return exit, errors.Join(err, job.remove())
}

func (j *foreignJob) run(ctx context.Context, h *client) (Exit, error) {
	if err := j.launch(h); err != nil {
		return Exit{}, err
	}
	ready, err := h.expect(ctx, monitor.ReplyReady)
	if err != nil {
		return Exit{}, err
	}
	pidfd, err := takeReady(ready, j.e)
	if err != nil {
		return Exit{}, err
	}
	defer unix.Close(pidfd)
	if _, err := h.call(ctx, []byte{monitor.OpStart}, monitor.ReplyOK); err != nil {
		return Exit{}, err
	}
	over, err := awaitFile(ctx, j.pidFile(), pidfd)
	if err != nil {
		return j.cancelled(pidfd, err)
	}
	if over {
		return Exit{}, refusalOf(j.c.rec.Foreign.Path, j.log(), j.e.Process.Args[0])
	}
	if j.e.Detach {
		return Exit{}, nil
	}
	r, err := h.expect(ctx, monitor.ReplyExited)
	if err != nil && ctx.Err() != nil {
		return j.cancelled(pidfd, ctx.Err())
	}
	if err != nil {
		return Exit{Code: 255, At: time.Now()}, err
	}
	return Exit{Code: monitor.ExitCode(syscall.WaitStatus(r.value)), Known: true, At: time.Now()}, nil
}

// launch is launchExec for the runtime's exec.
func (j *foreignJob) launch(h *client) error {
	p := &program{}
	defer p.close()
	l := monitor.NewLaunch()
	l.Name, l.Terminal = "naru-exec", j.e.Process.Terminal
	stdio := [3]int16{regSlave, regSlave, regSlave}
	for i, f := range []*os.File{j.e.Stdin, j.e.Stdout, j.e.Stderr} {
		if l.Terminal {
			break
		}
		own, err := duplicate(f)
		if err != nil {
			return err
		}
		stdio[i] = p.file(own)
	}
	fd, err := unix.FcntlInt(uintptr(j.c.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate pidfd: %w", err)
	}
	pidfd := p.file(os.NewFile(uintptr(fd), "pidfd"))
	if err := besideGroup(l, p, j.c.rec.Cgroup); err != nil {
		return err
	}
	proc := j.process()
	p.enter(entry{pidfd: pidfd, namespaces: j.c.rec.Namespaces})
	if l.Terminal {
		p.terminal(proc, regInside)
	}
	p.readyAndWait()
	p.becomeRuntime(proc, stdio)
	l.Program = p.steps
	return h.launch(monitor.OpLaunch, l, p.files)
}

// cancelled kills the process in the container, not only the runtime that waits for it.
func (j *foreignJob) cancelled(pidfd int, why error) (Exit, error) {
	ctx, cancel := context.WithTimeout(context.Background(), foreignPatience)
	defer cancel()
	_, _ = awaitFile(ctx, j.pidFile(), pidfd) // it may just be starting
	if err := killNamed(j.c.group, j.pidFile()); err != nil {
		return Exit{}, errors.Join(why, err)
	}
	if w, err := newExitWaiter(pidfd); err == nil { // it ends as its process has
		stop := context.AfterFunc(ctx, w.close)
		_ = w.wait()
		stop()
		w.close()
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return Exit{}, errors.Join(why, err)
	}
	return Exit{Code: 128 + int(unix.SIGKILL), At: time.Now()}, why
}

// killNamed kills the process of a pid file, if it is one of the group. The pidfd comes
// before the check, so that what was checked is what is killed.
func killNamed(group *cgroup.Group, file string) error {
	pid, err := pidIn(group, file)
	if err != nil {
		return nil // it has ended, or never began
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if again, err := pidIn(group, file); err != nil || again != pid {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// besideGroup lets a process be born in the monitor's group: the container's is for its
// own processes, and on cgroup v2 the runtime may need it to be empty.
func besideGroup(l *monitor.Launch, p *program, path string) error {
	host, err := cgroup.Detect()
	if err != nil || host.Unified == "" {
		l.Cgroup = monitor.None
		return err
	}
	f, err := os.Open(host.Open(monitorCgroup(path)).UnifiedDir())
	if err != nil {
		return err
	}
	l.Cgroup = p.index(f)
	return nil
}
