package pipeline

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func testApp(replicas int) App {
	h := Health{Path: "/", Interval: time.Millisecond, Timeout: time.Second, Healthy: 2, Deadline: 200 * time.Millisecond}
	return App{
		Name: "shop", Target: "local", Domains: []string{"shop.test"},
		Policy: Policy{Strategy: "rolling", Surge: 1, Keep: 5, ReleaseCommand: []string{"migrate"}},
		Processes: []Process{
			{Name: "web", Port: 80, Replicas: replicas, Health: h},
			{Name: "worker", Replicas: 1, Health: h},
		},
	}
}

// check compares the world with the promise table: wanted is the release that
// must serve, with all its replicas and no other.
func (w *world) check(t *testing.T, wanted, replicas int) {
	t.Helper()
	for _, v := range w.violated {
		t.Error("promise broken:", v)
	}
	var web []string
	for _, r := range w.sorted() {
		if !r.Running || r.Release != wanted {
			t.Errorf("%s (release %d, running %t) is left over", r.Name, r.Release, r.Running)
		}
		if r.Process == Routed {
			web = append(web, r.Address.String())
		}
	}
	var routed []string
	for _, a := range w.routed {
		routed = append(routed, a.String())
	}
	slices.Sort(web)
	slices.Sort(routed)
	if len(web) != replicas || !slices.Equal(web, routed) {
		t.Errorf("release %d: replicas %v, routed %v, want %d of each", wanted, web, routed, replicas)
	}
}

func (w *world) firstRelease(app App) {
	w.commit = "c1"
	if o := w.deploy("d1", app, nil); o.State != Live {
		w.t.Fatalf("first deployment: %+v", o)
	}
}

func TestDeploy(t *testing.T) {
	w := newWorld(t)
	w.firstRelease(testApp(2))
	w.check(t, 1, 2)
	w.commit = "c2"
	app := testApp(3)
	o := w.deploy("d2", app, nil)
	if o.State != Live || o.Serves != 2 || o.Commit != "c2" {
		t.Errorf("outcome %+v", o)
	}
	w.check(t, 2, 3)
	app = testApp(1)
	if o := w.deploy("d3", app, nil); o.State != Live {
		t.Errorf("scaling down: %+v", o)
	}
	w.check(t, 3, 1)
}

func TestUnavailable(t *testing.T) {
	for _, p := range []Policy{{Surge: 0, Unavailable: 1}, {Surge: 1, Unavailable: 1}, {Surge: 5}, {Surge: 0, Unavailable: 9}} {
		t.Run(fmt.Sprintf("surge %d unavailable %d", p.Surge, p.Unavailable), func(t *testing.T) {
			w := newWorld(t)
			app := testApp(3)
			app.Policy.Surge, app.Policy.Unavailable = p.Surge, p.Unavailable
			w.firstRelease(app)
			w.commit = "c2"
			if o := w.deploy("d2", app, nil); o.State != Live {
				t.Errorf("outcome %+v", o)
			}
			w.check(t, 2, 3)
		})
	}
}

// points lists the moments of a deployment by watching one.
func points(t *testing.T, app App, sick bool) (list []string) {
	w := newWorld(t)
	w.firstRelease(app)
	w.commit, w.sick["image-c2"] = "c2", sick
	w.deploy("d2", app, func(p string) { list = append(list, p) })
	if len(list) < 20 {
		t.Fatalf("only %d points: %v", len(list), list)
	}
	return list
}

func TestKilledAtEveryPoint(t *testing.T) {
	for _, sick := range []bool{false, true} {
		for _, unavailable := range []int{0, 1} {
			app := testApp(2)
			app.Policy.Unavailable = unavailable
			for _, at := range points(t, app, sick) {
				t.Run(fmt.Sprintf("sick=%t/unavailable=%d/%s", sick, unavailable, at), func(t *testing.T) {
					w := newWorld(t)
					w.firstRelease(app)
					w.commit, w.sick["image-c2"] = "c2", sick
					kills := 0
					o := w.deploy("d2", app, func(p string) {
						if p == at && kills == 0 {
							kills++
							panic(killed{p})
						}
					})
					if kills == 0 {
						t.Fatal("the point was never reached")
					}
					want, serves := Live, 2
					if sick {
						want, serves = RolledBack, 1
					}
					if o.State != want || o.Serves != serves {
						t.Errorf("outcome %+v", o)
					}
					w.check(t, serves, 2)
				})
			}
		}
	}
}

// TestRebootAtEveryPoint kills the agent and every replica at once.
func TestRebootAtEveryPoint(t *testing.T) {
	app := testApp(2)
	for _, at := range points(t, app, false) {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			w.firstRelease(app)
			w.commit = "c2"
			kills := 0
			o := w.deploy("d2", app, func(p string) {
				if p != at || kills > 0 {
					return
				}
				kills++
				for _, r := range w.replicas {
					r.stop()
				}
				panic(killed{p})
			})
			e := &Engine{Target: w, Router: w, Journal: w}
			if _, err := e.Reconcile(context.Background(), w.releases[o.Serves-1], io.Discard); err != nil {
				t.Fatal(err)
			}
			w.check(t, o.Serves, 2)
		})
	}
}

// TestEveryOperationFails fails each operation of the world once. A deployment
// that cannot go on is undone and the old release serves from all replicas.
func TestEveryOperationFails(t *testing.T) {
	app := testApp(2)
	dry := newWorld(t)
	dry.firstRelease(app)
	before := fmt.Sprint(dry.count)
	first := map[string]int{}
	for op, n := range dry.count {
		first[op] = n
	}
	dry.commit = "c2"
	dry.deploy("d2", app, nil)
	for op, n := range dry.count {
		for i := first[op] + 1; i <= n; i++ {
			t.Run(fmt.Sprintf("%s %d", op, i), func(t *testing.T) {
				w := newWorld(t)
				w.firstRelease(app)
				if got := fmt.Sprint(w.count); got != before {
					t.Fatalf("the first deployment is not the same each time: %s, %s", got, before)
				}
				w.commit, w.failOn = "c2", fmt.Sprintf("%s %d", op, i)
				o := w.deploy("d2", app, nil)
				if o.State == Live || o.Serves != 1 || !strings.Contains(fmt.Sprint(o.Err), "injected") {
					t.Errorf("outcome %+v", o)
				}
				w.check(t, 1, 2)
			})
		}
	}
}

func TestSickReleaseSaysWhy(t *testing.T) {
	w := newWorld(t)
	w.firstRelease(testApp(2))
	w.commit, w.sick["image-c2"] = "c2", true
	o := w.deploy("d2", testApp(2), nil)
	for _, want := range []string{"500 Internal Server Error", "probed http://127.0.0.1", "a line", "out of memory"} {
		if !strings.Contains(fmt.Sprint(o.Err), want) {
			t.Errorf("error %q does not say %q", o.Err, want)
		}
	}
}

func TestWarningsAreInTheLog(t *testing.T) {
	w := newWorld(t)
	var log strings.Builder
	w.log, w.warnings = &log, []string{"no user namespace"}
	w.firstRelease(testApp(2))
	if n := strings.Count(log.String(), ": warning: no user namespace\n"); n != 3 {
		t.Errorf("%d warnings of two web replicas and a worker in the log:\n%s", n, log.String())
	}
}

func TestCancel(t *testing.T) {
	for _, tt := range []struct {
		at    string
		cause error
		want  State
	}{
		{"fetch:done", ErrCancelled, Cancelled},
		{"build:done", ErrSuperseded, Superseded},
		{"web.1.probe:done", ErrCancelled, Live}, // a switch is never cancelled
	} {
		t.Run(tt.at, func(t *testing.T) {
			w := newWorld(t)
			app := testApp(2)
			w.firstRelease(app)
			w.commit = "c2"
			ctx, cancel := context.WithCancelCause(context.Background())
			e := &Engine{Source: w, Builder: w, Target: w, Router: w, Journal: w, Releases: w, Scratch: t.TempDir()}
			e.Point = func(p string) {
				if p == tt.at {
					cancel(tt.cause)
				}
			}
			o := e.Run(ctx, Job{Deployment: Deployment{ID: "d2", Trigger: Trigger{Kind: Manual, Force: true}}, App: app, Live: w.liveRelease(), Log: io.Discard})
			if o.State != tt.want {
				t.Errorf("outcome %+v, want %s", o, tt.want)
			}
			w.check(t, o.Serves, 2)
		})
	}
}

func TestShutdownIsResumed(t *testing.T) {
	app := testApp(2)
	for _, at := range points(t, app, false) {
		w := newWorld(t)
		w.firstRelease(app)
		w.commit = "c2"
		ctx, cancel := context.WithCancelCause(context.Background())
		e := &Engine{Source: w, Builder: w, Target: w, Router: w, Journal: w, Releases: w, Scratch: t.TempDir()}
		e.Point = func(p string) {
			if p == at {
				cancel(ErrShutdown)
			}
		}
		job := Job{Deployment: Deployment{ID: "d2", Trigger: Trigger{Kind: Manual, Force: true}}, App: app, Live: w.liveRelease(), Log: io.Discard}
		if o := e.Run(ctx, job); o.State != Running && o.State != Live {
			t.Errorf("%s: shut down: %+v", at, o)
		}
		e.Point = nil
		if o := e.Run(context.Background(), job); o.State != Live {
			t.Errorf("%s: resumed: %+v", at, o)
		}
		w.check(t, 2, 2)
	}
}

func TestSkip(t *testing.T) {
	w := newWorld(t)
	app := testApp(1)
	w.firstRelease(app)
	e := &Engine{Source: w, Builder: w, Target: w, Router: w, Journal: w, Releases: w, Scratch: t.TempDir()}
	run := func(id string, a App) Outcome {
		return e.Run(context.Background(), Job{Deployment: Deployment{ID: id, Trigger: Trigger{Kind: Webhook}}, App: a, Live: w.liveRelease(), Log: io.Discard})
	}
	if o := run("same", app); o.State != Skipped || !strings.Contains(o.Err.Error(), "already live") {
		t.Errorf("same commit: %+v", o)
	}
	changed := app
	changed.Env = map[string]string{"LOG": "debug"}
	if o := run("env", changed); o.State != Live {
		t.Errorf("same commit, other env: %+v", o)
	}
	w.commit = "c9"
	changed.Repo.Paths = []string{"docs/**"}
	if o := run("paths", changed); o.State != Skipped || !strings.Contains(o.Err.Error(), "docs/**") {
		t.Errorf("no path matches: %+v", o)
	}
	changed.Repo.Paths = []string{"/web/**"}
	if o := run("paths2", changed); o.State != Live {
		t.Errorf("a path matches: %+v", o)
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"web/**", "web/a/b.go", true},
		{"web/**", "webs/a", false},
		{"/web/**", "web/a", true},
		{"**/*.md", "a/b/c.md", true},
		{"**/*.md", "c.md", true},
		{"*.go", "a/b.go", false},
		{"a/**/z", "a/z", true},
		{"a/[", "a/[", false},
	} {
		if got := matchAny([]string{tt.pattern}, tt.name); got != tt.want {
			t.Errorf("%q matches %q: %t, want %t", tt.pattern, tt.name, got, tt.want)
		}
	}
}

func TestReplicasHaveTheRuntimeOfTheirRelease(t *testing.T) {
	if s := spec(&Release{Config: App{Runtime: "runsc"}}, Process{}); s.Runtime != "runsc" {
		t.Errorf("runtime %q", s.Runtime)
	}
}
