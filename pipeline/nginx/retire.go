package nginx

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Retire returns when no request can reach addrs through nginx any more, or after
// limit, when only requests are left that have had that long to end. Every worker
// that accepts has the proven routes, which must not hold addrs; so only workers
// that are shutting down matter.
func (r *Router) Retire(ctx context.Context, addrs []netip.AddrPort, limit time.Duration) error {
	gone := make(map[netip.AddrPort]bool, len(addrs))
	for _, a := range addrs {
		gone[netip.AddrPortFrom(a.Addr().Unmap(), a.Port())] = true
	}
	if app, addr, ok := r.routed(gone); ok {
		return fmt.Errorf("retire %v: app %s still routes to it", addr, app)
	}
	since, started := r.reloaded()
	if !started {
		return errors.New("retire: the router is not started")
	}
	_, old, err := r.workers()
	if err != nil {
		return fmt.Errorf("retire: %w", err)
	}
	silent := since.Add(r.headerWait()) // from then on every client has spoken
	deadline := time.Now().Add(limit)
	for {
		old = stillAlive(old)
		if len(old) == 0 {
			return nil
		}
		if time.Now().After(silent) {
			reach, err := reachable(old, gone)
			if err != nil {
				return fmt.Errorf("retire: %w", err)
			}
			if !reach {
				return nil
			}
		}
		if !time.Now().Before(deadline) {
			r.opts.Log("drain limit reached with connections open", "addresses", addrs, "workers", len(old))
			return nil
		}
		if err := sleep(ctx, 3*tick); err != nil {
			return fmt.Errorf("retire: %w", err)
		}
	}
}

func (r *Router) headerWait() time.Duration {
	if r.house.Managed {
		return r.house.Silence
	}
	return systemHeaderTimeout
}

func stillAlive(list []process) []process {
	var alive []process
	for _, p := range list {
		if p.alive() {
			alive = append(alive, p)
		}
	}
	return alive
}

// reachable reports whether one of the lingering workers may still send something
// to addrs: it has a connection there, or it has more clients than connections to
// servers, so that one of them (a slow upload, say) is not bound to a server yet.
// Once bound, a client stays: an exiting worker takes no second request.
func reachable(old []process, addrs map[netip.AddrPort]bool) (bool, error) {
	table, err := tcpTable()
	if err != nil {
		return false, err
	}
	listening := make(map[uint16]bool)
	for _, c := range table {
		if c.state == tcpListen {
			listening[c.local.Port()] = true
		}
	}
	for _, w := range old {
		held := sockets(w.pid)
		clients, servers := 0, 0
		for _, c := range table {
			if _, ok := held[c.inode]; !ok || c.inode == 0 || c.state == tcpListen {
				continue
			}
			switch {
			case addrs[c.remote]:
				return true, nil
			case !listening[c.local.Port()]:
				servers++
			case c.state == tcpEstablished || c.state == tcpCloseWait:
				clients++
			}
		}
		if clients > servers {
			return true, nil
		}
	}
	return false, nil
}

// setReloaded notes when workers last changed; Retire counts from there.
func (r *Router) setReloaded(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = at
}

// reloaded is false before Start. A clock that was set back does not shorten a wait.
func (r *Router) reloaded() (time.Time, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.last
	if now := time.Now(); at.After(now) {
		at = now
	}
	return at, r.started
}
