package nginx

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"naru/pipeline"
)

// change is one waiting Route call. An empty file takes the app away.
type change struct {
	app
	err  error         // valid when done is closed
	done chan struct{} // closed by the batch
}

func (c *change) removes() bool { return c.file.gen == "" }

func (c *change) finish(err error) {
	c.err = err
	close(c.done)
}

var errReplaced = errors.New("replaced by a newer route of the same app")

// enqueue puts c in line. A waiting change of the same app was never tried and is
// answered that it is obsolete.
func (r *Router) enqueue(c *change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = slices.DeleteFunc(r.queue, func(old *change) bool {
		same := old.route.App == c.route.App
		if same {
			old.finish(errReplaced)
		}
		return same
	})
	r.queue = append(r.queue, c)
}

// dequeue reports whether c was still waiting, and takes it out.
func (r *Router) dequeue(c *change) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.queue, c)
	if i >= 0 {
		r.queue = slices.Delete(r.queue, i, i+1)
	}
	return i >= 0
}

func (r *Router) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue)
}

// batchLimit bounds everything that one batch may wait for; a Route call returns
// in at most twice this time.
const batchLimit = 2 * time.Minute

// runBatch takes the waiting changes through nginx. The turn is held. Changes that
// arrive while it waits for quiet join; later ones are the next batch.
func (r *Router) runBatch(ctx context.Context) {
	if r.waiting() == 0 {
		return // somebody else's batch took ours along
	}
	ctx, cancel := context.WithTimeout(ctx, batchLimit)
	defer cancel()
	if err := r.ensureMaster(ctx); err != nil {
		r.fail(r.takeQueue(), err)
		return
	}
	r.hold()
	defer r.release()
	r.waitQuiet(ctx)
	batch := r.sift(ctx, r.takeQueue())
	if len(batch) == 0 {
		return
	}
	err := r.switchTo(ctx, batch)
	if err == nil || len(batch) == 1 {
		r.settle(batch, err)
		return
	}
	// Together they passed the test and yet could not be loaded: let each stand alone.
	for _, c := range batch {
		one := []*change{c}
		r.settle(one, r.switchTo(ctx, one))
	}
}

func (r *Router) takeQueue() []*change {
	r.mu.Lock()
	defer r.mu.Unlock()
	batch := r.queue
	r.queue = nil
	return batch
}

func (r *Router) fail(batch []*change, err error) {
	for _, c := range batch {
		c.finish(err)
	}
}

func (r *Router) settle(batch []*change, err error) {
	r.publish()
	for _, c := range batch {
		if err == nil {
			r.opts.Log("route is live", "app", c.route.App, "servers", c.route.Servers, "domains", c.route.Domains)
		}
		c.finish(err)
	}
}

// sift returns the changes that nginx accepts; the others are finished with their
// errors. The turn is held.
func (r *Router) sift(ctx context.Context, batch []*change) []*change {
	good, refused := r.accepted(ctx, r.live, batch)
	for i, err := range refused {
		r.opts.Log("route is refused", "app", batch[i].route.App, "error", err)
		batch[i].finish(err)
	}
	return good
}

// accepted tests all at once, and one after the other only when that fails.
// refused is by index into batch.
func (r *Router) accepted(ctx context.Context, base map[string]app, batch []*change) (good []*change, refused map[int]error) {
	refused = make(map[int]error)
	for i, c := range batch {
		if err := conflict(apply(base, good), c); err != nil {
			refused[i] = err
			continue
		}
		good = append(good, c)
	}
	err := r.test(ctx, apply(base, good))
	if err == nil || len(good) == 0 {
		return good, refused
	}
	if baseErr := r.test(ctx, base); baseErr != nil {
		err = fmt.Errorf("the configuration is refused even without this route: %w", baseErr)
		for i := range batch {
			refused[i] = err
		}
		return nil, refused
	}
	tried := good
	good = nil
	for _, c := range tried {
		if err := r.test(ctx, apply(base, append(slices.Clip(good), c))); err != nil {
			refused[slices.Index(batch, c)] = err
			continue
		}
		good = append(good, c)
	}
	return good, refused
}

// conflict is what nginx only warns of: two servers of one name, of which the
// second is ignored.
func conflict(base map[string]app, c *change) error {
	for name, other := range base {
		if name == c.route.App || c.removes() {
			continue
		}
		for _, d := range c.route.Domains {
			if slices.Contains(other.route.Domains, d) {
				return fmt.Errorf("domain %s belongs to app %s", d, name)
			}
		}
	}
	return nil
}

// apply returns base after the changes.
func apply(base map[string]app, batch []*change) map[string]app {
	after := maps.Clone(base)
	for _, c := range batch {
		if c.removes() {
			delete(after, c.route.App)
		} else {
			after[c.route.App] = c.app
		}
	}
	return after
}

func routesOf(apps map[string]app) map[string]pipeline.Route {
	all := make(map[string]pipeline.Route, len(apps))
	for name, a := range apps {
		all[name] = a.route
	}
	return all
}

// switchTo installs, reloads and proves tested changes, or leaves everything as it
// was. The turn is held.
func (r *Router) switchTo(ctx context.Context, batch []*change) error {
	before, beforeMain, beforeSize := r.live, r.mainNow, r.size
	after := apply(before, batch)
	size := beforeSize.cover(routesOf(after))
	main, err := r.house.renderMain(size)
	if err != nil {
		return err
	}
	plan := r.difference(after, main)
	if err := r.remember(plan); err != nil {
		return err
	}
	r.live, r.mainNow, r.size = after, main, size
	err = r.install(plan)
	if err == nil {
		err = r.reload(ctx, plan)
	}
	if err == nil {
		return r.confirm()
	}
	r.live, r.mainNow, r.size = before, beforeMain, beforeSize
	r.opts.Log("reload is undone", "error", err)
	// The undoing has its own time: ctx may be why the reload failed.
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), batchLimit)
	defer cancel()
	return errors.Join(err, r.undo(undo))
}

// undo puts the former files back and proves them. The turn is held.
func (r *Router) undo(ctx context.Context) error {
	if err := r.restore(); err != nil {
		return fmt.Errorf("put the former files back: %w", err)
	}
	if err := r.ensureMaster(ctx); err != nil {
		return err
	}
	// Also when the former files still answer: a slow master may be about to start
	// workers with what it read before they came back.
	if err := r.reload(ctx, nil); err != nil {
		return fmt.Errorf("return to the former files: %w", err)
	}
	return nil
}
