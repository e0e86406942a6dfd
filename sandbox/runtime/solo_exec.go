package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
	"naru/sandbox/runtime/launch/step"
	"naru/sandbox/runtime/seccomp"
)

// SoloExec is one more process in a container without a monitor. When ExecSolo has
// returned it is nobody's child here: the nearest subreaper adopts it.
type SoloExec struct {
	// Spec is the container's, for its id maps and seccomp policy.
	Spec *specs.Spec
	// Process is what runs; CheckProcess has approved it.
	Process *specs.Process
	// Cgroup is the path below every hierarchy; the container's or one below it.
	Cgroup string
	// Stdin, Stdout, Stderr, Preserve, Console and Listener are as in SoloConfig.
	Stdin, Stdout, Stderr *os.File
	Preserve              []*os.File
	Console               func(master *os.File) error
	Listener              func(listener *os.File, pid int) error
	// Save is called with the process's pid before it runs.
	Save func(pid int) error
}

// ExecSolo starts a process in the container of an init and returns its pid, once
// execve has happened. The caller, or a process above it, must be a subreaper to
// wait for it.
func ExecSolo(ctx context.Context, init Solo, e SoloExec) (int, error) {
	pidfd, err := init.Find()
	if err != nil {
		return 0, err
	}
	x := &soloExec{SoloExec: e, prog: &program{}, launch: monitor.NewLaunch()}
	defer x.prog.close()
	x.pidfd = x.prog.file(os.NewFile(uintptr(pidfd), "pidfd"))
	if err := x.prepare(init); err != nil {
		return 0, err
	}
	x.launch.Name, x.launch.Solo, x.launch.Program = "naru-exec", true, x.prog.steps
	return x.run(ctx)
}

type soloExec struct {
	SoloExec
	prog   *program
	launch *monitor.Launch
	pidfd  int16
	solo   solo
}

func (x *soloExec) run(ctx context.Context) (int, error) {
	h, err := spawn(monitor.ArgExec, nil)
	if err != nil {
		return 0, err
	}
	defer h.close()
	if err := h.launch(monitor.OpLaunch, x.launch, x.prog.files); err != nil {
		return 0, err
	}
	ready, err := h.expect(ctx, monitor.ReplyReady)
	if err != nil {
		return 0, err
	}
	if len(ready.fds) != 1 {
		return 0, errors.New("internal error: helper sent no pidfd")
	}
	pid, pidfd := int(ready.value), ready.fds[0]
	defer unix.Close(pidfd)
	if err := setLimits(pid, x.Process); err != nil {
		return 0, err // closing the socket ends the waiting process
	}
	if err := fetch(pidfd, x.Process.Terminal, monitor.TerminalFD, x.Console); err != nil {
		return 0, fmt.Errorf("terminal: %w", err)
	}
	listener := func(f *os.File) error { return x.Listener(f, pid) }
	if err := fetch(pidfd, x.solo.listens(), listenerFD, listener); err != nil {
		return 0, fmt.Errorf("seccomp listener: %w", err)
	}
	if err := x.Save(pid); err != nil {
		return 0, err
	}
	_, err = h.call(ctx, []byte{monitor.OpStart}, monitor.ReplyOK)
	return pid, err
}

// prepare writes the program.
func (x *soloExec) prepare(init Solo) (err error) {
	e := entry{pidfd: x.pidfd, stdio: [3]int16{regSlave, regSlave, regSlave}}
	if e.namespaces, err = foreignNamespaces(init.Pid); err != nil {
		return err
	}
	e.mapped, e.keyring = e.namespaces&unix.CLONE_NEWUSER != 0, init.Keyring
	if a := x.Process.ExecCPUAffinity; a != nil {
		e.initial, e.final = a.Initial, a.Final
	}
	if err := x.streams(&e); err != nil {
		return err
	}
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	group := host.Open(x.Cgroup)
	if err := groupFiles(x.launch, x.prog, group); err != nil {
		return fmt.Errorf("cgroup %s: %w", x.Cgroup, err)
	}
	if e.tasks, err = openTasks(group); err != nil {
		return err
	}
	if policy := x.Spec.Linux.Seccomp; policy != nil {
		f, err := seccomp.Build(policy)
		if err != nil {
			return fmt.Errorf("linux.seccomp: %w", err)
		}
		e.filter, x.solo.listener = f, f.Listener
	}
	if x.solo.label, x.solo.labelFile, err = securityLabel(x.Process); err != nil {
		return err
	}
	p := x.prog
	p.register(&x.solo)
	p.enter(e)
	if e.namespaces&unix.CLONE_NEWNS == 0 { // its root is no namespace's
		root, err := os.Open("/proc/" + strconv.Itoa(init.Pid) + "/root")
		if err != nil {
			return fmt.Errorf("root of the container: %w", err)
		}
		p.chroot(p.file(root))
	}
	p.add(step.Call("open root", unix.SYS_OPENAT, step.I(unix.AT_FDCWD), step.S("/"), step.I(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).Into(regRoot))
	p.root = regRoot
	if x.Process.Terminal {
		p.terminal(x.Process, p.root)
	}
	p.openLabel(&x.solo)
	p.process(x.Process, entrance{stdio: e.stdio, filter: e.filter, solo: &x.solo})
	return nil
}

func (x *soloExec) streams(e *entry) error {
	if !x.Process.Terminal {
		owner := mapOf(x.Spec).uid(x.Process.User.UID)
		for i, f := range []*os.File{x.Stdin, x.Stdout, x.Stderr} {
			own, err := passThrough(f, owner)
			if err != nil {
				return err
			}
			e.stdio[i] = x.prog.file(own)
		}
	}
	for _, f := range x.Preserve {
		own, err := duplicate(f)
		if err != nil {
			return err
		}
		x.solo.preserve = append(x.solo.preserve, own)
	}
	return nil
}

// foreignNamespaces are the flags of those namespaces of a process that are not
// ours; setns(2) refuses some of those that are.
func foreignNamespaces(pid int) (flags uint64, err error) {
	files := map[string]uint64{"mnt": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "uts": unix.CLONE_NEWUTS, "ipc": unix.CLONE_NEWIPC,
		"net": unix.CLONE_NEWNET, "user": unix.CLONE_NEWUSER, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME}
	for name, flag := range files {
		theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
		if errors.Is(err, os.ErrNotExist) && name == "time" {
			continue // a kernel without time namespaces
		}
		if err != nil {
			return 0, fmt.Errorf("namespaces of the container: %w", err)
		}
		if ours, err := os.Readlink("/proc/self/ns/" + name); err != nil || ours != theirs {
			flags |= flag
		}
	}
	return flags, nil
}

// Inside is a program of the machine or of the image that runs in the namespaces of
// a container with all its init's rights: a hook.
type Inside struct {
	Path      string
	Args, Env []string
	// Stdin, Stdout and Stderr are its standard streams.
	Stdin, Stdout, Stderr *os.File
}

// RunInside runs a hook in the mount namespace, and all others, of an init that
// waits, and returns its exit. Before pivot_root it sees the machine's files, after it the image's.
func RunInside(ctx context.Context, init Identity, h Inside) (Exit, error) {
	pidfd, err := init.Find()
	if err != nil {
		return Exit{}, err
	}
	p, l := &program{}, monitor.NewLaunch()
	defer p.close()
	e := entry{pidfd: p.file(os.NewFile(uintptr(pidfd), "pidfd"))}
	if e.namespaces, err = foreignNamespaces(init.Pid); err != nil {
		return Exit{}, err
	}
	e.mapped = e.namespaces&unix.CLONE_NEWUSER != 0
	for i, f := range []*os.File{h.Stdin, h.Stdout, h.Stderr} {
		own, err := duplicate(f)
		if err != nil {
			return Exit{}, err
		}
		e.stdio[i] = p.file(own)
	}
	p.newKeyring()
	p.enter(e)
	p.readyAndWait()
	p.add(step.Call("setsid", unix.SYS_SETSID))
	for fd, reg := range e.stdio {
		p.add(step.Call("connect standard streams", unix.SYS_DUP3, step.R(reg), step.I(fd), step.I(0)))
	}
	p.add(step.Call("close on exec", unix.SYS_CLOSE_RANGE, step.I(3), step.I(^uint32(0)), step.I(unix.CLOSE_RANGE_CLOEXEC)))
	p.signals()
	p.add(step.Call(stepExec, unix.SYS_EXECVE, step.S(h.Path), step.V(h.Args), step.V(h.Env)))
	l.Name, l.Program = "naru-hook", p.steps
	return runHelper(ctx, l, p)
}

func runHelper(ctx context.Context, l *monitor.Launch, p *program) (Exit, error) {
	h, err := spawn(monitor.ArgExec, nil)
	if err != nil {
		return Exit{}, err
	}
	defer h.close()
	if err := h.launch(monitor.OpLaunch, l, p.files); err != nil {
		return Exit{}, err
	}
	ready, err := h.expect(ctx, monitor.ReplyReady)
	if err != nil {
		return Exit{}, err
	}
	if len(ready.fds) != 1 {
		return Exit{}, errors.New("internal error: helper sent no pidfd")
	}
	defer unix.Close(ready.fds[0])
	if _, err := h.call(ctx, []byte{monitor.OpStart}, monitor.ReplyOK); err != nil {
		return Exit{}, err
	}
	return waitExec(ctx, h, ready.fds[0])
}
