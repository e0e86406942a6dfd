package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is a machine that outlives agents: replicas that really answer HTTP on
// loopback, a router's table, a journal and a book of releases.
type world struct {
	t        *testing.T
	mu       sync.Mutex
	replicas map[string]*fakeReplica
	routed   []netip.AddrPort
	retired  map[netip.AddrPort]bool
	entries  map[string][]Entry
	releases []Release
	live     int
	commit   string
	sick     map[string]bool // images whose replicas answer 500
	failOn   string          // one operation fails: "start 2", "route 1", …
	count    map[string]int
	violated []string // promises that were broken
	warnings []string // of every replica
	log      io.Writer
}

type fakeReplica struct {
	Replica
	server *http.Server
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, replicas: map[string]*fakeReplica{}, retired: map[netip.AddrPort]bool{},
		entries: map[string][]Entry{}, sick: map[string]bool{}, count: map[string]int{}, log: io.Discard,
	}
	t.Cleanup(func() {
		for _, r := range w.replicas {
			r.stop()
		}
	})
	return w
}

func (r *fakeReplica) stop() {
	if r.server != nil {
		r.server.Close()
		r.server = nil
	}
	r.Running = false
}

var errInjected = errors.New("injected")

func (w *world) op(name string) error {
	w.count[name]++
	if w.failOn == fmt.Sprintf("%s %d", name, w.count[name]) {
		return errInjected
	}
	return nil
}

func (w *world) broken(format string, args ...any) {
	w.violated = append(w.violated, fmt.Sprintf(format, args...))
}

func (w *world) Fetch(context.Context, Repo, string, io.Writer) (Commit, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Commit{Hash: w.commit}, w.op("fetch")
}
func (w *world) Export(context.Context, Repo, string, string) error { return w.op("export") }
func (w *world) Changed(context.Context, Repo, string, string) ([]string, error) {
	return []string{"web/main.go"}, nil
}

func (w *world) Build(_ context.Context, r BuildRequest) (string, error) {
	return "image-" + r.Commit.Hash, w.op("build")
}

func (w *world) Start(_ context.Context, s ReplicaSpec) (Replica, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if have := w.replicas[s.Name]; have != nil && have.Running {
		return have.Replica, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return Replica{}, err
	}
	status := http.StatusOK
	if w.sick[s.Image] {
		status = http.StatusInternalServerError
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(status) })}
	go srv.Serve(l)
	w.replicas[s.Name] = &fakeReplica{server: srv, Replica: Replica{
		Name: s.Name, App: s.App, Process: s.Process.Name, Release: s.Release, Running: true,
		Address: l.Addr().(*net.TCPAddr).AddrPort(), Warnings: w.warnings,
	}}
	return w.replicas[s.Name].Replica, w.op("start")
}

func (w *world) Stop(_ context.Context, name string, _ time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.replicas[name]
	if r == nil {
		return nil
	}
	if slices.Contains(w.routed, r.Address) {
		w.broken("%s was stopped while routed", name)
	}
	if r.Running && r.Process == Routed && w.wasRouted(r.Address) && !w.retired[r.Address] {
		w.broken("%s was stopped before it was drained", name)
	}
	r.stop()
	delete(w.replicas, name)
	return w.op("stop")
}

func (w *world) wasRouted(a netip.AddrPort) bool { _, ok := w.retired[a]; return ok }

func (w *world) List(_ context.Context, app string) ([]Replica, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []Replica
	for _, r := range w.replicas {
		list = append(list, r.Replica)
	}
	return list, nil
}

func (w *world) Report(_ context.Context, name string) (Report, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.replicas[name]
	return Report{Running: r != nil && r.Running, Log: []string{"a line"}}, nil
}

func (w *world) Run(context.Context, ReplicaSpec, []string, io.Writer) (int, error) {
	return 0, w.op("command")
}

func (w *world) Announce(context.Context) {}

func (w *world) Route(_ context.Context, r Route) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.op("route"); err != nil {
		return err
	}
	for _, a := range r.Servers {
		if !slices.ContainsFunc(w.sorted(), func(f *fakeReplica) bool { return f.Running && f.Address == a }) {
			w.broken("routed to %s, where nothing runs", a)
		}
		w.retired[a] = false
	}
	w.routed = r.Servers
	return nil
}

func (w *world) Retire(_ context.Context, addrs []netip.AddrPort, _ time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range addrs {
		if slices.Contains(w.routed, a) {
			w.broken("%s was drained while routed", a)
		}
		w.retired[a] = true
	}
	return w.op("retire")
}

func (w *world) Prove(_ context.Context, r Route, _ string) (netip.AddrPort, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.routed) == 0 {
		return netip.AddrPort{}, errors.New("503")
	}
	return w.routed[0], w.op("prove")
}

func (w *world) Record(_ context.Context, id string, e Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries[id] = append(w.entries[id], e)
	return nil
}

func (w *world) Entries(_ context.Context, id string) ([]Entry, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.entries[id]), nil
}

func (w *world) Create(_ context.Context, r Release) (Release, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, have := range w.releases {
		if have.Deployment == r.Deployment {
			return have, nil
		}
	}
	r.Number = len(w.releases) + 1
	w.releases = append(w.releases, r)
	return r, w.op("release")
}

func (w *world) SetLive(_ context.Context, _ string, number, _ int) error {
	w.live = number
	return w.op("settle")
}

func (w *world) sorted() []*fakeReplica {
	var list []*fakeReplica
	for _, r := range w.replicas {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *fakeReplica) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (w *world) liveRelease() *Release {
	if w.live == 0 {
		return nil
	}
	return &w.releases[w.live-1]
}

// killed is how a test ends an agent at a point: as SIGKILL would, nothing of
// the engine runs after it.
type killed struct{ at string }

// deploy runs one deployment, resuming it as often as it is killed.
func (w *world) deploy(id string, app App, point func(string)) (o Outcome) {
	e := &Engine{
		Source: w, Builder: w, Target: w, Router: w, Journal: w, Releases: w,
		Scratch: w.t.TempDir(), Point: point,
	}
	job := Job{Deployment: Deployment{ID: id, App: app.Name, Trigger: Trigger{Kind: Manual, Force: true}}, App: app, Live: w.liveRelease(), Log: w.log}
	for {
		if done := attempt(e, job, &o); done {
			return o
		}
	}
}

func attempt(e *Engine, job Job, o *Outcome) (done bool) {
	defer func() {
		if k := recover(); k != nil {
			if _, ok := k.(killed); !ok {
				panic(k)
			}
			done = false
		}
	}()
	*o = e.Run(context.Background(), job)
	return true
}
