package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"time"
)

func (r *run) fetch(ctx context.Context, t Trigger) error {
	// What a webhook says it pushed may have been replaced since: the newest
	// commit is wanted. Only a person's word names a commit.
	hint := ""
	if t.Kind == Manual {
		hint = t.Commit
	}
	c, err := r.e.Source.Fetch(ctx, r.facts.App.Repo, hint, r.log)
	if err != nil {
		return err
	}
	r.facts.Commit = c
	r.say("commit %.12s %s", c.Hash, c.Subject)
	if t.Force || r.facts.Live == nil {
		return nil
	}
	live := r.facts.Live
	if live.Commit == c.Hash && reflect.DeepEqual(live.Config, r.facts.App) {
		return &SkipError{Reason: fmt.Sprintf("commit %.12s is already live as release %d", c.Hash, live.Number)}
	}
	return r.relevant(ctx, live.Commit)
}

// relevant skips the deployment when the app watches some paths and none of
// them changed since the live commit. In doubt it deploys.
func (r *run) relevant(ctx context.Context, from string) error {
	repo := r.facts.App.Repo
	if len(repo.Paths) == 0 {
		return nil
	}
	changed, err := r.e.Source.Changed(ctx, repo, from, r.facts.Commit.Hash)
	if err != nil {
		r.say("cannot compare with the live commit (%v): deploying", err)
		return nil
	}
	for _, path := range changed {
		if matchAny(repo.Paths, path) {
			return nil
		}
	}
	return &SkipError{Reason: fmt.Sprintf("none of %d changed files matches %q", len(changed), repo.Paths)}
}

func (r *run) build(ctx context.Context) (err error) {
	if err := os.MkdirAll(r.e.Scratch, 0o700); err != nil {
		return err
	}
	dir := filepath.Join(r.e.Scratch, r.id)
	// A killed agent may have left half a tree of the same deployment.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := r.e.Source.Export(ctx, r.facts.App.Repo, r.facts.Commit.Hash, dir); err != nil {
		return err
	}
	r.facts.Image, err = r.e.Builder.Build(ctx, BuildRequest{
		App: r.facts.App.Name, Commit: r.facts.Commit, Dir: dir, Build: r.facts.App.Build, Log: r.log,
	})
	return err
}

func (r *run) release(ctx context.Context) error {
	rel, err := r.e.Releases.Create(ctx, Release{
		App: r.facts.App.Name, Deployment: r.id, Commit: r.facts.Commit.Hash, Subject: r.facts.Commit.Subject,
		Image: r.facts.Image, Config: r.facts.App, Created: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	r.facts.Release = &rel
	r.say("release %d, image %s", rel.Number, rel.Image)
	return nil
}

func (r *run) command(ctx context.Context) error {
	cmd := r.facts.App.Policy.ReleaseCommand
	s := spec(r.facts.Release, *first(r.facts.App))
	s.Name = fmt.Sprintf("%s.command.r%d", r.facts.App.Name, r.facts.Release.Number)
	code, err := r.e.Target.Run(ctx, s, cmd, r.log)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("release command %q exited with %d", cmd, code)
	}
	return nil
}

// first is the process whose limits the release command gets.
func first(a App) *Process {
	if p := process(a, Routed); p != nil {
		return p
	}
	return &a.Processes[0]
}

// spec is what runs one process of a release. A name is set by the caller.
func spec(rel *Release, p Process) ReplicaSpec {
	return ReplicaSpec{
		App: rel.App, Release: rel.Number, Image: rel.Image, Process: p, Runtime: rel.Config.Runtime,
		Env: rel.Config.Env, Volumes: rel.Config.Volumes,
	}
}

// launch starts one replica of a process as a release has it, and waits until
// it is ready.
func (r *run) launch(ctx context.Context, rel *Release, proc, name string) (Replica, error) {
	p := process(rel.Config, proc)
	if p == nil {
		return Replica{}, fmt.Errorf("release %d has no process %q", rel.Number, proc)
	}
	s := spec(rel, *p)
	s.Name = name
	got, err := r.e.Target.Start(ctx, s)
	if err != nil {
		return got, fmt.Errorf("start %s: %w", name, err)
	}
	r.warn(got)
	return got, r.ready(ctx, *p, got)
}

// warn puts into the log what the target has to say about a replica.
func (r *run) warn(of Replica) {
	for _, w := range of.Warnings {
		r.say("%s: warning: %s", of.Name, w)
	}
}

// replicaName is the name of the i-th new replica of a process. It carries the
// deployment, so that a rollback to a release that still runs never takes its
// own old replicas for new ones.
func (r *run) replicaName(process string, i int) string {
	tag := r.id[max(0, len(r.id)-6):]
	return fmt.Sprintf("%s.%s.r%d.%s.%d", r.facts.App.Name, process, number(r.facts.Release), tag, i)
}

func (r *run) start(ctx context.Context, b batch) error {
	p := process(r.facts.App, b.process)
	for _, i := range b.fresh {
		s := spec(r.facts.Release, *p)
		s.Name = r.replicaName(b.process, i)
		got, err := r.e.Target.Start(ctx, s)
		if err != nil {
			return fmt.Errorf("start %s: %w", s.Name, err)
		}
		r.facts.New = put(r.facts.New, got)
		where := ""
		if got.Address.IsValid() { // a worker has none
			where = " at " + got.Address.String()
		}
		r.say("%s started%s", got.Name, where)
		r.warn(got)
	}
	return nil
}

// discard removes the new replicas of a turn; they are in no route any more.
func (r *run) discard(ctx context.Context, b batch) error {
	p := process(r.facts.App, b.process)
	for _, i := range b.fresh {
		if err := r.e.Target.Stop(ctx, r.replicaName(b.process, i), p.StopGrace); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) probe(ctx context.Context, b batch) error {
	p := process(r.facts.App, b.process)
	for _, i := range b.fresh {
		if err := r.ready(ctx, *p, find(r.facts.New, r.replicaName(b.process, i))); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) ready(ctx context.Context, p Process, which Replica) error {
	pr := prober{target: r.e.Target, process: p, replica: which, announce: r.e.Router.Announce}
	took, err := pr.wait(ctx)
	if err != nil {
		return err
	}
	r.say("%s is ready after %s", which.Name, took.Round(time.Millisecond))
	return nil
}

// route makes the router send requests to what must serve at the moment c.
func (r *run) route(ctx context.Context, c cut) error {
	return r.routeTo(ctx, r.servers(c))
}

func (r *run) routeTo(ctx context.Context, which []string) error {
	route := Route{App: r.facts.App.Name, Domains: r.facts.App.Domains, Drain: r.facts.App.Policy.Drain}
	route.Servers = r.addresses(which)
	if err := r.e.Router.Route(ctx, route); err != nil {
		return err
	}
	r.say("route %v → %v", route.Domains, route.Servers)
	return nil
}

// unroute takes the new replicas of a turn out of the route and waits until no
// request can reach them, so that the Undo before it may remove them.
func (r *run) unroute(ctx context.Context, b batch, c cut) error {
	if err := r.route(ctx, c); err != nil {
		return err
	}
	var out []string
	for _, i := range b.fresh {
		out = append(out, r.replicaName(b.process, i))
	}
	return r.drain(ctx, r.addresses(out))
}

func (r *run) drain(ctx context.Context, addrs []netip.AddrPort) error {
	if len(addrs) == 0 {
		return nil
	}
	return r.e.Router.Retire(ctx, addrs, r.facts.App.Policy.Drain)
}

// stop ends old replicas. The grace is that of the config they ran with.
func (r *run) stop(ctx context.Context, which []string) error {
	for _, name := range which {
		old := find(r.facts.Old, name)
		grace := 10 * time.Second
		if p := process(r.facts.Live.Config, old.Process); p != nil {
			grace = p.StopGrace
		}
		if err := r.e.Target.Stop(ctx, name, grace); err != nil {
			return err
		}
		r.say("%s stopped", name)
	}
	return nil
}

// restart brings stopped replicas of the old release back, and waits until they
// are ready. Their addresses may be new.
func (r *run) restart(ctx context.Context, which []string) error {
	for _, name := range which {
		got, err := r.launch(ctx, r.facts.Live, find(r.facts.Old, name).Process, name)
		if err != nil {
			return err
		}
		r.facts.Old = put(r.facts.Old, got)
	}
	return nil
}

// provingTime is how long the router may take to show the new release.
const provingTime = 15 * time.Second

// prove sends a real request through the router: only its answer makes a
// release live.
func (r *run) prove(ctx context.Context) error {
	p := routed(r.facts.App)
	if p.Replicas == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, provingTime)
	defer cancel()
	route := Route{App: r.facts.App.Name, Domains: r.facts.App.Domains, Drain: r.facts.App.Policy.Drain}
	for _, n := range r.facts.New {
		if n.Process == Routed {
			route.Servers = append(route.Servers, n.Address)
		}
	}
	addr, err := r.e.Router.Prove(ctx, route, p.Health.Path)
	if err != nil {
		return err
	}
	for _, n := range r.facts.New {
		if n.Address == addr {
			r.say("answered through the router by %s", n.Name)
			return nil
		}
	}
	return fmt.Errorf("a request through the router was answered by %s, which is not of release %d", addr, r.facts.Release.Number)
}

// bake watches the new replicas for the bake time.
func (r *run) bake(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.facts.App.Policy.Bake, errBaked)
	defer cancel()
	for {
		pause := time.Second
		for _, n := range r.facts.New {
			p := process(r.facts.App, n.Process)
			pr := prober{target: r.e.Target, process: *p, replica: n}
			err := pr.once(ctx)
			if errors.Is(context.Cause(ctx), errBaked) {
				return nil
			}
			if err != nil {
				return pr.explain(context.WithoutCancel(ctx), err)
			}
			pause = min(pause, p.Health.Interval)
		}
		if err := sleep(ctx, pause); errors.Is(err, errBaked) {
			return nil
		}
	}
}

var errBaked = errors.New("the bake time is over")

func (r *run) settle(ctx context.Context) error {
	rel := r.facts.Release
	return r.e.Releases.SetLive(ctx, rel.App, rel.Number, r.facts.App.Policy.Keep)
}

// addresses returns where the named replicas listen; those without a port are
// left out.
func (r *run) addresses(which []string) []netip.AddrPort {
	var list []netip.AddrPort
	for _, name := range which {
		n := find(r.facts.New, name)
		if n.Name == "" {
			n = find(r.facts.Old, name)
		}
		if n.Address.IsValid() {
			list = append(list, n.Address)
		}
	}
	return list
}

func find(rs []Replica, name string) Replica {
	for _, r := range rs {
		if r.Name == name {
			return r
		}
	}
	return Replica{}
}

func put(rs []Replica, r Replica) []Replica {
	list := make([]Replica, 0, len(rs)+1)
	replaced := false
	for _, have := range rs {
		if have.Name == r.Name {
			have, replaced = r, true
		}
		list = append(list, have)
	}
	if !replaced {
		list = append(list, r)
	}
	return list
}
