package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"naru/sandbox/events"
)

// recorded are the actions on record of one container.
func recorded(t *testing.T, e *Engine, id string) []string {
	t.Helper()
	var actions []string
	q := events.Query{Keep: func(ev events.Event) bool { return ev.ID == id }}
	if err := e.Events(t.Context(), q, func(ev events.Event) error { actions = append(actions, ev.Action); return nil }); err != nil {
		t.Fatal(err)
	}
	return actions
}

func TestEventsOfALife(t *testing.T) {
	e := newEngine(t)
	made, err := e.Run(t.Context(), sh("sleep 600"), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	err = errors.Join(e.Rename(t.Context(), made.ID, "other"), e.Kill(t.Context(), "other", 10), e.Stop(t.Context(), "other", -1),
		e.Recover(t.Context()), e.Remove(t.Context(), "other", false))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"create", "start", "exec_start", "exec_die", "rename", "kill", "stop", "die", "destroy"}
	if got := recorded(t, e, made.ID); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// TestFollowerSeesEnds has nobody but a follower look at a container that ends.
func TestFollowerSeesEnds(t *testing.T) {
	e := newEngine(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	found, enough := make(chan events.Event, 1), errors.New("enough")
	following := make(chan error, 1)
	go func() {
		following <- reopen(t, e).Events(ctx, events.Query{Follow: true}, func(ev events.Event) error {
			if ev.Action != "die" {
				return nil
			}
			found <- ev
			return enough
		})
	}()
	made, err := e.Run(t.Context(), sh("sleep 0.2; exit 5"), Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-following; !errors.Is(err, enough) {
		t.Fatalf("no end was seen: %v", err)
	}
	if ev := <-found; ev.ID != made.ID || ev.Attributes["exitCode"] != "5" {
		t.Errorf("event %+v", ev)
	}
}

func TestRename(t *testing.T) {
	e := newEngine(t)
	c := sh("sleep 600")
	c.Name = "first"
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	c.Name = "taken"
	if _, err := e.Define(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := e.Rename(t.Context(), "first", "taken"); !errors.Is(err, ErrNameTaken) {
		t.Errorf("to a name in use: %v", err)
	}
	if err := e.Rename(t.Context(), "first", "not/a name"); err == nil {
		t.Error("to no name: no error")
	}
	crash := errors.New("crash")
	for _, step := range []string{"renaming", "name saved", ""} {
		other := reopen(t, e)
		other.step = func(name string) {
			if name == step {
				panic(crash)
			}
		}
		func() {
			defer func() { _ = recover() }()
			if err := other.Rename(t.Context(), made.ID, "second"); err != nil {
				t.Errorf("rename: %v", err)
			}
		}()
		if err := e.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := mustState(t, e, made.ID, "running")
		free := map[string]string{"first": "second", "second": "first"}[got.Name]
		if _, err := e.Get(t.Context(), got.Name); err != nil {
			t.Errorf("crash at %q: %v", step, err)
		}
		mustBeGone(t, e, free)
		if got.Name != "first" {
			if err := e.Rename(t.Context(), made.ID, "first"); err != nil {
				t.Errorf("after a crash at %q: %v", step, err)
			}
		}
	}
}

func TestUpdateStatsTop(t *testing.T) {
	e := newEngine(t)
	c := sh("sleep 600")
	c.Memory, c.Network = 32<<20, "bridge"
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := e.Stats(t.Context(), made.ID); err != nil || s.Memory.Limit != 32<<20 || s.Pids.Current == 0 || len(s.Network) != 1 {
		t.Errorf("stats %+v, %v", s, err)
	}
	if _, err := e.Update(t.Context(), made.ID, func(c *ContainerConfig) { c.Memory, c.Pids = 64<<20, 33 }); err != nil {
		t.Fatal(err)
	}
	if s, err := e.Stats(t.Context(), made.ID); err != nil || s.Memory.Limit != 64<<20 || s.Pids.Limit != 33 {
		t.Errorf("stats after the update: %+v, %v", s, err)
	}
	if _, err := e.Update(t.Context(), made.ID, func(c *ContainerConfig) { c.Memory = 1 }); err == nil {
		t.Error("a limit of one byte: no error")
	}
	if got := mustState(t, e, made.ID, "running"); got.Config.Memory != 64<<20 {
		t.Errorf("memory on record %d", got.Config.Memory)
	}
	list, err := e.Top(t.Context(), made.ID)
	if err != nil || len(list) == 0 || list[0].Inside != 1 || list[0].UID != 0 || !strings.Contains(list[0].Command, "sleep 600") {
		t.Errorf("processes %+v, %v", list, err)
	}
	if err := e.Stop(t.Context(), made.ID, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Stats(t.Context(), made.ID); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stats of a stopped container: %v", err)
	}
	if _, err := e.Top(t.Context(), made.ID); !errors.Is(err, ErrNotRunning) {
		t.Errorf("top of a stopped container: %v", err)
	}
}

func TestDiskUsageAndPrune(t *testing.T) {
	e := newEngine(t)
	c := sh("dd if=/dev/zero of=/big bs=1k count=500 2>/dev/null")
	c.Mounts = []Mount{{Source: "v", Target: "/v", Volume: true}}
	output(t, e, c)
	idle, err := e.Define(t.Context(), sh("true"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := e.DiskUsage(t.Context())
	if err != nil || u.Containers.Total != 2 || u.Containers.Active != 0 || u.Containers.Reclaimable < 500<<10 || u.Images.Active != 1 || u.Volumes.Active != 1 {
		t.Errorf("usage %+v, %v", u, err)
	}
	removed, err := e.PruneContainers(t.Context(), func(c Container) bool { return c.ID == idle.ID })
	if err != nil || len(removed) != 1 {
		t.Errorf("pruned %v, %v", removed, err)
	}
	mustState(t, e, idle.ID, "created")
	report, err := e.Prune(t.Context(), PruneOptions{Networks: true, BuildCache: true})
	if err != nil || !slices.Contains(report.Containers, idle.ID) {
		t.Errorf("pruned %+v, %v", report, err)
	}
}
