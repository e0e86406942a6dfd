package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestForeignKilledAgent kills the engine's process at its steps of a run and of a removal.
func TestForeignKilledAgent(t *testing.T) {
	e := foreignEngine(t)
	config := withRunc(t, "echo ready; exec sleep 1000")
	config.Network, config.Name = "bridge", "crashed"
	for _, step := range []string{"begun", "intended", "cloned", "created", "starting"} {
		cmd, _ := child(t, crash{Root: e.root, Run: e.run, Do: "run", At: step, Config: config})
		mustDie(t, cmd)
		eventually(t, step+": recovery", func() bool {
			if err := e.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			c, err := e.Get(t.Context(), "crashed")
			if err == nil && c.State == "running" {
				t.Errorf("%s: it runs", step)
			}
			return errors.Is(err, ErrNotFound) || err == nil && step == "starting" && c.State == "stopped"
		})
	}
	if err := e.Remove(t.Context(), "crashed", true); err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	checkNothingLeft(t, e)
	for _, step := range []string{"killed", "detached", "forgotten", "renamed"} {
		cmd, _ := child(t, crash{Root: e.root, Run: e.run, Do: "run", At: "started", Config: config})
		mustDie(t, cmd)
		if err := e.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		made := mustState(t, e, "crashed", "running")
		cmd, _ = child(t, crash{Root: e.root, Run: e.run, Do: "remove", At: step, Ref: "crashed"})
		mustDie(t, cmd)
		if err := errors.Join(e.Recover(t.Context()), e.Remove(t.Context(), made.ID, true)); err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: %v", step, err)
		}
		mustLeaveNothing(t, e, made.ID)
		checkNothingLeft(t, e)
	}
}

// scripted is a runtime that does something before and instead of runc, and writes down
// what it was asked for.
func scripted(t *testing.T, run string) (path, asked string) {
	t.Helper()
	dir := t.TempDir()
	path, asked = filepath.Join(dir, "scripted"), filepath.Join(dir, "asked")
	text := "#!/bin/sh\necho $7 >> " + asked + "\nif [ $7 = run ]; then\n" + run + "\nfi\nexec " + needRunc(t) + " \"$@\"\n"
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path, asked
}

// TestForeignThatLeavesItsContainer dies with a container made: its state and its process
// are left behind.
func TestForeignThatLeavesItsContainer(t *testing.T) {
	e := foreignEngine(t)
	c := withRunc(t, "true")
	var asked string
	c.Runtime, asked = scripted(t, `for a; do shift; [ "$a" = run ] && a=create; set -- "$@" "$a"; done
`+c.Runtime+` "$@"; kill -9 $$`)
	made, err := e.Run(t.Context(), c, Stdio{})
	if err == nil { // its pid file came, and then the end
		exit, err := e.Wait(t.Context(), made.ID)
		if exit.Code != 137 || err != nil {
			t.Errorf("%+v, %v", exit, err)
		}
		mustLeaveNothing(t, e, made.ID)
		err = e.Remove(t.Context(), made.ID, true)
		if err != nil {
			t.Error(err)
		}
	}
	checkNothingLeft(t, e)
	if verbs, err := os.ReadFile(asked); err != nil || !strings.HasSuffix(string(verbs), "delete\n") {
		t.Errorf("it was asked for %q (%v), want a delete at the end", verbs, err)
	}
}

// TestForeignKilledWhileStarting kills the runtime, and its monitor, before it has made
// the container.
func TestForeignKilledWhileStarting(t *testing.T) {
	e := foreignEngine(t)
	for _, both := range []bool{false, true} {
		c := withRunc(t, "true")
		begun := filepath.Join(t.TempDir(), "begun")
		c.Runtime, _ = scripted(t, "echo $$ $PPID > "+begun+".new; mv "+begun+".new "+begun+"; sleep 1000 > /dev/null 2>&1")
		failed := make(chan error, 1)
		go func() {
			_, err := e.Run(t.Context(), c, Stdio{})
			failed <- err
		}()
		eventually(t, "the runtime runs", func() bool { _, err := os.Stat(begun); return err == nil })
		text, err := os.ReadFile(begun)
		pids := strings.Fields(string(text))
		if err != nil || len(pids) != 2 {
			t.Fatalf("pids %q, %v", text, err)
		}
		runtime, err1 := strconv.Atoi(pids[0])
		monitor, err2 := strconv.Atoi(pids[1])
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if both {
			mustKill(t, monitor)
		}
		mustKill(t, runtime)
		if err := <-failed; err == nil || !strings.Contains(err.Error(), "ended without starting the program") {
			t.Errorf("run: %v", err)
		}
		if err := e.Recover(t.Context()); err != nil {
			t.Error(err)
		}
		checkNothingLeft(t, e)
	}
}

// A stop while the runtime is at work ends the runtime, and is not lost.
func TestForeignStoppedWhileStarting(t *testing.T) {
	e := foreignEngine(t)
	c := withRunc(t, "true")
	c.Name = "slow"
	begun := filepath.Join(t.TempDir(), "begun")
	c.Runtime, _ = scripted(t, "touch "+begun+"; sleep 1000 > /dev/null 2>&1")
	failed := make(chan error, 1)
	go func() {
		_, err := e.Run(t.Context(), c, Stdio{})
		failed <- err
	}()
	eventually(t, "the runtime runs", func() bool { _, err := os.Stat(begun); return err == nil })
	if err := e.Kill(t.Context(), "slow", unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("it has started")
	}
	checkNothingLeft(t, e)
}
