package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
)

// Container is one container, created here or adopted by Open. Its methods are
// safe for concurrent use.
type Container struct {
	stateDir, dir string
	rec           record
	pidfd         int           // -1: it had ended before Open
	group         *cgroup.Group // nil: its state is gone, only exit.json is left
	live          *live

	mu     sync.Mutex
	client *client // the creator's own connection, which keeps an undetached container alive
}

// Pid is the init's process id in the caller's pid namespace; 0 once it has ended
// before Open. Use it for /proc paths only, never for signals. With another runtime
// it is that runtime's process: in the container's network, and with the host's
// files. See ProgramPid.
func (c *Container) Pid() int {
	if c.pidfd < 0 {
		return 0
	}
	return c.rec.Pid
}

// ask sends one request to the monitor and returns its reply. When the monitor is
// killed meanwhile, the next one is asked: a request must bear that.
func (c *Container) ask(ctx context.Context, msg []byte, op byte) (reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		r, err := c.client.call(ctx, msg, op)
		if !lost(err) {
			return r, err
		}
		c.client.close()
		c.client = nil
	}
	for {
		m, err := reach(c.stateDir, c.dir)
		if err != nil {
			return reply{}, err
		}
		r, err := m.call(ctx, msg, op)
		m.close()
		if !lost(err) || c.State() == Stopped || ctx.Err() != nil {
			return r, err
		}
	}
}

// reach connects to the monitor of a container, and makes one where there is none.
func reach(stateDir, dir string) (*client, error) {
	m, err := dial(stateDir)
	if !errors.Is(err, unix.ECONNREFUSED) {
		return m, err
	}
	c, err := Open(stateDir, dir)
	if err != nil {
		return nil, err
	}
	defer c.Close() // only its monitor was wanted
	return dial(stateDir)
}

// Start lets the created container run. It returns when execve has happened.
func (c *Container) Start(ctx context.Context) error {
	if c.pidfd < 0 || ended(c.pidfd) {
		return fmt.Errorf("start container %s: %w", c.rec.ID, ErrNotRunning)
	}
	before := c.started()
	_, err := c.ask(ctx, []byte{monitor.OpStart}, monitor.ReplyOK)
	if err != nil && !before && c.started() && !errors.As(err, new(*StartError)) {
		err = nil // the monitor was killed before it could say so
	}
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.rec.ID, err)
	}
	if c.rec.Foreign != nil {
		if err := c.untilProgram(ctx); err != nil {
			return fmt.Errorf("start container %s: %w", c.rec.ID, err)
		}
	}
	return nil
}

// started says whether the program was ever executed.
func (c *Container) started() bool {
	_, err := os.Stat(filepath.Join(c.stateDir, monitor.FileStarted))
	return err == nil
}

// State asks the kernel and the state directory for the life stage.
func (c *Container) State() State {
	switch {
	case c.pidfd < 0 || ended(c.pidfd):
		return Stopped
	case c.group.Frozen():
		return Paused
	}
	if c.started() {
		return Running
	}
	return Created
}

// Signal sends sig to the init through its pidfd.
func (c *Container) Signal(sig unix.Signal) error {
	if c.pidfd < 0 {
		return fmt.Errorf("signal container %s: %w", c.rec.ID, ErrNotRunning)
	}
	err := c.signal(sig)
	if errors.Is(err, unix.ESRCH) {
		err = ErrNotRunning
	}
	if err != nil {
		return fmt.Errorf("signal container %s: %w", c.rec.ID, err)
	}
	return nil
}

func (c *Container) signal(sig unix.Signal) error {
	if c.rec.Foreign != nil && c.State() != Created {
		return c.signalForeign(sig)
	}
	return unix.PidfdSendSignal(c.pidfd, sig, nil, 0)
}

// Kill kills everything in the container's cgroup and returns when nothing is left.
func (c *Container) Kill(ctx context.Context) error {
	if c.group == nil { // nothing but the record of its end is left
		return nil
	}
	kill := c.group.Kill
	if c.rec.Foreign != nil && c.pidfd >= 0 {
		kill = c.killForeign
	}
	if err := kill(ctx); err != nil {
		return fmt.Errorf("kill container %s: %w", c.rec.ID, err)
	}
	return c.waitProcess(ctx)
}

// Pause freezes every process of the container.
func (c *Container) Pause(ctx context.Context) error {
	if c.State() != Running {
		return fmt.Errorf("pause container %s: %w", c.rec.ID, ErrNotRunning)
	}
	return c.group.Freeze(ctx, true)
}

// Resume thaws what Pause froze.
func (c *Container) Resume(ctx context.Context) error {
	if c.State() == Stopped {
		return fmt.Errorf("resume container %s: %w", c.rec.ID, ErrNotRunning)
	}
	return c.group.Freeze(ctx, false)
}

func (c *Container) waitProcess(ctx context.Context) error {
	if c.pidfd < 0 || ended(c.pidfd) {
		return nil
	}
	w, err := newExitWaiter(c.pidfd)
	if err != nil {
		return err
	}
	defer w.close()
	stop := context.AfterFunc(ctx, w.close)
	defer stop()
	if err := w.wait(); err != nil && !ended(c.pidfd) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("wait for container %s: %w", c.rec.ID, err)
	}
	return nil
}

// Wait returns the exit, also when it happened long ago. With live output it
// returns when that is complete.
func (c *Container) Wait(ctx context.Context) (Exit, error) {
	if err := c.waitProcess(ctx); err != nil {
		return Exit{}, err
	}
	e, err := c.exit(ctx)
	if err != nil {
		return e, fmt.Errorf("wait for container %s: %w", c.rec.ID, err)
	}
	if c.live == nil {
		return e, nil
	}
	select {
	case <-c.live.done:
	case <-ctx.Done():
		return e, fmt.Errorf("wait for output of container %s: %w", c.rec.ID, ctx.Err())
	}
	return e, nil
}

// exit waits for the monitor's record of an ended process. Where no monitor is
// left, the kernel is asked, and the answer recorded.
func (c *Container) exit(ctx context.Context) (Exit, error) {
	began := time.Now()
	for wait := firstLook; ; wait = nextLook(began, wait) {
		e, ok, err := loadExit(c.dir)
		if err != nil || ok {
			return e, err
		}
		lock, err := lockMonitor(c.stateDir)
		if err == nil {
			defer lock.Close()
			return c.recordExit()
		}
		if errors.Is(err, fs.ErrNotExist) { // destroyed by somebody else
			return Exit{Code: 255, At: time.Now()}, nil
		}
		if !errors.Is(err, errLocked) {
			return Exit{}, err
		}
		select {
		case <-ctx.Done():
			return Exit{}, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// A monitor is done within a millisecond or two of its container's end. Whoever waits
// for that looks often at first, and then less and less.
const (
	firstLook = 100 * time.Microsecond
	often     = 3 * time.Millisecond
	seldom    = 20 * time.Millisecond
)

func nextLook(began time.Time, wait time.Duration) time.Duration {
	if time.Since(began) < often {
		return firstLook
	}
	return min(2*wait, seldom)
}

// recordExit is called with the monitor's lock held.
func (c *Container) recordExit() (Exit, error) {
	if e, ok, err := loadExit(c.dir); err != nil || ok {
		return e, err
	}
	e := Exit{Code: 255, At: time.Now()}
	for range 100 { // its new parent reaps it any moment
		if ws, ok := monitor.ExitStatus(c.pidfd); ok {
			e.Code, e.Known = monitor.ExitCode(ws), true
			break
		}
		if c.pidfd < 0 {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	return e, saveExit(c.dir, e)
}

// Close drops the descriptors; the container goes on, unless it was created here,
// not detached, and not started: then it is killed.
func (c *Container) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live.close()
	var errs []error
	if c.client != nil {
		errs = append(errs, c.client.close())
		c.client = nil
	}
	if c.pidfd >= 0 {
		errs = append(errs, unix.Close(c.pidfd))
		c.pidfd = -1
	}
	return errors.Join(errs...)
}
