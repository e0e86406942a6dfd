package pipeline

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Step is one journaled part of a deployment. Do may run twice and must then
// end in the same state. Undo, where there is something to undo, must work
// after a Do that ran wholly, partly or not at all, and may run twice too.
type Step struct {
	Name   string
	Switch bool // part of the change of traffic: not cancelled, only undone
	Do     func(context.Context, *run) error
	Undo   func(context.Context, *run) error
}

// Routed is the name of the process that a route leads to.
const Routed = "web"

// Plan lists the steps of a deployment. It depends only on the facts that are
// known at its start, so that every agent that resumes it gets the same list.
func Plan(f Facts, t Trigger) []Step {
	var steps []Step
	if t.Kind != Rollback {
		steps = append(steps,
			Step{Name: "fetch", Do: func(ctx context.Context, r *run) error { return r.fetch(ctx, t) }},
			Step{Name: "build", Do: method((*run).build)},
			Step{Name: "release", Do: method((*run).release)})
		if len(f.App.Policy.ReleaseCommand) > 0 {
			steps = append(steps, Step{Name: "command", Do: method((*run).command)})
		}
	}
	for _, b := range batches(f) {
		steps = append(steps, b.steps()...)
	}
	if routed(f.App) != nil {
		steps = append(steps, Step{Name: "prove", Switch: true, Do: method((*run).prove)})
	}
	if f.App.Policy.Bake > 0 {
		steps = append(steps, Step{Name: "bake", Switch: true, Do: method((*run).bake)})
	}
	return append(steps, Step{Name: "settle", Switch: true, Do: method((*run).settle)})
}

// method turns a method of run into a step's Do.
func method(f func(*run, context.Context) error) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error { return f(r, ctx) }
}

// routed returns the process that gets requests, or nil.
func routed(a App) *Process {
	for i, p := range a.Processes {
		if p.Name == Routed && p.Port > 0 && len(a.Domains) > 0 {
			return &a.Processes[i]
		}
	}
	return nil
}

// batch is one turn of the rolling replacement of one process: some new
// replicas come, some old ones go.
type batch struct {
	process string
	number  int      // from 1
	fresh   []int    // indexes of the new replicas, from 1
	first   []string // old replicas that go before the new ones come (unavailable)
	after   []string // old replicas that go once the new ones are routed
	routed  bool
}

// batches cuts the replacement of every process into turns of surge +
// unavailable replicas. Processes that the new config no longer has only go.
func batches(f Facts) []batch {
	var all []batch
	for _, name := range processNames(f) {
		want := 0
		if p := process(f.App, name); p != nil {
			want = p.Replicas
		}
		old := names(f.Old, name)
		ahead := max(f.App.Policy.Unavailable, 0)
		size := max(f.App.Policy.Surge+ahead, 1)
		turns := max((want+size-1)/size, 1)
		for t := range turns {
			b := batch{process: name, number: t + 1, routed: name == Routed && routed(f.App) != nil}
			for i := t * size; i < min((t+1)*size, want); i++ {
				b.fresh = append(b.fresh, i+1)
			}
			lo, hi := min(t*size, len(old)), min((t+1)*size, len(old))
			if t == turns-1 {
				hi = len(old)
			}
			cut := lo + min(ahead, hi-lo)
			b.first, b.after = old[lo:cut], old[cut:hi]
			all = append(all, b)
		}
	}
	return all
}

func processNames(f Facts) []string {
	seen := map[string]bool{}
	for _, p := range f.App.Processes {
		seen[p.Name] = true
	}
	for _, o := range f.Old {
		seen[o.Process] = true
	}
	list := make([]string, 0, len(seen))
	for n := range seen {
		list = append(list, n)
	}
	// The routed process last: workers that fail never touch traffic.
	sort.Slice(list, func(i, j int) bool {
		if (list[i] == Routed) != (list[j] == Routed) {
			return list[j] == Routed
		}
		return list[i] < list[j]
	})
	return list
}

func names(rs []Replica, process string) []string {
	var list []string
	for _, r := range rs {
		if r.Process == process {
			list = append(list, r.Name)
		}
	}
	slices.Sort(list)
	return list
}

func process(a App, name string) *Process {
	for i := range a.Processes {
		if a.Processes[i].Name == name {
			return &a.Processes[i]
		}
	}
	return nil
}

// serving returns the running replicas, sorted by name, that belong to the live
// release: those a deployment must replace. Others are left to reconciliation.
func serving(rs []Replica, live *Release) []Replica {
	var list []Replica
	for _, r := range rs {
		if r.Running && live != nil && r.Release == live.Number {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b Replica) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// steps are the steps of one turn. Undo runs backwards: what is stopped is
// started again and probed, then the route goes back, then what is new goes.
func (b batch) steps() []Step {
	var s []Step
	add := func(verb string, do, undo func(context.Context, *run) error) {
		s = append(s, Step{Name: stepName(b, verb), Switch: true, Do: do, Undo: undo})
	}
	bring := func(which []string) func(context.Context, *run) error {
		return func(ctx context.Context, r *run) error { return r.restart(ctx, which) }
	}
	route := func(c cut) func(context.Context, *run) error {
		return func(ctx context.Context, r *run) error { return r.route(ctx, c) }
	}
	drain := func(which []string) func(context.Context, *run) error {
		return func(ctx context.Context, r *run) error { return r.drain(ctx, r.addresses(which)) }
	}
	stop := func(which []string) func(context.Context, *run) error {
		return func(ctx context.Context, r *run) error { return r.stop(ctx, which) }
	}
	before, during, after := cut{b, 0}, cut{b, 1}, cut{b, 2}
	if len(b.first) > 0 {
		if b.routed {
			add("take", route(during), route(before))
			add("clear", drain(b.first), nil)
		}
		add("vacate", stop(b.first), bring(b.first))
	}
	if len(b.fresh) > 0 {
		add("start", func(ctx context.Context, r *run) error { return r.start(ctx, b) },
			func(ctx context.Context, r *run) error { return r.discard(ctx, b) })
		add("probe", func(ctx context.Context, r *run) error { return r.probe(ctx, b) }, nil)
	}
	if b.routed {
		add("route", route(after), func(ctx context.Context, r *run) error { return r.unroute(ctx, b, during) })
	}
	if len(b.after) > 0 {
		if b.routed {
			add("drain", drain(b.after), nil)
		}
		add("stop", stop(b.after), bring(b.after))
	}
	return s
}

func stepName(b batch, verb string) string {
	return fmt.Sprintf("%s.%d.%s", b.process, b.number, verb)
}

// cut is a moment of the replacement: during turn b, after so many of its parts
// (0 none, 1 the first old ones are out, 2 the new ones are in, the old out).
type cut struct {
	batch
	part int
}

// servers lists the addresses that the route has at a moment of the
// replacement: new replicas of the turns before, old ones of the turns after.
func (r *run) servers(c cut) []string {
	var in []string
	for _, b := range batches(r.facts) {
		if !b.routed {
			continue
		}
		came := b.number < c.number || b.number == c.number && c.part == 2
		left := came || b.number == c.number && c.part == 1
		if came {
			for _, i := range b.fresh {
				in = append(in, r.replicaName(b.process, i))
			}
			continue
		}
		if !left {
			in = append(in, b.first...)
		}
		in = append(in, b.after...)
	}
	return in
}
