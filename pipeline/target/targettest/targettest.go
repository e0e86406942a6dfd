// Package targettest is the contract of pipeline.Target as tests: what every
// place that runs replicas has to do, seen from outside.
//
// A target's own test calls Run with a function that opens it. The image that
// the function names must have busybox's sh, httpd, sleep, seq and touch; all
// replicas are reached from the test's process at the address they report.
package targettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"naru/pipeline"
)

// Subject is a target under test and an image that it can run.
type Subject struct {
	Target pipeline.Target
	Image  string
}

// Run runs the suite. open is called once for each test and cleans up by
// t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Subject)
	}{
		{"a started replica answers at its address", answers},
		{"start of a running replica changes nothing", startTwice},
		{"start replaces a dead replica", startDead},
		{"list tells apps apart and shows the dead", list},
		{"stop asks first and removes", stopAsks},
		{"stop kills after the grace", stopKills},
		{"stop of an unknown replica is no error", stopUnknown},
		{"report tells exit code and last lines", report},
		{"volumes outlive replicas", volumes},
		{"run gives output and exit code", run},
		{"run ends with its context", runCancelled},
		{"an image that is missing is an error", missingImage},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// web is a replica that serves the text of GREETING on its port.
func (s Subject) web(name, greeting string) pipeline.ReplicaSpec {
	const script = `mkdir -p /tmp/www; echo "$GREETING" > /tmp/www/index.html; exec httpd -f -p "$PORT" -h /tmp/www`
	return pipeline.ReplicaSpec{
		Name: name, App: "shop", Release: 7, Image: s.Image, Env: map[string]string{"GREETING": greeting},
		Process: pipeline.Process{Name: "web", Command: []string{"sh", "-c", script}, Port: 8080, StopGrace: time.Second},
	}
}

// worker is a replica without a port that runs a script.
func (s Subject) worker(name, script string) pipeline.ReplicaSpec {
	return pipeline.ReplicaSpec{
		Name: name, App: "shop", Release: 7, Image: s.Image,
		Process: pipeline.Process{Name: "worker", Command: []string{"sh", "-c", script}, Signal: "TERM", StopGrace: 5 * time.Second},
	}
}

func (s Subject) start(t *testing.T, spec pipeline.ReplicaSpec) pipeline.Replica {
	t.Helper()
	r, err := s.Target.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if r.Name != spec.Name || r.App != spec.App || r.Process != spec.Process.Name || r.Release != spec.Release {
		t.Fatalf("started %+v, asked for %s", r, spec.Name)
	}
	return r
}

func (s Subject) find(t *testing.T, name string) (pipeline.Replica, bool) {
	t.Helper()
	all, err := s.Target.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(r pipeline.Replica) bool { return r.Name == name })
	if i < 0 {
		return pipeline.Replica{}, false
	}
	return all[i], true
}

// eventually polls until ok or twenty seconds are over.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timeout: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// get asks a replica until it answers.
func get(t *testing.T, r pipeline.Replica) string {
	t.Helper()
	if !r.Address.IsValid() {
		t.Fatalf("replica %s has no address", r.Name)
	}
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var text []byte
	eventually(t, r.Name+" answers", func() bool {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Address.String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(request)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, err = io.ReadAll(answer.Body)
		return err == nil && answer.StatusCode == http.StatusOK
	})
	return strings.TrimSpace(string(text))
}

func (s Subject) waitLog(t *testing.T, name, want string) {
	t.Helper()
	eventually(t, name+" logs "+want, func() bool {
		r, err := s.Target.Report(t.Context(), name)
		return err == nil && slices.Contains(r.Log, want)
	})
}

func answers(t *testing.T, s Subject) {
	one, two := s.start(t, s.web("shop.web.1", "one")), s.start(t, s.web("shop.web.2", "two"))
	if !one.Running || !two.Running {
		t.Errorf("started as %+v and %+v", one, two)
	}
	if one.Address == two.Address {
		t.Errorf("both are at %s", one.Address)
	}
	if got := get(t, one); got != "one" {
		t.Errorf("the first answers %q", got)
	}
	if got := get(t, two); got != "two" {
		t.Errorf("the second answers %q", got)
	}
	listed, ok := s.find(t, one.Name)
	if !ok || !reflect.DeepEqual(listed, one) {
		t.Errorf("started as %+v, listed as %+v", one, listed)
	}
}

func startTwice(t *testing.T, s Subject) {
	first := s.start(t, s.web("shop.web.1", "first"))
	if got := get(t, first); got != "first" {
		t.Fatalf("it answers %q", got)
	}
	if again := s.start(t, s.web("shop.web.1", "second")); !reflect.DeepEqual(again, first) {
		t.Errorf("started as %+v, again as %+v", first, again)
	}
	if got := get(t, first); got != "first" {
		t.Errorf("after the second start it answers %q", got)
	}
}

func startDead(t *testing.T, s Subject) {
	s.start(t, s.worker("shop.worker.1", "exit 1"))
	eventually(t, "it is dead", func() bool { r, ok := s.find(t, "shop.worker.1"); return ok && !r.Running })
	s.start(t, s.worker("shop.worker.1", "echo alive; exec sleep 1000"))
	s.waitLog(t, "shop.worker.1", "alive")
}

func list(t *testing.T, s Subject) {
	s.start(t, s.worker("shop.worker.1", "exec sleep 1000"))
	s.start(t, s.worker("shop.worker.2", "exit 0"))
	other := s.worker("blog.worker.1", "exec sleep 1000")
	other.App = "blog"
	s.start(t, other)
	eventually(t, "one has ended", func() bool { r, ok := s.find(t, "shop.worker.2"); return ok && !r.Running })
	for app, want := range map[string]string{
		"shop": "shop.worker.1 true, shop.worker.2 false", "blog": "blog.worker.1 true", "none": "",
		"": "blog.worker.1 true, shop.worker.1 true, shop.worker.2 false",
	} {
		replicas, err := s.Target.List(t.Context(), app)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range replicas {
			got = append(got, fmt.Sprint(r.Name, " ", r.Running))
		}
		slices.Sort(got)
		if strings.Join(got, ", ") != want {
			t.Errorf("app %q: %q, want %q", app, got, want)
		}
	}
}

func stopAsks(t *testing.T, s Subject) {
	spec := s.worker("shop.worker.1", `trap 'touch /data/asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done`)
	spec.Volumes = []pipeline.Volume{{Name: "data", Path: "/data"}}
	s.start(t, spec)
	s.waitLog(t, spec.Name, "ready")
	began := time.Now()
	if err := s.Target.Stop(t.Context(), spec.Name, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("a polite replica took %v to stop", took)
	}
	if r, ok := s.find(t, spec.Name); ok {
		t.Errorf("it is still there: %+v", r)
	}
	if code, err := s.Target.Run(t.Context(), spec, []string{"sh", "-c", "test -e /data/asked"}, io.Discard); code != 0 || err != nil {
		t.Errorf("it was not asked: %d, %v", code, err)
	}
}

func stopKills(t *testing.T, s Subject) {
	s.start(t, s.worker("shop.worker.1", `trap '' TERM; echo ready; while :; do sleep 0.05; done`))
	s.waitLog(t, "shop.worker.1", "ready")
	if err := s.Target.Stop(t.Context(), "shop.worker.1", 300*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if r, ok := s.find(t, "shop.worker.1"); ok {
		t.Errorf("it is still there: %+v", r)
	}
}

func stopUnknown(t *testing.T, s Subject) {
	for range 2 {
		if err := s.Target.Stop(t.Context(), "shop.none.1", time.Second); err != nil {
			t.Error(err)
		}
	}
}

func report(t *testing.T, s Subject) {
	s.start(t, s.worker("shop.worker.1", "seq 80; echo bad >&2; exit 9"))
	eventually(t, "it has ended", func() bool { r, ok := s.find(t, "shop.worker.1"); return ok && !r.Running })
	r, err := s.Target.Report(t.Context(), "shop.worker.1")
	if err != nil {
		t.Fatal(err)
	}
	if r.Running || r.ExitCode != 9 || r.OOM {
		t.Errorf("%+v", r)
	}
	if len(r.Log) == 0 || len(r.Log) > 50 || !slices.Contains(r.Log, "bad") || !slices.Contains(r.Log, "80") || slices.Contains(r.Log, "1") {
		t.Errorf("log %q", r.Log)
	}
	if _, err := s.Target.Report(t.Context(), "shop.none.1"); err == nil {
		t.Error("a report on nobody")
	}
}

func volumes(t *testing.T, s Subject) {
	spec := s.worker("shop.worker.1", "echo kept > /data/file; echo ready; exec sleep 1000")
	spec.Volumes = []pipeline.Volume{{Name: "data", Path: "/data"}}
	s.start(t, spec)
	s.waitLog(t, spec.Name, "ready")
	if err := s.Target.Stop(t.Context(), spec.Name, 0); err != nil {
		t.Fatal(err)
	}
	spec.Name, spec.Process.Command = "shop.worker.2", []string{"sh", "-c", "cat /data/file; exec sleep 1000"}
	s.start(t, spec)
	s.waitLog(t, spec.Name, "kept")
	other := spec
	other.Name, other.App, other.Process.Command = "blog.worker.1", "blog", []string{"sh", "-c", "test -e /data/file || echo empty; exec sleep 1000"}
	s.start(t, other)
	s.waitLog(t, other.Name, "empty")
}

func run(t *testing.T, s Subject) {
	var log bytes.Buffer
	spec := s.worker("shop.command.r7", "exec sleep 1000")
	spec.Env = map[string]string{"WORD": "there"}
	code, err := s.Target.Run(t.Context(), spec, []string{"sh", "-c", `echo "hello $WORD"; exit 3`}, &log)
	if err != nil || code != 3 || log.String() != "hello there\n" {
		t.Errorf("%d, %v, %q", code, err, log.String())
	}
	if r, ok := s.find(t, spec.Name); ok {
		t.Errorf("it is still there: %+v", r)
	}
	if code, err = s.Target.Run(t.Context(), spec, []string{"true"}, io.Discard); err != nil || code != 0 {
		t.Errorf("a second run: %d, %v", code, err)
	}
}

func runCancelled(t *testing.T, s Subject) {
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := s.Target.Run(ctx, s.worker("shop.command.r7", ""), []string{"sleep", "1000"}, io.Discard)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if r, ok := s.find(t, "shop.command.r7"); ok {
		t.Errorf("it goes on: %+v", r)
	}
}

func missingImage(t *testing.T, s Subject) {
	spec := s.worker("shop.worker.1", "true")
	spec.Image = "sha256:" + strings.Repeat("0", 64)
	if r, err := s.Target.Start(t.Context(), spec); err == nil {
		t.Errorf("started %+v", r)
	}
	if r, ok := s.find(t, spec.Name); ok {
		t.Errorf("something is left: %+v", r)
	}
}
