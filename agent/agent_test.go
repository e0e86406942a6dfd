package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"naru/agent/store"
	"naru/configs"
	"naru/pipeline"
)

func TestDeploy(t *testing.T) {
	m := newMachine(t, "web")
	a, _ := m.agent(t)
	d := m.ends(t, submit(t, a, "web", pipeline.Trigger{By: "me"}), pipeline.Live)
	if d.Commit != "c1" || d.Release != 1 || d.Serves != 1 || d.Trigger.By != "me" || d.Started.IsZero() {
		t.Errorf("deployment %+v", d)
	}
	events, err := m.store.Events(t.Context(), store.EventQuery{Deployment: d.ID, Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, e := range events {
		text.WriteString(e.Kind + " " + e.Text + "\n")
	}
	for _, want := range []string{"log building c1", `state {"state":"live"}`, `step {"step":"build","phase":"done"}`} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no event %q in\n%s", want, text.String())
		}
	}
	m.ends(t, submit(t, a, "web", pipeline.Trigger{}), pipeline.Skipped)
	m.ends(t, submit(t, a, "web", pipeline.Trigger{Force: true}), pipeline.Live)
	if got := m.releases("web"); !slices.Equal(got, []int{2}) {
		t.Errorf("running releases %v", got)
	}
	if _, err := a.Submit(t.Context(), "nope", pipeline.Trigger{Kind: pipeline.Manual}, nil); !errors.Is(err, ErrUnknownApp) {
		t.Errorf("unknown app: %v", err)
	}
}

func TestNewerCommitCancelsABuild(t *testing.T) {
	for _, name := range []string{"build", "fetch", "export"} {
		t.Run(name, func(t *testing.T) {
			m, g := newMachine(t, "web"), newGate()
			m.set(g.at(name))
			a, _ := m.agent(t)
			first := submit(t, a, "web", pipeline.Trigger{Commit: "c1"})
			<-g.reached
			same := submit(t, a, "web", pipeline.Trigger{Commit: "c1"}) // does not cancel it
			m.push("c2")
			m.set(nil)
			second := submit(t, a, "web", pipeline.Trigger{Commit: "c2"})
			m.ends(t, first, pipeline.Superseded)
			m.ends(t, same, pipeline.Superseded)
			if d := m.ends(t, second, pipeline.Live); d.Commit != "c2" {
				t.Errorf("commit %s is live", d.Commit)
			}
		})
	}
}

func TestWhatDoesNotCancelABuild(t *testing.T) {
	for _, trigger := range []pipeline.Trigger{
		{Kind: pipeline.Webhook, Commit: "c1"}, {Kind: pipeline.Schedule}, {Kind: pipeline.Poll},
	} {
		t.Run(string(trigger.Kind), func(t *testing.T) {
			m, g := newMachine(t, "web"), newGate()
			m.set(g.at("build"))
			a, _ := m.agent(t)
			first := submit(t, a, "web", pipeline.Trigger{Kind: pipeline.Webhook, Commit: "c1"})
			<-g.reached
			second := submit(t, a, "web", trigger)
			close(g.open)
			m.ends(t, first, pipeline.Live)
			m.ends(t, second, pipeline.Skipped)
		})
	}
}

func TestSwitchIsNeverCancelled(t *testing.T) {
	m, g := newMachine(t, "web"), newGate()
	m.set(g.at("start"))
	a, _ := m.agent(t)
	first := submit(t, a, "web", pipeline.Trigger{})
	<-g.reached
	var burst []string
	for n := range 10 {
		m.push(fmt.Sprint("d", n))
		burst = append(burst, submit(t, a, "web", pipeline.Trigger{Commit: fmt.Sprint("d", n)}))
	}
	if _, err := a.Cancel(t.Context(), first, "me"); err != nil {
		t.Error(err)
	}
	m.set(nil)
	close(g.open)
	m.ends(t, first, pipeline.Live)
	if d := m.ends(t, burst[9], pipeline.Live); d.Commit != "d9" {
		t.Errorf("commit %s is live", d.Commit)
	}
	for _, id := range burst[:9] {
		m.ends(t, id, pipeline.Superseded)
	}
	if n := m.count("build web d9"); n != 1 {
		t.Errorf("the newest was built %d times", n)
	}
}

func TestCancel(t *testing.T) {
	m, g := newMachine(t, "web"), newGate()
	a, _ := m.agent(t)
	m.ends(t, submit(t, a, "web", pipeline.Trigger{}), pipeline.Live)
	started := m.count("start web")
	m.push("c2")
	m.set(g.at("build"))
	running := submit(t, a, "web", pipeline.Trigger{})
	<-g.reached
	waiting := submit(t, a, "web", pipeline.Trigger{Kind: pipeline.Schedule})
	for _, id := range []string{waiting, running} {
		if _, err := a.Cancel(t.Context(), id, "me"); err != nil {
			t.Fatal(err)
		}
		if d := m.ends(t, id, pipeline.Cancelled); d.Serves != 1 {
			t.Errorf("release %d serves, want 1", d.Serves)
		}
		if _, err := a.Cancel(t.Context(), id, "me"); !errors.Is(err, ErrFinished) {
			t.Errorf("second cancel: %v", err)
		}
	}
	if _, err := a.Cancel(t.Context(), "nope", "me"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("unknown deployment: %v", err)
	}
	if n := m.count("start web") - started; n != 0 {
		t.Errorf("%d replicas were started", n)
	}
}

func TestRedelivery(t *testing.T) {
	m := newMachine(t, "web")
	a, _ := m.agent(t)
	var ids []string
	for range 3 {
		got, err := a.Submit(t.Context(), "web", pipeline.Trigger{Kind: pipeline.Webhook, Force: true}, &store.Delivery{Sender: "github", ID: "x"})
		if err != nil || got.Repeated != (len(ids) > 0) {
			t.Fatalf("%+v, %v", got, err)
		}
		ids = append(ids, got.Deployment.ID)
		m.ends(t, ids[0], pipeline.Live)
	}
	if ids[1] != ids[0] || ids[2] != ids[0] || m.count("build web c1") != 1 {
		t.Errorf("deployments %v, %d builds", ids, m.count("build web c1"))
	}
}

func TestShutdownLeavesTheDeploymentToTheNextAgent(t *testing.T) {
	for _, op := range []string{"fetch", "build", "start"} {
		t.Run(op, func(t *testing.T) {
			m, g := newMachine(t, "web"), newGate()
			m.set(g.at(op))
			a, stop := m.agent(t)
			id := submit(t, a, "web", pipeline.Trigger{})
			<-g.reached
			stop()
			d, err := m.store.Deployment(t.Context(), id)
			if err != nil || d.State != pipeline.Running {
				t.Fatalf("after the shutdown: %+v, %v", d, err)
			}
			m.set(nil)
			// A newer one that came while the agent was down waits its turn.
			m.push("c2")
			next, err := New(Options{Config: m.config, Engine: m.engine(t), Store: m.store, Log: a.log})
			if err != nil {
				t.Fatal(err)
			}
			newer := submit(t, next, "web", pipeline.Trigger{Commit: "c2"})
			m.agent(t)
			m.ends(t, id, pipeline.Live)
			want := pipeline.Live
			if op == "fetch" { // the resumed one has fetched the newer commit
				want = pipeline.Skipped
			}
			m.ends(t, newer, want)
			if got := m.releases("web"); len(got) != 1 {
				t.Errorf("running releases %v", got)
			}
		})
	}
}

// TestKilledInEveryStep writes the journal until the named point with an engine
// that is then gone, as after SIGKILL, and lets an agent go on from the store.
func TestKilledInEveryStep(t *testing.T) {
	for _, point := range []string{
		"begin:done", "fetch:started", "fetch:did", "build:started", "build:did", "release:did", "release:done",
		"worker.1.start:started", "worker.1.start:did", "worker.1.probe:done", "worker.1.stop:did", "settle:started", "settle:did", "settle:done",
	} {
		t.Run(point, func(t *testing.T) {
			m := newMachine(t, "web")
			a, stop := m.agent(t)
			m.ends(t, submit(t, a, "web", pipeline.Trigger{}), pipeline.Live)
			stop()
			m.push("c2")
			id := submit(t, a, "web", pipeline.Trigger{})
			m.killAt(t, id, point)
			m.agent(t)
			if d := m.ends(t, id, pipeline.Live); d.Serves != 2 || d.Commit != "c2" {
				t.Errorf("deployment %+v", d)
			}
			if got := m.releases("web"); !slices.Equal(got, []int{2}) {
				t.Errorf("running releases %v", got)
			}
			if all, err := m.store.Releases(t.Context(), "web"); err != nil || len(all) != 2 || !all[0].Live {
				t.Errorf("releases %+v, %v", all, err)
			}
		})
	}
}

func (m *machine) killAt(t *testing.T, id, point string) {
	t.Helper()
	d, ok, err := m.store.Begin(t.Context(), "web")
	if err != nil || !ok || d.ID != id {
		t.Fatalf("begin %+v, %t, %v", d, ok, err)
	}
	live, err := m.store.LiveRelease(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	e := m.engine(t)
	e.Journal, e.Releases = m.store, m.store
	killed := errors.New("killed at " + point)
	e.Point = func(name string) {
		if name == point {
			panic(killed)
		}
	}
	defer func() {
		if r := recover(); r != killed {
			t.Fatalf("the point was not reached: %v", r)
		}
	}()
	e.Run(t.Context(), pipeline.Job{Deployment: d, App: newApp(m.config.Apps[0]).App, Live: live, Log: io.Discard})
}

func TestBuildsShareALimit(t *testing.T) {
	apps := []string{"a", "b", "c", "d"}
	m := newMachine(t, apps...)
	m.builds = 2
	g := newGate()
	m.set(g.at("build"))
	a, _ := m.agent(t)
	var ids []string
	for _, app := range apps {
		ids = append(ids, submit(t, a, app, pipeline.Trigger{}))
	}
	<-g.reached
	<-g.reached
	close(g.open)
	for _, id := range ids {
		m.ends(t, id, pipeline.Live)
	}
	if m.most != 2 {
		t.Errorf("%d builds at once, want 2", m.most)
	}
}

func TestRollback(t *testing.T) {
	m := newMachine(t, "web")
	a, _ := m.agent(t)
	for _, c := range []string{"c1", "c2", "c3"} {
		m.push(c)
		m.ends(t, submit(t, a, "web", pipeline.Trigger{}), pipeline.Live)
	}
	back := func(release int) (string, error) {
		got, err := a.Rollback(t.Context(), "web", pipeline.Trigger{By: "me", Release: release}, nil)
		return got.Deployment.ID, err
	}
	for _, release := range []int{3, 4, -1} {
		if _, err := back(release); !errors.Is(err, ErrNoRelease) {
			t.Errorf("rollback to %d: %v", release, err)
		}
	}
	for _, want := range []int{2, 1} {
		id, err := back(0)
		if err != nil {
			t.Fatal(err)
		}
		if d := m.ends(t, id, pipeline.Live); d.Serves != want || d.Trigger.Kind != pipeline.Rollback {
			t.Errorf("rollback made %d live, want %d", d.Serves, want)
		}
		if got := m.releases("web"); !slices.Equal(got, []int{want}) {
			t.Errorf("running releases %v", got)
		}
	}
	if _, err := back(0); !errors.Is(err, ErrNoRelease) {
		t.Errorf("rollback before the first: %v", err)
	}
	if id, err := back(3); err != nil {
		t.Error(err)
	} else {
		m.ends(t, id, pipeline.Live)
	}
	if n := m.count("build web c1") + m.count("build web c2") + m.count("build web c3"); n != 3 {
		t.Errorf("%d builds: a rollback builds nothing", n)
	}
	if _, err := a.Rollback(t.Context(), "nope", pipeline.Trigger{}, nil); !errors.Is(err, ErrUnknownApp) {
		t.Errorf("unknown app: %v", err)
	}
}

func TestReconcileAtStart(t *testing.T) {
	m := newMachine(t, "web")
	a, stop := m.agent(t)
	m.ends(t, submit(t, a, "web", pipeline.Trigger{}), pipeline.Live)
	stop()
	for name, r := range m.replicas { // a reboot
		r.Running = false
		m.replicas[name] = r
	}
	m.config.Apps = nil // its file has a typo: it must come back all the same
	a, _ = m.agent(t)
	eventually(t, "the replica runs again", func() bool { return slices.Equal(m.releases("web"), []int{1}) })
	if _, err := a.Submit(t.Context(), "web", pipeline.Trigger{}, nil); !errors.Is(err, ErrUnknownApp) {
		t.Errorf("an app without config: %v", err)
	}
}

func TestReload(t *testing.T) {
	m := newMachine(t, "web")
	a, _ := m.agent(t)
	more := newMachine(t, "web", "api")
	if err := a.Reload(configs.Config{Apps: more.config.Apps}, nil); err != nil {
		t.Fatal(err)
	}
	m.ends(t, submit(t, a, "api", pipeline.Trigger{}), pipeline.Live)
	if err := a.Reload(configs.Config{Apps: more.config.Apps[:1]}, []string{"api.yaml"}); err != nil {
		t.Fatal(err)
	}
	m.ends(t, submit(t, a, "api", pipeline.Trigger{Force: true}), pipeline.Live) // its file is broken now
	if err := a.Reload(configs.Config{Apps: more.config.Apps[:1]}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Submit(t.Context(), "api", pipeline.Trigger{}, nil); !errors.Is(err, ErrUnknownApp) {
		t.Errorf("an app that is gone: %v", err)
	}
	left, err := a.Unconfigured(t.Context())
	if err != nil || len(left) != 1 || left[0].App != "api" {
		t.Errorf("unconfigured %v, %v, want api", left, err)
	}
}

func TestSecretsAreMasked(t *testing.T) {
	const secret = "s3cr3t-token-value"
	m := newMachine(t, "web")
	file := filepath.Join(m.root, "token")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.config.Apps[0].App.Repo.TokenFile = file
	m.set(func(_ context.Context, op, _ string) error {
		if op == "build" {
			return errors.New("cannot log in with " + secret)
		}
		return nil
	})
	a, _ := m.agent(t)
	d := m.ends(t, submit(t, a, "web", pipeline.Trigger{}), pipeline.Failed)
	if strings.Contains(d.Error, secret) || !strings.Contains(d.Error, "cannot log in with ***") {
		t.Errorf("error %q", d.Error)
	}
	steps, err := m.store.Steps(t.Context(), d.ID)
	if err != nil || strings.Contains(fmt.Sprint(steps), secret) {
		t.Errorf("steps %v, %v", steps, err)
	}
	events, err := m.store.Events(t.Context(), store.EventQuery{Deployment: d.ID, Limit: 100})
	if err != nil || strings.Contains(fmt.Sprint(events), secret) || !strings.Contains(fmt.Sprint(events), "***") {
		t.Errorf("events %v, %v", events, err)
	}
}

func TestPanicEndsTheDeploymentOnly(t *testing.T) {
	m := newMachine(t, "web")
	m.set(func(_ context.Context, op, _ string) error {
		if op == "build" {
			panic("oops")
		}
		return nil
	})
	a, _ := m.agent(t)
	d := m.ends(t, submit(t, a, "web", pipeline.Trigger{}), pipeline.Broken)
	if !strings.Contains(d.Error, "oops") {
		t.Errorf("error %q", d.Error)
	}
	m.set(nil)
	m.ends(t, submit(t, a, "web", pipeline.Trigger{}), pipeline.Live)
}

func TestWhichCommitIsDeployed(t *testing.T) {
	m := newMachine(t, "web")
	a, _ := m.agent(t)
	m.push("aaaaaaa1")
	m.push("bbbbbbb2")
	for _, c := range []struct {
		trigger pipeline.Trigger
		want    string
	}{
		{pipeline.Trigger{Kind: pipeline.Webhook, Commit: "aaaaaaa1"}, "bbbbbbb2"}, // out of order: the tip
		{pipeline.Trigger{Kind: pipeline.Manual, Commit: "aaaaaaa1"}, "aaaaaaa1"},  // a person's word
	} {
		if d := m.ends(t, submit(t, a, "web", c.trigger), pipeline.Live); d.Commit != c.want {
			t.Errorf("%+v deployed %s", c.trigger, d.Commit)
		}
	}
}

func TestWebhookFasterThanTheGitServer(t *testing.T) {
	m := newMachine(t, "web")
	a, _ := m.agent(t)
	m.set(func(_ context.Context, op, what string) error {
		if op == "fetch" && what == "late" && m.count("fetch late") == 1 {
			defer m.push("late")
			return errors.New("not found")
		}
		return nil
	})
	if d := m.ends(t, submit(t, a, "web", pipeline.Trigger{Kind: pipeline.Webhook, Commit: "late"}), pipeline.Live); d.Commit != "late" {
		t.Errorf("deployed %s", d.Commit)
	}
}

func TestLock(t *testing.T) {
	root := t.TempDir()
	unlock, err := Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(root); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("second agent: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	unlock, err = Lock(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}

func TestLineWriter(t *testing.T) {
	var got []string
	w := &lineWriter{put: func(line string) { got = append(got, line) }}
	for _, part := range []string{"one\ntw", "o\n\nthr", "ee", strings.Repeat("x", maxPart)} {
		if n, err := io.WriteString(w, part); n != len(part) || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	if _, err := io.WriteString(w, "end"); err != nil {
		t.Error(err)
	}
	w.flush()
	w.flush()
	if want := []string{"one", "two", "", "three" + strings.Repeat("x", maxPart), "end"}; !slices.Equal(got, want) {
		t.Errorf("lines %.200q", got)
	}
}

func TestAppKeepsItsRuntime(t *testing.T) {
	if app := newApp(configs.AppConfig{App: configs.App{Runtime: "runsc"}}); app.App.Runtime != "runsc" {
		t.Errorf("runtime %q", app.App.Runtime)
	}
}
