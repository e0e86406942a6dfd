package sandbox

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// runScript starts a container and waits until it has said "ready".
func runScript(t *testing.T, e *Engine, c ContainerConfig) Container {
	t.Helper()
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container is ready", func() bool { return strings.Contains(logOf(t, e, made.ID), "ready") })
	return made
}

const polite = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"
const deaf = "trap '' TERM; echo ready; while :; do sleep 0.02; done"

func TestStop(t *testing.T) {
	e := newEngine(t)
	p := runScript(t, e, sh(polite))
	if err := e.Stop(t.Context(), p.ID, 0); err != nil {
		t.Fatal(err)
	}
	if c := mustState(t, e, p.ID, "stopped"); c.ExitCode != 5 || !c.ExitKnown || c.Started.IsZero() || c.Finished.IsZero() {
		t.Errorf("polite: %+v", c)
	}
	if err := e.Stop(t.Context(), p.ID, 0); err != nil {
		t.Errorf("stop again: %v", err)
	}
	d := runScript(t, e, sh(deaf))
	began := time.Now()
	if err := e.Stop(t.Context(), d.ID, 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("the kill came after %v", took)
	}
	if c := mustState(t, e, d.ID, "stopped"); c.ExitCode != 137 || c.OOM {
		t.Errorf("deaf: %+v", c)
	}
	signal := sh(strings.ReplaceAll(polite, "TERM", "USR1"))
	signal.StopSignal = "USR1"
	s := runScript(t, e, signal)
	if err := e.Stop(t.Context(), s.Name, 0); err != nil {
		t.Fatal(err)
	}
	if c := mustState(t, e, s.ID, "stopped"); c.ExitCode != 5 {
		t.Errorf("stop signal of its own: %+v", c)
	}
}

func TestKill(t *testing.T) {
	e := newEngine(t)
	c := runScript(t, e, sh("trap 'exit 6' HUP; echo ready; while :; do sleep 0.02; done"))
	if err := e.Kill(t.Context(), c.ID, unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if exit, err := e.Wait(t.Context(), c.ID); err != nil || exit.Code != 6 {
		t.Errorf("%+v, %v", exit, err)
	}
	if err := e.Kill(t.Context(), c.ID, unix.SIGHUP); !errors.Is(err, ErrNotRunning) {
		t.Errorf("kill of a stopped one: %v", err)
	}
	d := runScript(t, e, sh("sleep 1000 & "+deaf))
	if err := e.Kill(t.Context(), d.ID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, d.ID, "stopped")
}

func TestRemove(t *testing.T) {
	e := newEngine(t)
	config := sh(deaf)
	config.Name = "one"
	c := runScript(t, e, config)
	if err := e.Remove(t.Context(), "one", false); !errors.Is(err, ErrRunning) {
		t.Errorf("a running container was removed: %v", err)
	}
	if _, err := e.Create(t.Context(), config, Stdio{}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a name was given twice: %v", err)
	}
	if err := e.Remove(t.Context(), c.ID[:12], true); err != nil {
		t.Fatal(err)
	}
	mustBeGone(t, e, c.ID)
	checkNothingLeft(t, e)
	if err := e.Remove(t.Context(), "one", true); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	again := runScript(t, e, config)
	if again.ID == c.ID {
		t.Error("the same id twice")
	}
}

// checkNothingLeft wants no container and no trace of one.
func checkNothingLeft(t *testing.T, e *Engine) {
	t.Helper()
	for _, dir := range []string{e.containersDir(), e.namesDir(), e.idsDir(), e.run + "/c"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range entries {
			t.Errorf("left: %s/%s", dir, d.Name())
		}
	}
	checkNoCgroups(t, e)
}

func TestRemoveOfACreatedContainer(t *testing.T) {
	e := newEngine(t)
	c, err := e.Create(t.Context(), sh("echo never"), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	mustState(t, e, c.ID, "created")
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, c.ID, "created") // its creator lives: Recover leaves it alone
	if err := e.Remove(t.Context(), c.ID, false); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, e)
}

func TestStartAgain(t *testing.T) {
	e := newEngine(t)
	made, err := e.Run(t.Context(), sh("cat /kept 2>/dev/null; echo kept >> /kept; echo ready; exec sleep 1000"), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "first run", func() bool { return strings.Contains(logOf(t, e, made.ID), "ready") })
	if err := e.Start(t.Context(), made.ID); !errors.Is(err, ErrRunning) {
		t.Errorf("a running container was started: %v", err)
	}
	if err := e.Stop(t.Context(), made.ID, -1); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, made.ID, "running")
	eventually(t, "second run sees the first one's file", func() bool { return strings.Contains(logOf(t, e, made.ID), "kept\n") })
}

func TestWaitersAllGetTheExit(t *testing.T) {
	e := newEngine(t)
	config := sh(polite)
	config.Remove = true
	c := runScript(t, e, config)
	var waiters sync.WaitGroup
	for range 5 {
		// Engines of their own, as other processes would have.
		other, err := Open(Options{Root: e.root, Run: e.run})
		if err != nil {
			t.Fatal(err)
		}
		ready := make(chan struct{})
		other.step = func(name string) {
			if name == "waiting" {
				close(ready)
			}
		}
		waiters.Go(func() {
			if exit, err := other.Wait(context.WithoutCancel(t.Context()), c.ID); err != nil || exit.Code != 5 {
				t.Errorf("wait: %+v, %v", exit, err)
			}
		})
		<-ready
	}
	if err := e.Kill(t.Context(), c.ID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waiters.Wait()
	mustBeGone(t, e, c.ID)
	checkNothingLeft(t, e)
}

func TestExec(t *testing.T) {
	e := newEngine(t)
	config := sh(polite)
	config.Env = []string{"OWN=1"}
	c := runScript(t, e, config)
	run := func(o ExecOptions) (int, string, error) {
		var out bytes.Buffer
		w, done, err := pipeTo(&out)
		if err != nil {
			t.Fatal(err)
		}
		o.Stdout, o.Stderr = w, w
		code, err := e.Exec(t.Context(), c.ID, o)
		w.Close()
		<-done
		return code, out.String(), err
	}
	for _, test := range []struct {
		options ExecOptions
		code    int
		out     string
	}{
		{ExecOptions{Args: []string{"sh", "-c", "echo $OWN $FROM $NEW; exit 4"}, Env: []string{"NEW=2"}}, 4, "1 image 2\n"},
		{ExecOptions{Args: []string{"sh", "-c", "id -u; id -G; pwd; echo $HOME"}, User: "plain", Workdir: "/tmp"}, 0, "1000\n1000 2000\n/tmp\n/srv\n"},
		{ExecOptions{Args: []string{"sh", "-c", "kill -9 $$"}}, 137, ""},
	} {
		if code, out, err := run(test.options); code != test.code || out != test.out || err != nil {
			t.Errorf("%v: %d, %q, %v; want %d, %q", test.options.Args, code, out, err, test.code, test.out)
		}
	}
	if code, _, err := run(ExecOptions{Args: []string{"missing"}}); code != 127 || !errors.As(err, new(*runtime.StartError)) {
		t.Errorf("missing program: %d, %v", code, err)
	}
	if _, _, err := run(ExecOptions{Args: []string{"true"}, User: "4294967296"}); err == nil {
		t.Error("a user id that wraps around to 0 was taken")
	}
	if err := e.Stop(t.Context(), c.ID, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(ExecOptions{Args: []string{"true"}}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("exec in a stopped container: %v", err)
	}
}
