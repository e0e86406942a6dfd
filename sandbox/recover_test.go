package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"naru/sandbox/build"
)

// crash is what a child of the test does: something with an engine, until it
// kills itself at the named step.
type crash struct {
	Root, Run string
	Do        string // run, remove or step
	At        string // the step to die after; empty: none
	Ref       string
	Config    ContainerConfig
	Step      build.Step
}

const crashVariable = "NARU_TEST_CRASH"

// crashIfAsked makes this process the child of a test.
func crashIfAsked() {
	text := os.Getenv(crashVariable)
	if text == "" {
		return
	}
	if err := doCrash(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func doCrash(text string) error {
	var c crash
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	e, err := Open(Options{Root: c.Root, Run: c.Run})
	if err != nil {
		return err
	}
	e.step = func(name string) {
		if name == c.At {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way to this thread's process
		}
	}
	ctx := context.Background()
	switch c.Do {
	case "run":
		made, err := e.Run(ctx, c.Config, Stdio{})
		fmt.Print(made.ID)
		return err
	case "remove":
		return e.Remove(ctx, c.Ref, true)
	case "step":
		c.Step.Out = os.Stdout
		_, err := stepRunner{e}.Run(ctx, c.Step)
		return err
	}
	return errors.New("unknown " + c.Do)
}

// child starts a crash and returns without waiting for its end.
func child(t *testing.T, c crash) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashVariable+"="+string(text))
	out := new(bytes.Buffer)
	cmd.Stderr = os.Stderr
	cmd.Stdout = out
	// A container of the child inherits nothing of ours that it could hold open.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// mustDie waits for a child that kills itself.
func mustDie(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v, want a kill", err)
	}
}

func TestKilledBeforeStartLeavesNothing(t *testing.T) {
	e := newEngine(t)
	for _, step := range []string{"begun", "claimed", "intended", "cloned", "attached", "created"} {
		t.Run(step, func(t *testing.T) {
			config := sh("exec sleep 1000")
			config.Name, config.Network = "crashed", "bridge"
			cmd, _ := child(t, crash{Root: e.root, Run: e.run, Do: "run", At: step, Config: config})
			mustDie(t, cmd)
			if c, err := e.Get(t.Context(), "crashed"); err == nil && c.State == "running" {
				t.Error("reported as running")
			}
			eventually(t, "recovery", func() bool {
				// The monitor may need a moment to see that its creator is gone.
				if err := e.Recover(t.Context()); err != nil {
					t.Fatal(err)
				}
				_, err := e.Get(t.Context(), "crashed")
				return errors.Is(err, ErrNotFound)
			})
			checkNothingLeft(t, e)
			if n, err := e.Networks().Inspect("bridge"); err == nil && len(n.Members) > 0 {
				t.Errorf("addresses are left: %v", n.Members)
			}
		})
	}
}

func TestKilledAroundStart(t *testing.T) {
	e := newEngine(t)
	config := sh("echo ready; exec sleep 1000")
	config.Network = "bridge"
	config.Name = "starting"
	cmd, _ := child(t, crash{Root: e.root, Run: e.run, Do: "run", At: "starting", Config: config})
	mustDie(t, cmd)
	eventually(t, "it ends with its creator", func() bool {
		if err := e.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, err := e.Get(t.Context(), "starting")
		return errors.Is(err, ErrNotFound) || err == nil && c.State == "stopped"
	})
	config.Name = "started"
	cmd, _ = child(t, crash{Root: e.root, Run: e.run, Do: "run", At: "started", Config: config})
	mustDie(t, cmd)
	for range 2 {
		if err := e.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := mustState(t, e, "started", "running")
		if c.Pid == 0 || !c.Address.IsValid() {
			t.Errorf("adopted without pid or address: %+v", c)
		}
	}
	eventually(t, "it runs", func() bool { return strings.Contains(logOf(t, e, "started"), "ready") })
}

func TestContainersOutliveTheirCreator(t *testing.T) {
	e := newEngine(t)
	config := sh(polite)
	cmd, out := child(t, crash{Root: e.root, Run: e.run, Do: "run", Config: config})
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	id := out.String()
	eventually(t, "it is ready", func() bool { return strings.Contains(logOf(t, e, id), "ready") })
	mustState(t, e, id, "running")
	if err := e.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	if c := mustState(t, e, id, "stopped"); c.ExitCode != 5 {
		t.Errorf("%+v", c)
	}
}

func TestKilledWhileRemoving(t *testing.T) {
	e := newEngine(t)
	config := sh(deaf)
	config.Name = "victim"
	runScript(t, e, config)
	cmd, _ := child(t, crash{Root: e.root, Run: e.run, Do: "remove", At: "renamed", Ref: "victim"})
	mustDie(t, cmd)
	// Without Recover: the name must be free again at once.
	made, err := e.Create(t.Context(), config, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(t.Context(), made.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, e)
}

func TestRecoverSettlesWhatEnded(t *testing.T) {
	e := newEngine(t)
	kept, err := e.Run(t.Context(), sh("exit 4"), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	config := sh("exit 0")
	config.Remove = true
	gone, err := e.Run(t.Context(), config, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "both have ended", func() bool {
		list, err := e.List(t.Context(), false, nil)
		return err == nil && len(list) == 0
	})
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := mustState(t, e, kept.ID, "stopped"); c.ExitCode != 4 || !c.ExitKnown {
		t.Errorf("%+v", c)
	}
	mustBeGone(t, e, gone.ID)
	if left, err := os.ReadDir(filepath.Join(e.run, "c")); err != nil || len(left) > 0 {
		t.Errorf("run directory still has %v (%v)", left, err)
	}
}

// TestReboot loses what a boot loses: the run directory and the boot id.
func TestReboot(t *testing.T) {
	e := newEngine(t)
	c := runScript(t, e, sh(deaf))
	ended, err := e.Run(t.Context(), sh("exit 3"), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended", func() bool { got, err := e.Get(t.Context(), ended.ID); return err == nil && got.State == "stopped" })
	// The kernel forgets its processes: what dies now leaves no exit behind.
	if err := e.kill(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{c.ID, ended.ID} {
		r, err := e.load(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := e.free(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(e.dir(c.ID), "exit.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(e.run, "c")); err != nil {
		t.Fatal(err)
	}
	after, err := Open(Options{Root: e.root, Run: e.run})
	if err != nil {
		t.Fatal(err)
	}
	after.boot = "another boot"
	if err := after.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := mustState(t, after, c.ID, "stopped"); got.ExitKnown {
		t.Errorf("an end that nobody saw is told as known: %+v", got)
	}
	if got := mustState(t, after, ended.ID, "stopped"); !got.ExitKnown || got.ExitCode != 3 {
		t.Errorf("a known end was lost: %+v", got)
	}
	if err := after.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	mustState(t, after, c.ID, "running")
}

func TestPowerCutWhileCreating(t *testing.T) {
	e := newEngine(t)
	for _, content := range []string{"", "{\"id\": \"x", "\x00\x00\x00\x00"} {
		config := sh("true")
		config.Name = "cut"
		c, err := e.Create(t.Context(), config, Stdio{})
		if err != nil {
			t.Fatal(err)
		}
		p := e.takePending(c.ID)
		if err := errors.Join(e.kill(t.Context(), c.ID), p.rt.Close()); err != nil {
			t.Fatal(err)
		}
		p.lock.Unlock()
		if err := os.WriteFile(filepath.Join(e.dir(c.ID), configFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := e.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkNothingLeft(t, e)
	}
}

func testStep(t *testing.T, e *Engine, script string) (build.Step, *bytes.Buffer) {
	t.Helper()
	img, err := e.Images().Get("busybox")
	if err != nil {
		t.Fatal(err)
	}
	lower, err := e.Images().Lower(img)
	if err != nil {
		t.Fatal(err)
	}
	layer := t.TempDir()
	s := build.Step{Lower: lower, Upper: filepath.Join(layer, "upper"), Work: filepath.Join(layer, "work"), Network: "none"}
	for _, d := range []string{s.Upper, s.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := new(bytes.Buffer)
	s.Args, s.Env, s.Out = []string{"sh", "-c", script}, []string{"PATH=/bin"}, out
	return s, out
}

func TestBuildSteps(t *testing.T) {
	e := newEngine(t)
	s, out := testStep(t, e, "echo working; echo made > /made; id -u; exit 3")
	code, err := stepRunner{e}.Run(t.Context(), s)
	if err != nil || code.Code != 3 || code.Reason != build.ReasonExit || !strings.HasSuffix(out.String(), "working\n0\n") { // before it, what isolation is missing here
		t.Errorf("%+v, %v, %q", code, err, out)
	}
	if data, err := os.ReadFile(filepath.Join(s.Upper, "made")); err != nil || string(data) != "made\n" {
		t.Errorf("the layer has %q, %v", data, err)
	}
	checkNothingLeft(t, e)
	s, _ = testStep(t, e, "exec sleep 1000")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := (stepRunner{e}).Run(ctx, s); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cancelled step: %v", err)
	}
	checkNothingLeft(t, e)
	s, _ = testStep(t, e, "true")
	s.Args = []string{"missing"}
	if code, err := (stepRunner{e}).Run(t.Context(), s); code.Code != 127 || err != nil {
		t.Errorf("a missing program: %+v, %v", code, err)
	}
}

func TestBuildStepOfADeadBuilderIsEnded(t *testing.T) {
	e := newEngine(t)
	s, _ := testStep(t, e, "touch /begun; exec sleep 1000")
	s.Out = nil
	cmd, _ := child(t, crash{Root: e.root, Run: e.run, Do: "step", Step: s})
	eventually(t, "the step runs", func() bool { _, err := os.Stat(filepath.Join(s.Upper, "begun")); return err == nil })
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ids, err := e.ids(); err != nil || len(ids) != 1 {
		t.Fatalf("Recover touched the step of a living builder: %v, %v", ids, err)
	}
	if list, err := e.List(t.Context(), true, nil); err != nil || len(list) != 0 {
		t.Errorf("a step is listed as a container: %v, %v", list, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	mustDie(t, cmd)
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkNothingLeft(t, e)
}
