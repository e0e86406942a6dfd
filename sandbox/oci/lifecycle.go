package oci

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// endTime bounds the wait for processes that were killed.
const endTime = 10 * time.Second

// Start runs the container's program. It returns when execve has happened and the
// poststart hooks have run; if one of them fails the container is stopped.
func (r Runtime) Start(ctx context.Context, id string) error {
	c, unlock, err := r.openLocked(id)
	if err != nil {
		return err
	}
	defer unlock()
	if c.Status != specs.StateCreated {
		return fmt.Errorf("%w: container %s is %s, and only a created one starts", ErrState, id, c.Status)
	}
	hooks := c.Config.Hooks
	if hooks == nil {
		hooks = &specs.Hooks{}
	}
	s := c.State
	if err := runHooks(ctx, "startContainer", hooks.StartContainer, s, &c.rec.Init.Identity); err != nil {
		return errors.Join(err, c.end(ctx))
	}
	if err := runtime.StartSolo(ctx, r.dir(id), c.rec.Init); err != nil {
		return startError(c.Config.Process, err)
	}
	s.Status = specs.StateRunning
	if err := runHooks(ctx, "poststart", hooks.Poststart, s, nil); err != nil {
		return errors.Join(err, c.end(ctx))
	}
	return nil
}

// startError says it in the words that engines look for in a runtime's message, to
// tell a program that is not there (127) or not executable (126) from the rest.
func startError(p *specs.Process, err error) error {
	var start *runtime.StartError
	if !errors.As(err, &start) || start.Code() == 125 || len(p.Args) == 0 {
		return err
	}
	name := p.Args[0]
	if start.Code() == 127 && !strings.Contains(name, "/") {
		return fmt.Errorf("exec: %q: executable file not found in $PATH: %w", name, err)
	}
	return fmt.Errorf("exec: %q: stat %s: %w: %w", name, name, start.Err, err)
}

// end kills everything in the container and waits for that.
func (c *Container) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
	defer cancel()
	group, err := c.group()
	if err != nil {
		return err
	}
	if c.pidfd >= 0 { // where it is in a cgroup that somebody removed
		if err := unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill container %s: %w", c.ID, err)
		}
	}
	if err := group.Kill(ctx); err != nil {
		return err
	}
	return c.Wait(ctx)
}

// Wait returns when the init has ended, a zombie or gone.
func (c *Container) Wait(ctx context.Context) error {
	for c.pidfd >= 0 {
		poll := []unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 20)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for container %s: %w", c.ID, ctx.Err())
		}
	}
	return nil
}

// Kill sends a signal to the init, or to everything in the container.
func (r Runtime) Kill(ctx context.Context, id string, sig unix.Signal, all bool) error {
	c, err := r.Open(id)
	if err != nil {
		return err
	}
	defer c.Close()
	if all || sig == unix.SIGKILL && !hasPID(c.Config) {
		return c.signalAll(ctx, sig)
	}
	if c.Status == specs.StateStopped {
		return fmt.Errorf("%w: container %s is not running", ErrState, id)
	}
	if c.Status == specs.StateCreated && ends(sig) {
		sig = unix.SIGKILL // nothing of the container runs yet that could answer another one
	}
	if err := unix.PidfdSendSignal(c.pidfd, sig, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("%w: container %s is not running", ErrState, id)
		}
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	return nil
}

// hasPID says whether the end of the init is the end of all.
func hasPID(s *specs.Spec) bool {
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			return n.Path == ""
		}
	}
	return false
}

// ends says whether a signal's default is to end a process, signal(7).
func ends(sig unix.Signal) bool {
	switch sig {
	case 0, unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU:
		return false
	}
	return true
}

// signalAll signals every process of the container through a pidfd, once it is sure
// that it still is one of them.
func (c *Container) signalAll(ctx context.Context, sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return c.end(ctx)
	}
	group, err := c.group()
	if err != nil {
		return err
	}
	pids, err := group.Pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if again, err := group.Pids(); err == nil && slices.Contains(again, pid) {
			err = unix.PidfdSendSignal(fd, sig, nil, 0)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				unix.Close(fd)
				return fmt.Errorf("signal process %d: %w", pid, err)
			}
		}
		unix.Close(fd)
	}
	return nil
}

// Processes lists the container's processes, by their pids on the machine.
func (r Runtime) Processes(id string) ([]int, error) {
	c, err := r.Open(id)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	group, err := c.group()
	if err != nil {
		return nil, err
	}
	return group.Pids()
}

// Delete removes a stopped or created container, or with force any, and runs the
// poststop hooks. With force a container that does not exist is no error.
func (r Runtime) Delete(ctx context.Context, id string, force bool) error {
	l, err := r.lock(id)
	if errors.Is(err, ErrNotExist) && force {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.release()
	c, err := r.Open(id)
	if errors.Is(err, ErrNotExist) { // half made or half removed
		if force {
			return r.remove(id)
		}
		return err
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if c.Status != specs.StateStopped && c.Status != specs.StateCreated && !force {
		return fmt.Errorf("%w: cannot delete container %s that is not stopped: %s", ErrState, id, c.Status)
	}
	if err := c.end(ctx); err != nil {
		return err
	}
	group, err := c.group()
	if err != nil {
		return err
	}
	if err := group.Remove(); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	if err := r.remove(id); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	s := c.State
	s.Status, s.Pid = specs.StateStopped, 0
	r.stopHooks(ctx, c.Config.Hooks, s)
	return nil
}

// Pause freezes all processes of a running container, Resume lets them go on.
func (r Runtime) Pause(ctx context.Context, id string) error { return r.freeze(ctx, id, true) }

// Resume is the end of Pause.
func (r Runtime) Resume(ctx context.Context, id string) error { return r.freeze(ctx, id, false) }

func (r Runtime) freeze(ctx context.Context, id string, frozen bool) error {
	c, unlock, err := r.openLocked(id)
	if err != nil {
		return err
	}
	defer unlock()
	paused := c.Status == specs.ContainerState(runtime.Paused)
	if frozen == paused || c.Status == specs.StateStopped {
		return fmt.Errorf("%w: container %s is %s", ErrState, id, c.Status)
	}
	group, err := c.group()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	return group.Freeze(ctx, frozen)
}
