package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// waitFile is locked (shared) by everybody who waits for a container: a
// container with Remove goes only when the last of them knows its exit.
const waitFile = "wait"

// Stop sends the stop signal, kills after grace, and returns when the
// container has ended. A zero grace means the container's own; a negative one
// kills at once. A stopped container is no error.
func (e *Engine) Stop(ctx context.Context, ref string, grace time.Duration) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	r, err := e.look(id)
	if err != nil {
		return err
	}
	if grace == 0 {
		grace = r.Config.StopGrace
	}
	if err := e.markStopped(ctx, r); err != nil {
		return fmt.Errorf("stop container %s: %w", short(id), err)
	}
	e.step("stopping")
	if p := e.takePending(id); p != nil { // it will never be started
		err := p.rt.Close()
		p.lock.Unlock()
		if err != nil {
			return err
		}
	}
	if err := e.stop(ctx, r, grace); err != nil {
		return fmt.Errorf("stop container %s: %w", short(id), err)
	}
	e.emit(r, "stop")
	return e.sawEnd(ctx, r)
}

// stop returns when the container's process is gone.
func (e *Engine) stop(ctx context.Context, r *record, grace time.Duration) error {
	rt, err := e.open(r.ID)
	if rt == nil || err != nil {
		return err
	}
	defer rt.Close() // the container needs no descriptor of ours
	if state := rt.State(); (state == runtime.Running || state == runtime.Paused) && grace > 0 {
		err := rt.Signal(unix.Signal(r.Signal))
		if err == nil && state == runtime.Paused {
			err = rt.Resume(ctx) // to take the signal
		}
		if err != nil && !errors.Is(err, runtime.ErrNotRunning) {
			return err
		}
		e.step("signalled")
		limited, cancel := context.WithTimeout(ctx, grace)
		_, err = rt.Wait(limited)
		cancel()
		e.step("waited")
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return e.killSeen(ctx, rt)
}

// Kill sends a signal to the container's first process. SIGKILL ends every
// process in it and returns when they are gone.
func (e *Engine) Kill(ctx context.Context, ref string, sig unix.Signal) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	r, err := e.look(id)
	if err != nil {
		return err
	}
	rt, err := e.open(id)
	if err != nil {
		return err
	}
	if rt == nil || rt.State() == runtime.Stopped {
		return fmt.Errorf("%w: %s", ErrNotRunning, r.Name)
	}
	defer rt.Close() // the container needs no descriptor of ours
	e.emit(r, "kill", "signal", strconv.Itoa(int(sig)))
	if r.stopsForGood(sig) {
		if err := e.markStopped(ctx, r); err != nil {
			return err
		}
	}
	if sig != unix.SIGKILL {
		return rt.Signal(sig)
	}
	if err := e.killSeen(ctx, rt); err != nil {
		return fmt.Errorf("kill container %s: %w", short(id), err)
	}
	return e.sawEnd(ctx, r)
}

// Wait returns when the container has ended, with how it ended. A container
// with Remove is removed by the last who waits.
func (e *Engine) Wait(ctx context.Context, ref string) (runtime.Exit, error) {
	id, err := e.resolve(ref)
	if err != nil {
		return runtime.Exit{}, err
	}
	r, err := e.load(id)
	if err != nil {
		return runtime.Exit{}, err
	}
	waiting, err := tryLock(filepath.Join(e.dir(id), waitFile), unix.LOCK_SH)
	if err != nil {
		return runtime.Exit{}, fmt.Errorf("wait for container %s: %w", short(id), err)
	}
	e.step("waiting")
	exit, err := e.waitExit(ctx, id)
	waiting.Unlock()
	if err != nil {
		return runtime.Exit{}, fmt.Errorf("wait for container %s: %w", short(id), err)
	}
	return exit, e.sawEnd(ctx, r)
}

func (e *Engine) waitExit(ctx context.Context, id string) (runtime.Exit, error) {
	rt, err := e.takeLive(id), error(nil)
	if rt == nil {
		if end, ok, err := e.ended(id); ok || err != nil {
			return end.Exit, err
		}
		rt, err = e.open(id)
	}
	if err != nil {
		return runtime.Exit{}, err
	}
	if rt == nil {
		return unknownExit(), nil
	}
	defer rt.Close() // the container needs no descriptor of ours
	return rt.Wait(ctx)
}

// unknownExit is the end that nobody saw.
func unknownExit() runtime.Exit { return runtime.Exit{Code: 255, At: time.Now().UTC()} }

// open adopts the container's process; nil without an error means that it no
// longer exists and that its end is not recorded by the runtime.
func (e *Engine) open(id string) (*runtime.Container, error) {
	deadline := time.Now().Add(recordTime)
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		rt, err := runtime.Open(e.stateDir(id), e.dir(id))
		if errors.Is(err, runtime.ErrState) || errors.Is(err, runtime.ErrGone) && e.garbled(id) {
			return nil, e.denies(id, time.Time{})
		}
		if !errors.Is(err, runtime.ErrGone) {
			return rt, err
		}
		if !e.mayRecord(id) || time.Now().After(deadline) {
			return nil, e.denies(id, deadline)
		}
		time.Sleep(pause)
	}
}

// recordTime bounds the wait for an exit record. Between a process's end and
// its record lie an fsync and a rename of its monitor; to call the exit unknown
// in that moment would make it so for ever.
const recordTime = 500 * time.Millisecond

// mayRecord tells whether a monitor could still be about to record the exit: the
// container was started in this boot, and nobody has destroyed it.
func (e *Engine) mayRecord(id string) bool {
	for _, path := range []string{e.startedFile(id), e.stateDir(id)} {
		if _, err := os.Lstat(path); err != nil {
			return false
		}
	}
	return true
}

// kill ends everything in the container, if there is something.
func (e *Engine) kill(ctx context.Context, id string) error {
	rt, err := e.open(id)
	if errors.Is(err, ErrDamaged) {
		return e.killGroup(ctx, id)
	}
	if rt == nil || err != nil {
		return err
	}
	defer rt.Close() // the container needs no descriptor of ours
	return e.killSeen(ctx, rt)
}

// killGroup kills by the cgroup, whose path is the container's id, when nothing else
// tells which processes are its.
func (e *Engine) killGroup(ctx context.Context, id string) error {
	group, err := e.group(id)
	if err != nil {
		return err
	}
	return group.Kill(ctx)
}

// killOpen kills nothing for a container that has ended: with its first process
// its pid namespace and so everything in it is gone, and the runtime may no
// longer know which cgroup was its.
func (e *Engine) killOpen(ctx context.Context, rt *runtime.Container) error {
	if rt.State() == runtime.Stopped {
		return nil
	}
	if err := rt.Kill(ctx); err != nil && !errors.Is(err, runtime.ErrNotRunning) {
		return err
	}
	e.step("killed")
	return nil
}

// killSeen is killOpen that waits for the record of the end: should the monitor die
// before it writes one, rt, which holds the process's pidfd, is the last to know the
// exit code. A monitor that does neither is not waited for long.
func (e *Engine) killSeen(ctx context.Context, rt *runtime.Container) error {
	if err := e.killOpen(ctx, rt); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, monitorTime)
	defer cancel()
	if _, err := exitOf(limited, rt); err != nil && ctx.Err() != nil {
		return err
	}
	return nil
}

// monitorTime bounds the wait for a living monitor to record an end.
const monitorTime = 2 * time.Second

// sawEnd is called by whoever sees a container's end: it settles it, and
// removes it where that was asked for and nobody else waits for it. Another
// process may be doing the same; then there is nothing left to do.
func (e *Engine) sawEnd(ctx context.Context, r *record) error {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	l, err := e.lockContainer(ctx, r.ID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Unlock()
	c, err := e.view(r)
	if err != nil || c.State != string(runtime.Stopped) {
		return err // it may have been started again
	}
	if !r.Config.Remove {
		return e.settle(ctx, r)
	}
	if !r.passing() {
		if err := e.settle(ctx, r); err != nil {
			return err
		}
	}
	waited, err := tryLock(filepath.Join(e.dir(r.ID), waitFile), unix.LOCK_EX)
	if errors.Is(err, ErrBusy) {
		return e.settle(ctx, r) // the last waiter removes it
	}
	if err != nil {
		return err
	}
	defer waited.Unlock()
	if !r.passing() {
		return e.delete(ctx, r)
	}
	return e.deleteEnded(ctx, r, c)
}

// deleteEnded is settle and delete for a container that nobody else waits for: its end
// is told, and not written down. Until it is renamed exit.json says how it ended.
func (e *Engine) deleteEnded(ctx context.Context, r *record, c Container) error {
	_, told, err := e.ended(r.ID)
	if err != nil {
		return err
	}
	if err := e.free(ctx, r); err != nil {
		return err
	}
	e.step("freed")
	if !told && !c.Started.IsZero() {
		e.emitEnd(r, runtime.Exit{Code: c.ExitCode, OOM: c.OOM, OOMKills: c.OOMKills, Lost: c.LogLost, Known: c.ExitKnown, At: c.Finished})
	}
	return e.discard(ctx, r)
}

// settle frees what an ended container holds in the kernel and writes down how
// it ended. The container's lock is held. It may be repeated.
func (e *Engine) settle(ctx context.Context, r *record) error {
	if _, ok, err := e.ended(r.ID); ok || err != nil {
		return err
	}
	rt, err := e.open(r.ID)
	if err != nil {
		return err
	}
	exit := unknownExit()
	if rt != nil {
		exit, err = exitOf(ctx, rt)
		if err := errors.Join(err, rt.Close()); err != nil {
			return err
		}
	}
	if last := e.lastEnd(r.ID); last != nil {
		exit = *last
	}
	return e.finish(ctx, r, exit)
}

// lastEnd is how the container ended before a start that was prepared and never made;
// nil: it was made, or there was no end before. A file that does not parse knows none.
func (e *Engine) lastEnd(id string) *runtime.Exit {
	var s starting
	if _, err := loadJSON(e.startedFile(id), &s); err != nil {
		return nil
	}
	return s.Last
}

// finish is settle for a known exit. ended.json comes last: it says that
// nothing is left to be freed.
func (e *Engine) finish(ctx context.Context, r *record, exit runtime.Exit) error {
	started, err := e.startedAt(r.ID)
	if err != nil {
		return err
	}
	if err := e.free(ctx, r); err != nil {
		return err
	}
	e.step("freed")
	if err := saveJSON(filepath.Join(e.dir(r.ID), endedFile), ending{started, exit}); err != nil {
		return err
	}
	e.step("end recorded")
	if !started.IsZero() {
		e.emitEnd(r, exit)
	}
	return e.forget(r.ID)
}

// free gives the address and the cgroups back and removes the runtime's state.
func (e *Engine) free(ctx context.Context, r *record) error {
	if err := e.networks.Detach(ctx, r.ID); err != nil {
		return fmt.Errorf("free network: %w", err)
	}
	if list, err := e.endpoints(r); err != nil {
		return err
	} else if err := e.introduce(ctx, list); err != nil {
		return fmt.Errorf("free network: %w", err)
	}
	e.step("detached")
	if err := runtime.Destroy(e.stateDir(r.ID), e.dir(r.ID), e.cgroup(r.ID)); err != nil {
		return fmt.Errorf("free container: %w", err)
	}
	return nil
}

// forget removes the engine's own files on tmpfs.
func (e *Engine) forget(id string) error {
	if err := os.RemoveAll(e.stepDir(id)); err != nil {
		return err
	}
	for _, path := range []string{e.addressFile(id), e.startedFile(id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
