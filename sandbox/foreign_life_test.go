package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// TestForeignStartsAndEnds is about exit codes and errors.
func TestForeignStartsAndEnds(t *testing.T) {
	e := foreignEngine(t)
	if exit, out := runToEnd(t, e, withRunc(t, "id -u; echo err >&2; exit 7")); exit.Code != 7 || !exit.Known || out != "0\nerr\n" && out != "err\n0\n" {
		t.Errorf("%+v, %q", exit, out)
	}
	// The first process outlives the kill: with its end runc removes the cgroup, and the
	// count with it, should the monitor not have come to read it.
	c := withRunc(t, "sh -c 'a=aaaaaaaaaaaaaaaa; while :; do a=$a$a; done'; code=$?; sleep 1; exit $code")
	c.Memory = 16 << 20
	if exit, _ := runToEnd(t, e, c); exit.Code != 137 || exit.OOMKills < 1 {
		t.Errorf("out of memory: %+v", exit)
	}
	for args, want := range map[string]int{"nope": 127, "/etc/notes": 126} {
		c := withRunc(t, "")
		c.Args, c.Name = []string{args}, "refused"
		_, err := e.Run(t.Context(), c, Stdio{})
		refused := new(runtime.StartError)
		if !errors.As(err, &refused) || refused.Code() != want || !strings.Contains(err.Error(), args) {
			t.Errorf("%s: %v", args, err)
		}
		mustBeGone(t, e, "refused")
	}
	term := runReady(t, e, withRunc(t, `trap 'exit 5' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done`))
	if err := e.Kill(t.Context(), term.ID, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "USR1 arrives", func() bool { return strings.Contains(logOf(t, e, term.ID), "usr1\n") })
	if err := e.Kill(t.Context(), term.ID, unix.SIGSTOP); err != nil { // that a runtime cannot pass on
		t.Fatal(err)
	}
	eventually(t, "it is stopped", func() bool {
		list, err := e.Top(t.Context(), term.ID)
		return err == nil && len(list) > 0 && list[0].State == "T"
	})
	if err := e.Kill(t.Context(), term.ID, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(t.Context(), term.ID, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := mustState(t, e, term.ID, "stopped"); got.ExitCode != 5 {
		t.Errorf("stopped with %d", got.ExitCode)
	}
	deaf := runReady(t, e, withRunc(t, `trap '' TERM; echo ready; sleep 1000 & sleep 1000`))
	if err := e.Stop(t.Context(), deaf.ID, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := mustState(t, e, deaf.ID, "stopped"); got.ExitCode != 137 {
		t.Errorf("killed with %d", got.ExitCode)
	}
	if err := e.Start(t.Context(), deaf.ID); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, deaf.ID, "running")
	if err := e.Remove(t.Context(), deaf.ID, true); err != nil {
		t.Fatal(err)
	}
	mustLeaveNothing(t, e, deaf.ID)
}

// TestForeignRuntimeGoes removes the runtime while its containers are stopped and running.
func TestForeignRuntimeGoes(t *testing.T) {
	e := foreignEngine(t)
	path := filepath.Join(t.TempDir(), "runc")
	if err := copyFile(path, needRunc(t)); err != nil {
		t.Fatal(err)
	}
	c := withRunc(t, "echo ready; sleep 1000")
	c.Runtime, c.Name = path, "gone"
	made := runReady(t, e, c)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if code, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"true"}}); code != 127 || err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("exec: %d, %v", code, err)
	}
	if err := e.Stop(t.Context(), made.ID, -1); err != nil {
		t.Fatal(err)
	}
	err := e.Start(t.Context(), made.ID)
	refused := new(runtime.StartError)
	if !errors.As(err, &refused) || refused.Code() != 127 || !strings.Contains(err.Error(), path) {
		t.Errorf("start: %v", err)
	}
	if got := mustState(t, e, made.ID, "stopped"); got.ExitCode != 137 {
		t.Errorf("the earlier end is forgotten: %+v", got)
	}
	if err := e.Remove(t.Context(), made.ID, false); err != nil {
		t.Fatal(err)
	}
	mustLeaveNothing(t, e, made.ID)
}

// TestForeignKilled kills the runtime's process, the monitor and both: nothing of the
// container is left once it is settled.
func TestForeignKilled(t *testing.T) {
	for _, test := range []struct {
		name             string
		monitor, runtime bool
	}{{"runtime", false, true}, {"monitor", true, false}, {"both", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			e := foreignEngine(t)
			made := runReady(t, e, withRunc(t, "echo ready; sleep 1000"))
			pid := runtimePid(t, e, made.ID)
			p, err := readProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			if test.monitor {
				mustKill(t, p.Parent)
			}
			if test.runtime {
				mustKill(t, pid)
			}
			if !test.runtime {
				again := openAgain(t, e)
				mustState(t, again, made.ID, "running")
				if code, err := again.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"true"}}); code != 0 || err != nil {
					t.Errorf("exec: %d, %v", code, err)
				}
				if err := again.Stop(t.Context(), made.ID, -1); err != nil {
					t.Fatal(err)
				}
			}
			again := openAgain(t, e)
			eventually(t, "it is stopped", func() bool { return get(t, again, made.ID).State == "stopped" })
			if err := again.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustLeaveNothing(t, e, made.ID)
			if _, err := os.Stat("/proc/" + strconv.Itoa(made.Pid)); err == nil {
				eventually(t, "the program is gone", func() bool { return unix.Kill(made.Pid, 0) != nil })
			}
		})
	}
}

// openAgain is another process's view of the same root.
func openAgain(t *testing.T, e *Engine) *Engine {
	t.Helper()
	again, err := Open(Options{Root: e.root, Run: e.run})
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func mustKill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		err = errors.Join(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0), unix.Close(fd))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// mustLeaveNothing looks for what a container of another runtime has in the kernel and
// on tmpfs.
func mustLeaveNothing(t *testing.T, e *Engine, id string) {
	t.Helper()
	group, err := e.group(id)
	if err != nil {
		t.Fatal(err)
	}
	if pids, err := group.Pids(); err == nil && len(pids) > 0 {
		t.Errorf("processes are left: %v", pids)
	}
	if left, _ := filepath.Glob(e.stateDir(id) + "*"); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), id) {
		t.Errorf("mounts are left, or %v", err)
	}
}

// TestForeignRestarts has the monitor's callback start it again, and leave alone what
// its runtime refuses.
func TestForeignRestarts(t *testing.T) {
	e := livingEngine(t)
	c := withRunc(t, "echo run; exit 3")
	c.Restart, c.Name = Restart{Policy: RestartOnFailure, Max: 2}, "again"
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it ran three times", func() bool {
		c, err := e.Get(t.Context(), made.ID)
		return err == nil && c.Restarts == 2 && c.State == "stopped" && strings.Count(logOf(t, e, made.ID), "run\n") == 3
	})
	bad := withRunc(t, "")
	bad.Args, bad.Restart, bad.Name = []string{"nope"}, Restart{Policy: RestartAlways}, "bad"
	r, err := e.Define(t.Context(), bad)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context(), r.ID); err == nil {
		t.Fatal("it starts")
	}
	settled := time.Now().Add(2 * firstDelay)
	eventually(t, "its first delay is over", func() bool { return time.Now().After(settled) })
	if got := mustState(t, e, r.ID, "stopped"); got.ExitCode != 127 || got.Restarts != 0 {
		t.Errorf("%+v", got)
	}
}

// TestForeignTerminal types into a terminal that the runtime copies from its own.
func TestForeignTerminal(t *testing.T) {
	e := foreignEngine(t)
	c := withRunc(t, "test -t 0 && test -t 1 && test -t 2 && echo terminal; read word; echo got $word; exit 6")
	c.Terminal = true
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has a terminal", func() bool { return strings.Contains(logOf(t, e, made.ID), "terminal") })
	a, err := e.Attach(t.Context(), made.ID, runtime.AttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if _, err := a.Write([]byte("this\n")); err != nil {
		t.Fatal(err)
	}
	if exit, err := e.Wait(t.Context(), made.ID); err != nil || exit.Code != 6 || !strings.Contains(logOf(t, e, made.ID), "got this") {
		t.Errorf("%+v, %v: %q", exit, err, logOf(t, e, made.ID))
	}
}
