package nginx

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// announceLife is how long an announcement holds without a Route.
const announceLife = 10 * time.Second

// announcement is a time in which the present workers make no promises.
type announcement struct {
	at     time.Time
	open   map[connKey]bool // client connections that were open when it began
	expire *time.Timer
	held   bool // a batch needs it: it must not expire
}

type connKey struct{ local, remote netip.AddrPort }

// Announce tells the present workers to end each connection with its next answer,
// so that a Route that follows finds none to break. Repeating it prolongs it; it
// ends by itself 10 s after the last call. New nginx needs none: then it does
// nothing.
func (r *Router) Announce(context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.started {
		r.announceLocked()
	}
}

func (r *Router) announceLocked() {
	if r.house.build.drainsItself() || r.stopped {
		return
	}
	if r.ann != nil {
		r.ann.expire.Reset(announceLife)
		return
	}
	r.flagWorkers()
	// Looked at after the flags are there: whoever connects later is told to close.
	open, err := r.clients()
	if err != nil {
		r.opts.Log("open connections are unknown: waiting the full time", "error", err)
	}
	r.ann = &announcement{at: time.Now(), open: open, expire: time.AfterFunc(announceLife, r.expire)}
}

func (r *Router) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ann != nil && !r.ann.held {
		r.ann = nil
		r.dropFlags()
	}
}

// hold makes an announcement if there is none and keeps it until release.
func (r *Router) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.announceLocked()
	if r.ann != nil {
		r.ann.held = true
	}
}

// release ends the announcement; workers that are shutting down stay announced,
// for a client that connected early may send its first request to them.
func (r *Router) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ann != nil {
		r.ann.expire.Stop()
		r.ann = nil
	}
	r.dropFlags()
}

// waitQuiet returns when no connection from before the announcement is left, or
// when every idle one of them has outlived what nginx had promised it: what then
// remains has a request under way or never sent one, and a reload closes neither.
func (r *Router) waitQuiet(ctx context.Context) {
	for {
		r.mu.Lock()
		a := r.ann
		if a != nil {
			r.flagWorkers() // the master may have replaced a worker that crashed
		}
		r.mu.Unlock()
		if a == nil || time.Since(a.at) > keepaliveTimeout+500*time.Millisecond {
			return
		}
		now, err := r.clients()
		if err == nil && a.open != nil && !anyOf(a.open, now) {
			return
		}
		if sleep(ctx, 2*tick) != nil {
			return
		}
	}
}

func anyOf(a, b map[connKey]bool) bool {
	for k := range a {
		if b[k] {
			return true
		}
	}
	return false
}

// clients are the established connections to the public addresses.
func (r *Router) clients() (map[connKey]bool, error) {
	table, err := tcpTable()
	if err != nil {
		return nil, err
	}
	open := make(map[connKey]bool)
	for _, c := range table {
		if c.state == tcpEstablished && r.isPublic(c.local) {
			open[connKey{c.local, c.remote}] = true
		}
	}
	return open, nil
}

func (r *Router) isPublic(local netip.AddrPort) bool {
	for _, l := range r.house.Listen {
		if l.addr.Port() == local.Port() && (l.addr.Addr() == local.Addr() || l.addr.Addr().IsUnspecified()) {
			return true
		}
	}
	return false
}

// flagWorkers announces to every worker that accepts.
func (r *Router) flagWorkers() {
	serving, _, err := r.workers()
	for _, w := range serving {
		path := filepath.Join(r.house.Flags, strconv.Itoa(w.pid))
		if _, serr := os.Lstat(path); serr == nil {
			continue
		}
		err = errors.Join(err, os.WriteFile(path, nil, 0o644))
	}
	if err != nil {
		r.opts.Log("announcement is incomplete: requests may be lost at the reload", "error", err)
	}
}

// dropFlags removes the flags of all but lingering workers. A flag too many costs
// a worker its keepalive, one too few costs a request.
func (r *Router) dropFlags() {
	_, lingering, err := r.workers()
	keep := make(map[string]bool)
	for _, w := range lingering {
		keep[strconv.Itoa(w.pid)] = true
	}
	entries, derr := os.ReadDir(r.house.Flags)
	err = errors.Join(err, derr)
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		if rerr := os.Remove(filepath.Join(r.house.Flags, e.Name())); !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		r.opts.Log("announcement flags are left", "error", err)
	}
}
