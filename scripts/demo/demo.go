package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"naru/bench/load"
	"naru/bench/stage"
)

// demo is the stage and the clock that its lines show.
type demo struct {
	*stage.Stage
	began time.Time
}

func newDemo(ctx context.Context) (*demo, error) {
	d := &demo{began: time.Now()}
	dockerfile, err := os.ReadFile("Dockerfile.sample")
	if err != nil {
		return nil, fmt.Errorf("run me from the repository's folder: %w", err)
	}
	d.say("setting the stage: base image from busybox-static, bare git repository, config")
	d.Stage, err = stage.New(ctx, stage.Options{Naru: "bin/naru", Dockerfile: dockerfile})
	return d, err
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("%6.2fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) prepare(ctx context.Context) error {
	if err := d.Serve(ctx); err != nil {
		return err
	}
	d.say("agent is up: API %s, nginx %s", d.API, d.HTTP)
	return nil
}

func (d *demo) push(ctx context.Context, version string) error {
	d.say("git push %s", version)
	return d.Push(ctx, version)
}

// deliverAndKill delivers the push and kills the agent as soon as the
// deployment has routed to its first new replica: in the middle of the roll.
func (d *demo) deliverAndKill(ctx context.Context) (string, error) {
	id, err := d.Deliver(ctx)
	if err != nil {
		return "", err
	}
	for {
		dep, err := d.Deployment(ctx, id)
		if err != nil {
			return id, err
		}
		if dep.Final() {
			return id, fmt.Errorf("the deployment ended as %s before it could be interrupted", dep.State)
		}
		if strings.HasPrefix(dep.Step, "web.1.drain") || strings.HasPrefix(dep.Step, "web.2") {
			d.say("SIGKILL to the agent in step %s", dep.Step)
			if err := d.Kill(); err != nil {
				return id, err
			}
			break
		}
	}
	answer, err := d.Answer(ctx)
	if err != nil {
		return id, err
	}
	d.say("no agent runs; %s answers", answer)
	if err := d.Serve(ctx); err != nil {
		return id, err
	}
	d.say("agent is up again")
	return id, nil
}

// loaded is what the load ended with.
type loaded struct {
	load.Report
	err error
}

// load sends until ctx ends.
func (d *demo) load(ctx context.Context) loaded {
	report, err := load.Run(ctx, load.Options{Addr: d.HTTP, Host: d.Host, Blind: true, Duration: 10 * time.Minute})
	return loaded{report, err}
}

func (d *demo) printURLs() {
	fmt.Printf(`
Left running:
  app     curl -H 'Host: %s' http://%s/
  agent   http://%s/healthz
  status  bin/naru --root %s --run %s status
  remove  bin/naru --root %s --run %s system reset --force; rm -r %s
`, d.Host, d.HTTP, d.API, d.Root(), d.Run(), d.Root(), d.Run(), d.Dir)
}

// printReport prints what the load saw.
func (d *demo) printReport(r load.Report) {
	fmt.Printf("\n  requests sent   %d (%d POST) over %d connections in %s\n", r.Sent, r.Posts, r.Dials, r.Took.Round(time.Second))
	fmt.Printf("  requests lost   %d\n", r.Losses())
	for way, n := range r.Lost {
		fmt.Printf("    %-16s %d\n", way, n)
	}
	fmt.Printf("  slowest         %s\n  answered by\n", r.Slowest.Round(time.Millisecond))
	for _, v := range slices.SortedFunc(maps.Keys(r.Versions), func(a, b string) int { return r.Versions[a].First.Compare(r.Versions[b].First) }) {
		seen := r.Versions[v]
		fmt.Printf("    %-8s %7d times, from %.2fs to %.2fs\n", v, seen.Count, seen.First.Sub(d.began).Seconds(), seen.Last.Sub(d.began).Seconds())
	}
	fmt.Println()
}

// cleanUp removes everything and checks that the machine is as before.
func (d *demo) cleanUp(err error, before stage.Snapshot) error {
	if d == nil || d.Stage == nil {
		return err
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "the agent's last words:\n%s\n", d.Log())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if clean := d.CleanUp(ctx); clean != nil {
		return errors.Join(err, fmt.Errorf("clean up: %w", clean))
	}
	after, look := stage.TakeSnapshot(ctx)
	if look != nil {
		return errors.Join(err, look)
	}
	if left := before.Compare(after); left != nil {
		return errors.Join(err, fmt.Errorf("the machine is not as before:\n%w", left))
	}
	d.say("cleaned up: mounts, links, routes, firewall rules, cgroups and processes are as before")
	return err
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
