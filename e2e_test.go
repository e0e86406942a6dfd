package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"naru/bench/load"
	"naru/bench/stage"
)

// The tests of this file run the real program: real nginx, real git, real
// containers. They need root.

// built makes the two programs once for all tests.
var built = sync.OnceValues(func() (dir string, err error) {
	dir, err = os.MkdirTemp("", "naru-e2e-")
	if err != nil {
		return "", err
	}
	for out, pkg := range map[string]string{"naru": ".", "shop": "./scripts/demo/app"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, out), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("build %s: %w: %s", pkg, err, text)
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := built(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// setStage starts an agent with a live v1, and checks at the end that the
// machine is as before.
func setStage(t *testing.T, bake time.Duration) (context.Context, *stage.Stage) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	if testing.Short() {
		t.Skip("starts nginx and containers; not in -short")
	}
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	t.Cleanup(cancel)
	before, err := stage.TakeSnapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile("Dockerfile.sample")
	if err != nil {
		t.Fatal(err)
	}
	s, err := stage.New(ctx, stage.Options{
		Naru: filepath.Join(dir, "naru"), App: filepath.Join(dir, "shop"), Dockerfile: dockerfile,
		Interval: 50 * time.Millisecond, Bake: bake,
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the agent's last words:\n%s", s.Log())
		}
		if err := s.CleanUp(context.WithoutCancel(ctx)); err != nil {
			t.Errorf("clean up: %v", err)
		}
		after, err := stage.TakeSnapshot(context.WithoutCancel(ctx))
		if err != nil {
			t.Error(err)
		}
		if err := before.Compare(after); err != nil {
			t.Errorf("the machine is not as before:\n%v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	deploy(ctx, t, s, "v1", "live", "v1")
	return ctx, s
}

// deploy pushes a version, waits for its end and checks what serves.
func deploy(ctx context.Context, t *testing.T, s *stage.Stage, version, state, serves string) string {
	t.Helper()
	if err := s.Push(ctx, version); err != nil {
		t.Fatal(err)
	}
	id, err := s.Deliver(ctx)
	if err != nil {
		t.Fatal(err)
	}
	settled(ctx, t, s, id, state, serves)
	return id
}

func settled(ctx context.Context, t *testing.T, s *stage.Stage, id, state, serves string) {
	t.Helper()
	limit, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d, err := s.Wait(limit, id)
	if err != nil {
		t.Fatal(err)
	}
	if d.State != state {
		t.Fatalf("deployment ended as %s in %s, want %s: %s", d.State, d.Step, state, d.Error)
	}
	answer, err := s.Answer(ctx)
	if err != nil || answer != serves {
		t.Fatalf("nginx answers %q (%v), want %q", answer, err, serves)
	}
	checkReplicas(ctx, t, s)
}

// checkReplicas wants exactly the two replicas of the app, and nothing else.
func checkReplicas(ctx context.Context, t *testing.T, s *stage.Stage) {
	t.Helper()
	out, err := s.Naru(ctx, "ps", "--all", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var list []struct {
		Name, State string
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("ps: %v: %s", err, out)
	}
	running := 0
	for _, c := range list {
		if c.State == "running" {
			running++
		}
	}
	if len(list) != 2 || running != 2 {
		t.Errorf("%d containers, %d of them running, want 2: %s", len(list), running, out)
	}
}

// underLoad runs f while strict clients send, and wants no request lost.
func underLoad(ctx context.Context, t *testing.T, s *stage.Stage, o load.Options, f func()) load.Report {
	t.Helper()
	loadCtx, stop := context.WithCancel(ctx)
	reports := make(chan load.Report, 1)
	go func() {
		o.Addr, o.Host, o.Blind, o.Duration = s.HTTP, s.Host, true, 10*time.Minute
		report, err := load.Run(loadCtx, o)
		if err != nil {
			t.Error(err)
		}
		reports <- report
	}()
	func() {
		defer stop() // also when f ends the test
		f()
	}()
	report := <-reports
	t.Logf("load:\n%s", report)
	if n := report.Losses(); n != 0 || report.Sent == 0 {
		t.Errorf("%d of %d requests were lost", n, report.Sent)
	}
	return report
}

// steps returns the steps of an ended deployment, as the engine journaled them.
func steps(ctx context.Context, t *testing.T, s *stage.Stage, id string) (list []string) {
	t.Helper()
	d, err := s.Deployment(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range d.Steps {
		list = append(list, st.Name)
	}
	if len(list) < 10 {
		t.Fatalf("the deployment has only %d steps: %v", len(list), list)
	}
	return list
}

// TestKilledAtEveryStep kills the agent, with SIGKILL, at every journaled step
// of a deployment that succeeds and of one that is undone, under load. After a
// restart the deployment has ended, the app answers, and no request was lost.
func TestKilledAtEveryStep(t *testing.T) {
	ctx, s := setStage(t, time.Second)
	good := steps(ctx, t, s, deploy(ctx, t, s, "v2", "live", "v2"))
	// A release that is healthy until all old replicas are gone, and then is not,
	// has the most to undo.
	undone := steps(ctx, t, s, deploy(ctx, t, s, "v3 fading", "rolled_back", "v2"))
	// Clients that connect and stay silent hold a drain up: here for a short
	// time only, since there are many deployments.
	underLoad(ctx, t, s, load.Options{EarlyWait: 300 * time.Millisecond}, func() {
		version, serves := 4, "v2"
		kill := func(name, at, state string) {
			t.Run(strings.ReplaceAll(state+" "+at, ":", " "), func(t *testing.T) {
				if err := s.Kill(); err != nil {
					t.Fatal(err)
				}
				if err := s.Serve(ctx, "NARU_FAILPOINT="+at); err != nil {
					t.Fatal(err)
				}
				if err := s.Push(ctx, name); err != nil {
					t.Fatal(err)
				}
				id, err := s.Deliver(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Ended(time.Minute); err != nil {
					t.Fatalf("the failpoint was not reached: %v", err)
				}
				if err := s.Serve(ctx); err != nil {
					t.Fatal(err)
				}
				if state == "live" {
					serves = name
				}
				settled(ctx, t, s, id, state, serves)
			})
			version++
		}
		for _, step := range good {
			for _, phase := range []string{"started", "did"} {
				if step != "begin" {
					kill(fmt.Sprintf("v%d", version), step+":"+phase, "live")
				}
			}
		}
		for _, step := range undone {
			for _, phase := range []string{"undoing", "undid"} {
				if hasUndo(step) {
					kill(fmt.Sprintf("v%d fading", version), step+":"+phase, "rolled_back")
				}
			}
		}
	})
}

// hasUndo reports whether a step changes what must be changed back.
func hasUndo(step string) bool {
	verb := step[strings.LastIndex(step, ".")+1:]
	return verb == "start" || verb == "route" || verb == "stop"
}

// TestComesBack takes away everything that runs, as a power cut would, and
// starts the agent: the live release serves again, without a deployment.
func TestComesBack(t *testing.T) {
	ctx, s := setStage(t, 0)
	deploy(ctx, t, s, "v2", "live", "v2")
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Naru(ctx, "system", "reset", "--force"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.Run()); err != nil {
		t.Fatal(err)
	}
	if answer, err := s.Answer(ctx); err == nil {
		t.Fatalf("something still answers: %q", answer)
	}
	if err := s.Serve(ctx); err != nil {
		t.Fatal(err)
	}
	limit, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := s.Serves(limit, "v2"); err != nil {
		t.Fatal(err)
	}
	checkReplicas(ctx, t, s)
}

// TestNoRequestIsLost replaces the app ten times and more under load.
func TestNoRequestIsLost(t *testing.T) {
	ctx, s := setStage(t, 0)
	const wanted = 100_000
	rolls := 0
	began := time.Now()
	report := underLoad(ctx, t, s, load.Options{}, func() {
		for rolls < 10 || time.Since(began) < 40*time.Second {
			rolls++
			version := fmt.Sprintf("v%d", rolls+1)
			deploy(ctx, t, s, version, "live", version)
		}
	})
	t.Logf("%d rolling deployments, %d requests", rolls, report.Sent)
	if report.Sent < wanted {
		t.Errorf("only %d requests were sent, want %d", report.Sent, wanted)
	}
}
