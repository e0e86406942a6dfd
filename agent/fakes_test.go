package agent

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"naru/agent/store"
	"naru/configs"
	"naru/pipeline"
)

// world is the machine that agents come and go on: source, builder, target and
// router in one, with a switch before every operation.
type world struct {
	mu       sync.Mutex
	commits  []string // of the branch, the tip last
	replicas map[string]pipeline.Replica
	builds   int // under way
	most     int // builds that were under way at once
	done     []string
	// before is called first in every operation, with its name and subject.
	before func(ctx context.Context, op, what string) error
}

func newWorld() *world {
	return &world{commits: []string{"c1"}, replicas: map[string]pipeline.Replica{}}
}

func (w *world) op(ctx context.Context, op, what string) error {
	w.mu.Lock()
	w.done = append(w.done, op+" "+what)
	before := w.before
	w.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, op, what)
}

func (w *world) set(before func(ctx context.Context, op, what string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = before
}

func (w *world) push(commit string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commits = append(w.commits, commit)
}

func (w *world) count(op string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.done {
		if d == op {
			n++
		}
	}
	return n
}

func (w *world) Fetch(ctx context.Context, _ pipeline.Repo, hint string, _ io.Writer) (pipeline.Commit, error) {
	if err := w.op(ctx, "fetch", hint); err != nil {
		return pipeline.Commit{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if hint != "" && !slices.Contains(w.commits, hint) {
		return pipeline.Commit{}, fmt.Errorf("%s is not on the branch", hint)
	}
	if hint != "" {
		return pipeline.Commit{Hash: hint}, nil
	}
	return pipeline.Commit{Hash: w.commits[len(w.commits)-1], Subject: "a change"}, nil
}

func (w *world) Export(ctx context.Context, _ pipeline.Repo, commit, _ string) error {
	return w.op(ctx, "export", commit)
}

func (w *world) Changed(context.Context, pipeline.Repo, string, string) ([]string, error) {
	return nil, nil
}

func (w *world) Build(ctx context.Context, r pipeline.BuildRequest) (string, error) {
	w.mu.Lock()
	w.builds++
	w.most = max(w.most, w.builds)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.builds--
	}()
	fmt.Fprintf(r.Log, "building %s\n", r.Commit.Hash)
	return "image-" + r.Commit.Hash, w.op(ctx, "build", r.App+" "+r.Commit.Hash)
}

func (w *world) Start(ctx context.Context, s pipeline.ReplicaSpec) (pipeline.Replica, error) {
	if err := w.op(ctx, "start", s.App); err != nil {
		return pipeline.Replica{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := pipeline.Replica{Name: s.Name, App: s.App, Process: s.Process.Name, Release: s.Release, Running: true}
	w.replicas[s.Name] = r
	return r, nil
}

func (w *world) Stop(ctx context.Context, name string, _ time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.replicas, name)
	return nil
}

func (w *world) List(_ context.Context, app string) (list []pipeline.Replica, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.replicas {
		if r.App == app {
			list = append(list, r)
		}
	}
	return list, nil
}

func (w *world) Report(_ context.Context, name string) (pipeline.Report, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return pipeline.Report{Running: w.replicas[name].Running}, nil
}

func (w *world) Run(context.Context, pipeline.ReplicaSpec, []string, io.Writer) (int, error) {
	return 0, nil
}

func (w *world) Announce(context.Context)                                      {}
func (w *world) Route(context.Context, pipeline.Route) error                   { return nil }
func (w *world) Retire(context.Context, []netip.AddrPort, time.Duration) error { return nil }
func (w *world) Prove(context.Context, pipeline.Route, string) (netip.AddrPort, error) {
	return netip.AddrPort{}, nil
}

// releases lists the releases that have a running replica of the app.
func (w *world) releases(app string) (list []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.replicas {
		if r.App == app && r.Running && !slices.Contains(list, r.Release) {
			list = append(list, r.Release)
		}
	}
	slices.Sort(list)
	return list
}

// machine is a data directory with its store and its world.
type machine struct {
	*world
	root   string
	store  *store.Store
	config configs.Config
	builds int
}

func newMachine(t *testing.T, apps ...string) *machine {
	t.Helper()
	root := t.TempDir()
	s, err := store.Open(filepath.Join(root, "naru.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	m := &machine{world: newWorld(), root: root, store: s, config: configs.Config{Root: root}}
	for _, name := range apps {
		m.config.Apps = append(m.config.Apps, configs.AppConfig{File: name + ".yaml", App: configs.App{
			Name: name, Target: "local", Repo: configs.Repo{URL: "https://git.test/x.git", Branch: "main"},
			Policy: configs.Policy{Strategy: "rolling", Surge: 1, Keep: 5},
			Processes: []configs.Process{{
				Name: "worker", Replicas: 1,
				Health: configs.Health{Interval: time.Millisecond, Timeout: time.Second, Healthy: 1, Deadline: 5 * time.Second},
			}},
		}})
	}
	return m
}

func (m *machine) engine(t *testing.T) *pipeline.Engine {
	return &pipeline.Engine{Source: m.world, Builder: m.world, Target: m.world, Router: m.world, Scratch: filepath.Join(m.root, "scratch")}
}

// agent makes an agent and runs it until stop is called, which waits for it.
func (m *machine) agent(t *testing.T) (a *Agent, stop func()) {
	t.Helper()
	a, err := New(Options{Config: m.config, Engine: m.engine(t), Store: m.store, Log: zaptest.NewLogger(t), Builds: m.builds})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error("agent:", err)
		}
	})
	t.Cleanup(stop)
	return a, stop
}

func submit(t *testing.T, a *Agent, app string, trigger pipeline.Trigger) string {
	t.Helper()
	if trigger.Kind == "" {
		trigger.Kind = pipeline.Manual
	}
	got, err := a.Submit(t.Context(), app, trigger, nil)
	if err != nil {
		t.Fatal(err)
	}
	return got.Deployment.ID
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	limit := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(limit) {
			t.Fatalf("after 20 s still not: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// ends waits until a deployment has a final state and compares it.
func (m *machine) ends(t *testing.T, id string, want pipeline.State) (d pipeline.Deployment) {
	t.Helper()
	eventually(t, "deployment ended", func() bool {
		var err error
		if d, err = m.store.Deployment(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return d.State.Final()
	})
	if d.State != want {
		t.Fatalf("deployment ended %s (%s), want %s", d.State, d.Error, want)
	}
	return d
}

// gate stops the operation it is asked about until it is opened, or its context
// ends.
type gate struct {
	reached chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{reached: make(chan struct{}, 100), open: make(chan struct{})} }

func (g *gate) pass(ctx context.Context) error {
	g.reached <- struct{}{}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// at is a before that has the gate at one operation.
func (g *gate) at(op string) func(context.Context, string, string) error {
	return func(ctx context.Context, name, _ string) error {
		if name == op {
			return g.pass(ctx)
		}
		return nil
	}
}
