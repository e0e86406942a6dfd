package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// damages are all the ways in which a test spoils a file: cut off at every
// byte, every byte changed, and foreign content. Every one is tried where it costs
// little; step leaves most out where the engine has to wait to be sure.
func damages(data []byte, step int) [][]byte {
	list := [][]byte{{}, []byte("null"), []byte("[]"), []byte("{}"), []byte(`{"id":5}`), []byte(`"x"`), make([]byte, len(data))}
	for i := 0; i < len(data); i += step {
		flipped := slices.Clone(data)
		flipped[i] ^= 0x15
		list = append(list, slices.Clone(data[:i]), flipped)
	}
	return list
}

// TestDamagedFiles spoils every file of a running container: whatever stands there,
// looking and recovering fail for nobody, and the container is not killed.
func TestDamagedFiles(t *testing.T) {
	e := newEngine(t)
	c := sh("sleep 600")
	bystander, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	pid, err := unix.PidfdOpen(made.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pid)
	for _, file := range []struct {
		path string
		step int
	}{
		{filepath.Join(e.dir(made.ID), configFile), 23},
		{filepath.Join(e.stateDir(made.ID), "state.json"), 97},
		{e.startedFile(made.ID), 1},
	} {
		whole, err := os.ReadFile(file.path)
		if err != nil {
			t.Fatal(err)
		}
		for i, data := range damages(whole, file.step) {
			if err := os.WriteFile(file.path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			checkDamaged(t, e, made, string(data))
			if i%40 == 0 {
				if err := e.Recover(t.Context()); err != nil && !cutOff(data) {
					t.Fatalf("%s with %q: recover: %v", file.path, data, err)
				}
			}
			if err := unix.PidfdSendSignal(pid, 0, nil, 0); err != nil {
				t.Fatalf("%s with %q: the container was killed", file.path, data)
			}
		}
		if err := os.WriteFile(file.path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		mustState(t, e, made.ID, "running")
	}
	mustState(t, e, bystander.ID, "running")
}

func checkDamaged(t *testing.T, e *Engine, made Container, data string) {
	t.Helper()
	got, err := e.Get(t.Context(), made.Name)
	if err != nil {
		t.Fatalf("with %q: %v", data, err)
	}
	if got.State != "running" && got.State != StateDead {
		t.Fatalf("with %q it is %s", data, got.State)
	}
	list, err := e.List(t.Context(), true, nil)
	if err != nil || len(list) != 2 {
		t.Fatalf("with %q: %d containers, %v", data, len(list), err)
	}
}

// TestDamagedEnds spoils the files of an ended container.
func TestDamagedEnds(t *testing.T) {
	e := newEngine(t)
	made, err := e.Run(t.Context(), sh("exit 3"), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Wait(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{endedFile, "exit.json"} {
		path := filepath.Join(e.dir(made.ID), name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, data := range damages(whole, 1) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if c, err := e.Get(t.Context(), made.ID); err != nil || c.State != "stopped" {
				t.Fatalf("%s with %q: %s, %v", name, data, c.State, err)
			}
			if i%40 == 0 {
				if err := e.Recover(t.Context()); err != nil {
					t.Fatalf("%s with %q: recover: %v", name, data, err)
				}
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c := mustState(t, e, made.ID, "stopped"); c.ExitCode != 3 {
		t.Errorf("exit code %d", c.ExitCode)
	}
	if err := os.WriteFile(filepath.Join(e.dir(made.ID), endedFile), []byte("}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context(), made.ID); err != nil {
		t.Errorf("start with a damaged end: %v", err)
	}
}

// TestDamagedContainersCanBeRemoved removes running containers of which a file is
// spoiled.
func TestDamagedContainersCanBeRemoved(t *testing.T) {
	e := newEngine(t)
	files := map[string]func(Container) string{
		"config.json":  func(c Container) string { return filepath.Join(e.dir(c.ID), configFile) },
		"state.json":   func(c Container) string { return filepath.Join(e.stateDir(c.ID), "state.json") },
		"started.json": func(c Container) string { return e.startedFile(c.ID) },
	}
	for name, path := range files {
		for _, data := range []string{"", "garbage", `{"id":"x","version":7}`} {
			made, err := e.Run(t.Context(), sh("sleep 600"), Stdio{})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path(made), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := e.Remove(t.Context(), made.Name, false); err == nil {
				t.Errorf("%s with %q: removed while it runs, without force", name, data)
			}
			if err := e.Remove(t.Context(), made.Name, true); err != nil {
				t.Errorf("%s with %q: %v", name, data, err)
			}
			mustBeGone(t, e, made.ID)
			if err := unix.Kill(made.Pid, 0); !errors.Is(err, unix.ESRCH) {
				t.Errorf("%s with %q: process %d is left: %v", name, data, made.Pid, err)
			}
			again := sh("true")
			again.Name = made.Name
			output(t, e, again) // its name and ids are free
			if err := e.Remove(t.Context(), made.Name, false); err != nil {
				t.Error(err)
			}
		}
	}
}
