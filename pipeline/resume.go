package pipeline

import (
	"context"
	"fmt"
)

// repair is resume, which no cancel may end once the switch has begun.
func (r *run) repair(ctx context.Context) error {
	ctx, stop := r.unlessSwitching(ctx)
	defer stop()
	if err := r.resume(ctx); err != nil {
		return r.fail(ctx, Step{Name: "resume"}, err)
	}
	return nil
}

func (r *run) unlessSwitching(ctx context.Context) (context.Context, context.CancelFunc) {
	for _, s := range r.steps {
		if _, begun := r.done[s.Name]; begun && s.Switch {
			return onlyShutdown(ctx)
		}
	}
	return ctx, func() {}
}

// resume repairs what was lost while no agent watched: a reboot or a crash may
// have ended replicas that the journal counts on. They are started again and
// probed, and if the route is in the middle of its change, it is set again,
// since addresses may differ. In a first run there is nothing to do.
func (r *run) resume(ctx context.Context) error {
	want, moment := r.expected()
	if len(want) == 0 {
		return nil
	}
	have, err := r.e.Target.List(ctx, r.facts.App.Name)
	if err != nil {
		return fmt.Errorf("list replicas: %w", err)
	}
	lost := false
	for _, w := range want {
		if h := find(have, w.Name); h.Running && h.Address == w.Address {
			continue
		}
		lost = true
		if err := r.recoverReplica(ctx, w); err != nil {
			return err
		}
	}
	if !lost || moment == nil {
		return nil
	}
	return r.route(ctx, *moment)
}

// expected lists the replicas that should be running by what the journal says,
// and the moment that the route last reached (nil: not routed at all).
func (r *run) expected() (want []Replica, moment *cut) {
	if !r.again {
		return nil, nil
	}
	for _, b := range batches(r.facts) {
		was := func(verb string) Phase { return r.done[stepName(b, verb)] }
		if b.routed && (moment == nil || was("take") == Done) {
			moment = &cut{b, 0}
			if was("take") == Done {
				moment.part = 1
			}
		}
		if b.routed && was("route") == Done {
			moment = &cut{b, 2}
		}
		if was("start") == Done {
			for _, i := range b.fresh {
				want = append(want, find(r.facts.New, r.replicaName(b.process, i)))
			}
		}
		want = append(want, r.still(b.first, was("vacate"))...)
		want = append(want, r.still(b.after, was("stop"))...)
	}
	return want, moment
}

// still returns the old replicas of a turn unless their stop has begun.
func (r *run) still(old []string, stop Phase) (list []Replica) {
	if stop == Started || stop == Done {
		return nil
	}
	for _, name := range old {
		list = append(list, find(r.facts.Old, name))
	}
	return list
}

func (r *run) recoverReplica(ctx context.Context, w Replica) error {
	rel := r.facts.Release
	if find(r.facts.New, w.Name).Name == "" {
		rel = r.facts.Live
	}
	r.say("%s was lost while no agent ran: starting it again", w.Name)
	got, err := r.launch(ctx, rel, w.Process, w.Name)
	if err != nil {
		return err
	}
	if rel == r.facts.Release {
		r.facts.New = put(r.facts.New, got)
	} else {
		r.facts.Old = put(r.facts.Old, got)
	}
	return nil
}
