package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Reconcile compares records, links and containers, and frees what nobody owns:
// addresses and veths of containers that are gone, half-made bridges, rules and
// routes of removed networks. Records that were lost are rebuilt from the
// aliases of the links. All rules are written anew, so that it also repairs
// what a "nft flush ruleset" or a restart of Docker took away.
//
// alive must say true from before a container's Attach until its Detach. It is
// called with the root's lock held and must not call the Manager.
//
// One network that cannot be repaired does not keep the others from it; the
// errors of all are returned.
func (m *Manager) Reconcile(ctx context.Context, alive func(container string) bool) error {
	k, err := m.open(ctx)
	if err != nil {
		return fmt.Errorf("reconcile networks: %w", err)
	}
	defer k.close()
	for _, step := range []func() error{
		m.sweep,
		func() error { return k.rebuild(alive) },
		func() error { return k.freeDead(ctx, alive) },
		k.deleteStrays,
		func() error { return k.repair(ctx) },
		func() error { return k.syncShared(ctx) },
	} {
		err = errors.Join(err, step())
	}
	if err != nil {
		return fmt.Errorf("reconcile networks: %w", err)
	}
	return nil
}

func (k *kernel) links() ([]netlink.Link, error) {
	links, err := dump(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return links, nil
}

// rebuild writes the definitions and records that the kernel knows of and the
// disk does not.
func (k *kernel) rebuild(alive func(string) bool) error {
	links, err := k.links()
	if err != nil {
		return err
	}
	used := map[string]bool{} // networks with a living container
	for _, l := range links {
		if network, r, ok := k.parseVethAlias(l.Attrs().Alias); ok && alive(r.Container) {
			used[network] = true
		}
	}
	for _, l := range links {
		root, d, ok := parseBridgeAlias(l.Attrs().Alias)
		if !ok || root != k.id || !used[d.Name] {
			continue // an unused bridge without definition is a stray
		}
		if _, err := k.load(d.Name); !errors.Is(err, ErrNotFound) {
			continue
		}
		d.Created = k.now().UTC()
		if err := k.save(d); err != nil {
			return err
		}
	}
	for _, l := range links {
		network, r, ok := k.parseVethAlias(l.Attrs().Alias)
		if !ok || !alive(r.Container) {
			continue
		}
		r.Link = l.Attrs().Name
		if err := k.rebuildRecord(network, r); err != nil {
			return err
		}
	}
	return nil
}

// rebuildRecord gives a living container its address back unless it has one or
// somebody else got it meanwhile; its veth is a stray then.
func (k *kernel) rebuildRecord(network string, r record) error {
	if _, err := k.load(network); err != nil {
		return nil // no bridge either: nothing to rebuild from
	}
	all, err := k.records(network)
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.inUse() && (o.Container == r.Container || o.Address == r.Address) {
			return nil
		}
		if o.Container == r.Container && o.Address == r.Address {
			return nil // detached on purpose
		}
	}
	r.Since = k.now().UTC()
	if err := k.putRecord(network, r); err != nil {
		return err
	}
	return k.syncRecord(network, r)
}

// freeDead releases the addresses of containers that are gone, and forgets
// those whose quarantine is over.
func (k *kernel) freeDead(ctx context.Context, alive func(string) bool) error {
	defs, err := k.loadAll()
	if err != nil {
		return err
	}
	for _, d := range defs {
		all, err := k.records(d.Name)
		if err != nil {
			return err
		}
		for _, r := range all {
			switch {
			case r.inUse() && !alive(r.Container):
				err = k.unplug(ctx, d.Name, r, true)
			case r.rested(k.now()):
				err = k.dropRecord(d.Name, r.Address)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteStrays deletes the links of this root that no record and no definition
// stands for.
func (k *kernel) deleteStrays() error {
	wanted := map[string]bool{}
	defs, err := k.loadAll()
	if err != nil {
		return err
	}
	for _, d := range defs {
		wanted[k.bridgeName(d.Name)] = true
		all, err := k.records(d.Name)
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.inUse() {
				wanted[r.Link] = true
			}
		}
	}
	return k.deleteOwn(func(name string) bool { return !wanted[name] })
}

// deleteOwn deletes those links of this root that match: veths before bridges,
// so that no container is ever cut loose from a bridge that still forwards.
func (k *kernel) deleteOwn(match func(name string) bool) error {
	links, err := k.links()
	if err != nil {
		return err
	}
	veths, bridges, err := k.own(links)
	if err != nil {
		return err
	}
	for _, name := range append(veths, bridges...) {
		if !match(name) {
			continue
		}
		if err := deleteLink(k.h, name); err != nil {
			return err
		}
		k.step("delete-link")
	}
	return nil
}

// own finds the links of this root, by alias, or by what they are plugged into,
// or by the names that follow from definitions and records: a link that a kill
// left behind may have no alias yet.
func (k *kernel) own(links []netlink.Link) (veths, bridges []string, err error) {
	names := map[string]bool{}
	defs, err := k.loadAll()
	if err != nil {
		return nil, nil, err
	}
	for _, d := range defs {
		names[k.bridgeName(d.Name)] = true
		all, err := k.records(d.Name)
		if err != nil {
			return nil, nil, err
		}
		for _, r := range all {
			names[r.Link] = true
		}
	}
	masters := map[int]bool{}
	for _, l := range links {
		root, _, ok := parseBridgeAlias(l.Attrs().Alias)
		if l.Type() == "bridge" && (names[l.Attrs().Name] || ok && root == k.id) {
			masters[l.Attrs().Index] = true
			bridges = append(bridges, l.Attrs().Name)
		}
	}
	for _, l := range links {
		a := l.Attrs()
		_, _, ok := k.parseVethAlias(a.Alias)
		if l.Type() == "veth" && (ok || names[a.Name] || masters[a.MasterIndex] && isVeth(a.Name)) {
			veths = append(veths, a.Name)
		}
	}
	return veths, bridges, nil
}

// isVeth and isBridge know the links of any root by name.
func isVeth(name string) bool   { return isShortName(name, "nv") }
func isBridge(name string) bool { return isShortName(name, "nr") }

func isShortName(name, prefix string) bool {
	hash, ok := strings.CutPrefix(name, prefix)
	return ok && len(hash) == 8 && strings.Trim(hash, "0123456789abcdef") == ""
}

// repair completes every bridge that exists or has members, and plugs members
// in again that lost it.
func (k *kernel) repair(ctx context.Context) error {
	live, err := k.live()
	if err != nil {
		return err
	}
	hasBridge := map[string]bool{}
	for _, d := range live {
		hasBridge[d.Name] = true
	}
	defs, err := k.loadAll()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range defs {
		errs = append(errs, k.repairNetwork(ctx, d, hasBridge[d.Name]))
	}
	return errors.Join(errs...)
}

func (k *kernel) repairNetwork(ctx context.Context, d definition, hasBridge bool) error {
	all, err := k.records(d.Name)
	if err != nil {
		return err
	}
	var members []record
	for _, r := range all {
		if r.inUse() {
			members = append(members, r)
		}
	}
	if !hasBridge && len(members) == 0 {
		return nil // it comes up with its first container
	}
	d, bridge, err := k.ensure(ctx, d, true)
	if err != nil {
		return fmt.Errorf("network %q: %w", d.Name, err)
	}
	for _, r := range members {
		near, err := findLink(k.h, r.Link)
		if err != nil {
			return err
		}
		if near == nil {
			continue // Attach was not finished; the container's start will say
		}
		if err := k.setNear(near, &plug{def: d, bridge: bridge, rec: r}); err != nil {
			return fmt.Errorf("network %q: plug %s in again: %w", d.Name, r.Container, err)
		}
	}
	return nil
}

// syncShared brings rules and routes in line with the networks that have a
// bridge; with none left it withdraws.
func (k *kernel) syncShared(ctx context.Context) error {
	live, err := k.live()
	if err != nil {
		return err
	}
	unlock, err := flock(ctx, k.machine)
	if err != nil {
		return err
	}
	defer unlock()
	if len(live) == 0 {
		return k.withdraw(ctx)
	}
	if err := k.applyRules(live, nil); err != nil {
		return err
	}
	if err := k.forward6Off(); err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, d := range live {
		for _, pool := range k.poolsOf(d) {
			needed[ipNet(pool).String()] = true
		}
	}
	return k.deleteRoutes(func(r netlink.Route) bool { return r.Dst != nil && needed[r.Dst.String()] })
}

// withdraw takes what is not a link out of the kernel. The caller holds the
// machine's lock and has deleted all bridges of the root.
func (k *kernel) withdraw(ctx context.Context) error {
	if err := k.leave(ctx, ""); err != nil {
		return err
	}
	k.step("withdraw-iptables")
	if err := dropTable(k.tableName()); err != nil {
		return err
	}
	k.step("withdraw-table")
	if err := k.deleteRoutes(func(netlink.Route) bool { return false }); err != nil {
		return err
	}
	k.step("withdraw-routes")
	links, err := k.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Type() == "bridge" && isBridge(l.Attrs().Name) {
			return k.forward6Off() // another root needs the host to forward
		}
	}
	return errors.Join(k.forwardOff(), k.forward6Off())
}

// deleteRoutes deletes this root's unreachable routes, except those to keep.
func (k *kernel) deleteRoutes(keep func(netlink.Route) bool) error {
	for _, pool := range []netip.Prefix{pools()[0], k.pool6()} {
		mine := k.unreachable(pool)
		routes, err := dump(func() ([]netlink.Route, error) {
			return k.h.RouteListFiltered(mine.Family, mine, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Priority != mine.Priority || keep(r) {
				continue
			}
			if err := k.h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("delete route %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

// remove takes one network away. Killed half-way, it is finished by Remove or
// Reconcile.
func (k *kernel) remove(ctx context.Context, name string) error {
	if err := k.leave(ctx, k.bridgeName(name)); err != nil {
		return err
	}
	if err := deleteLink(k.h, k.bridgeName(name)); err != nil {
		return err
	}
	k.step("bridge-gone")
	if err := k.forget(name); err != nil {
		return err
	}
	return k.syncShared(ctx)
}

// Teardown takes everything of this root out of the kernel, also from under
// running containers, and gives all addresses back. Definitions stay: the next
// Attach makes their bridges again.
func (m *Manager) Teardown(ctx context.Context) error {
	k, err := m.open(ctx)
	if err != nil {
		return fmt.Errorf("tear networks down: %w", err)
	}
	defer k.close()
	if err := k.teardown(ctx); err != nil {
		return fmt.Errorf("tear networks down: %w", err)
	}
	return nil
}

func (k *kernel) teardown(ctx context.Context) error {
	if err := k.deleteOwn(func(string) bool { return true }); err != nil {
		return err
	}
	defs, err := k.loadAll()
	if err != nil {
		return err
	}
	for _, d := range defs {
		all, err := k.records(d.Name)
		if err != nil {
			return err
		}
		for _, r := range all {
			if err := k.dropRecord(d.Name, r.Address); err != nil {
				return err
			}
		}
	}
	k.step("teardown-records")
	return k.syncShared(ctx)
}
