package pipeline

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

// Reconcile makes what runs of an app agree with its live release: dead
// replicas are started again, missing ones are added, those of no use are
// removed after the route has left them, and the route is set. It must not run
// while a deployment of the app does. Nothing to do costs one List and one
// Route of equal content. It returns what it changed, for the log.
func (e *Engine) Reconcile(ctx context.Context, live Release, log io.Writer) (changes []string, err error) {
	have, err := e.Target.List(ctx, live.App)
	if err != nil {
		return nil, fmt.Errorf("list replicas: %w", err)
	}
	r := &run{e: e, id: live.Deployment, log: log, facts: Facts{App: live.Config, Live: &live, Release: &live}}
	var keep []Replica
	for i := range live.Config.Processes {
		p := &live.Config.Processes[i]
		mine := slices.DeleteFunc(slices.Clone(have), func(h Replica) bool {
			return h.Process != p.Name || h.Release != live.Number
		})
		// Running ones first: of too many, the dead go.
		slices.SortStableFunc(mine, func(a, b Replica) int { return rank(a) - rank(b) })
		got, did, err := r.fill(ctx, *p, mine)
		changes = append(changes, did...)
		if err != nil {
			return changes, err
		}
		keep = append(keep, got...)
	}
	r.facts.New = keep
	if routed(live.Config) != nil {
		if err := r.routeTo(ctx, names(keep, Routed)); err != nil {
			return changes, fmt.Errorf("route: %w", err)
		}
	}
	did, err := r.sweep(ctx, have, keep)
	return append(changes, did...), err
}

func rank(r Replica) int {
	if r.Running {
		return 0
	}
	return 1
}

// fill brings a process to its number of replicas.
func (r *run) fill(ctx context.Context, p Process, mine []Replica) (keep []Replica, did []string, err error) {
	for _, m := range mine {
		if len(keep) == p.Replicas {
			break
		}
		if !m.Running {
			if m, err = r.launch(ctx, r.facts.Release, p.Name, m.Name); err != nil {
				return keep, did, err
			}
			did = append(did, "started "+m.Name+" again")
		}
		keep = append(keep, m)
	}
	for i := 1; len(keep) < p.Replicas; i++ {
		name := fmt.Sprintf("%s.%s.r%d.%s.%d", r.facts.App.Name, p.Name, r.facts.Release.Number, stamp(), i)
		m, err := r.launch(ctx, r.facts.Release, p.Name, name)
		if err != nil {
			return keep, did, err
		}
		did = append(did, "started "+m.Name)
		keep = append(keep, m)
	}
	return keep, did, nil
}

func stamp() string { return fmt.Sprintf("%06x", time.Now().UnixMilli()&0xffffff) }

// sweep removes the replicas that are not in keep: leftovers of a deployment
// that was undone, or of an older release.
func (r *run) sweep(ctx context.Context, have, keep []Replica) (did []string, err error) {
	for _, h := range have {
		if find(keep, h.Name).Name != "" {
			continue
		}
		if h.Running && h.Address.IsValid() {
			r.facts.Old = []Replica{h}
			if err := r.drain(ctx, r.addresses([]string{h.Name})); err != nil {
				return did, err
			}
		}
		if err := r.e.Target.Stop(ctx, h.Name, sweepGrace); err != nil {
			return did, err
		}
		did = append(did, "removed "+h.Name+", which the live release does not need")
	}
	return did, nil
}

const sweepGrace = 10 * time.Second
