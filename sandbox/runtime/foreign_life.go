package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// foreignTime bounds a short command of another runtime.
	foreignTime = 10 * time.Second
	// foreignPatience is how long a runtime may take to notice that its container is gone.
	foreignPatience = 2 * time.Second
)

// Runtime is the path of the OCI runtime that runs the container, or empty for ours.
func (c *Container) Runtime() string {
	if c.rec.Foreign == nil {
		return ""
	}
	return c.rec.Foreign.Path
}

// untilProgram returns when the runtime has started the program, with the runtime's error
// when it gave up before.
func (c *Container) untilProgram(ctx context.Context) error {
	f := c.rec.Foreign
	over, err := awaitFile(ctx, filepath.Join(c.stateDir, fileProgram), c.pidfd)
	if err != nil {
		return err
	}
	if over {
		return refusalOf(f.Path, filepath.Join(c.stateDir, fileRefusal), f.Program)
	}
	return c.checkProgram(ctx)
}

// checkProgram refuses a program that its runtime has put into another cgroup than it was
// told: limits, pause and kill would not reach it.
func (c *Container) checkProgram(ctx context.Context) error {
	file := filepath.Join(c.stateDir, fileProgram)
	pid, err := readPid(file)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(fd)
	if _, err := pidIn(c.group, file); err == nil || ended(fd) || ended(c.pidfd) {
		return nil
	}
	f := c.rec.Foreign
	return errors.Join(fmt.Errorf("%s has not put the program into cgroup %s", f.Path, c.rec.Cgroup),
		f.command(ctx, c.stateDir, "kill", c.rec.ID, "KILL"), c.killForeign(ctx))
}

// hasProgram says that the runtime has started the program.
func (c *Container) hasProgram() bool {
	_, err := os.Stat(filepath.Join(c.stateDir, fileProgram))
	return err == nil
}

// awaitFile waits for a file that a process makes; over says that it has ended without.
func awaitFile(ctx context.Context, path string, pidfd int) (over bool, err error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 10*time.Millisecond) {
		over := ended(pidfd) // before the look: it may end in between
		if st, err := os.Stat(path); err == nil && st.Size() > 0 {
			return false, nil
		}
		if over {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// refusal is an error of another runtime in its own words.
type refusal struct {
	path, said string
	errno      error
}

func (r *refusal) Error() string { return r.path + ": " + r.said }
func (r *refusal) Unwrap() error { return r.errno }

// refusalOf reads why a runtime did not start a program. The words decide, as there is
// nothing else: an error that names the program and says that it is not there, or may
// not be executed, is the program's (Docker does the same); any other is the runtime's.
func refusalOf(path, log, program string) error {
	r := &refusal{path: path, said: lastError(log), errno: errors.New("no errno")}
	if r.said == "" {
		r.said = "ended without starting the program"
	}
	words := strings.ToLower(r.said)
	has := func(list ...string) bool {
		for _, s := range list {
			if strings.Contains(words, s) {
				return true
			}
		}
		return false
	}
	switch {
	case !strings.Contains(r.said, program):
	case has("executable file not found", "no such file or directory"):
		r.errno = unix.ENOENT
	case has("permission denied", "is a directory", "exec format error"):
		r.errno = unix.EACCES
	}
	at := "run"
	if errors.As(r.errno, new(unix.Errno)) {
		at = stepExec
	}
	return &StartError{Step: at, Err: r}
}

// lastError is the last error in a log of lines {"level", "msg"}, as runc writes them,
// or the last line of another kind of log.
func lastError(log string) (text string) {
	data, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Msg string }
		switch err := json.Unmarshal(line, &entry); {
		case err != nil:
			text = strings.TrimSpace(string(line))
		case entry.Level == "error" || entry.Level == "fatal" || entry.Level == "panic":
			text = entry.Msg
		}
	}
	return text
}

// command runs a short command of the runtime.
func (f *foreignRecord) command(ctx context.Context, stateDir, verb string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, foreignTime)
	defer cancel()
	argv := foreignArgs(f.Path, stateDir, os.DevNull, verb, args...)
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env, c.Dir, c.WaitDelay = foreignEnv(), "/", time.Second
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", f.Path, verb, err, bytes.TrimSpace(out))
	}
	return nil
}

// signalForeign asks the runtime to signal the program. While it has not started it, only
// the runtime's process is there to be signalled, and ends.
func (c *Container) signalForeign(sig unix.Signal) error {
	if ended(c.pidfd) {
		return ErrNotRunning
	}
	if !c.hasProgram() {
		if sig == unix.SIGSTOP {
			return errors.New("the container is still being started")
		}
		return unix.PidfdSendSignal(c.pidfd, sig, nil, 0)
	}
	err := c.rec.Foreign.command(context.Background(), c.stateDir, "kill", c.rec.ID, strconv.Itoa(int(sig)))
	if err != nil && ended(c.pidfd) {
		return ErrNotRunning
	}
	return err
}

// killForeign kills the container, upon which its runtime ends by itself and says with
// which code; one that does not, or that had not made the container yet, is killed too.
func (c *Container) killForeign(ctx context.Context) error {
	for end := time.Now().Add(foreignPatience); c.hasProgram() && time.Now().Before(end); {
		if err := c.group.Kill(ctx); err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		err := c.waitProcess(limited)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	if err := c.waitProcess(ctx); err != nil {
		return err
	}
	return c.group.Kill(ctx)
}

// deleteForeign lets the runtime remove what it keeps of a container whose processes
// are gone. That it may fail, or be gone itself, changes nothing: its directory is
// removed afterwards. A state of an earlier boot tells it nothing true.
func deleteForeign(ctx context.Context, stateDir string) {
	rec, err := loadRecord(stateDir)
	if err != nil || rec.Foreign == nil {
		return
	}
	boot, err := bootID()
	left, readErr := os.ReadDir(filepath.Join(stateDir, dirRuntime))
	if err != nil || boot != rec.BootID || readErr != nil || len(left) == 0 {
		return
	}
	_ = rec.Foreign.command(ctx, stateDir, "delete", "--force", rec.ID)
}
