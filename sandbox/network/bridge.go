package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes ("n"; rtnetlink(7): values above RTPROT_STATIC
// are for whoever picks them, and no routing daemon picked this one).
const routeProtocol = 'n'

// defaultMTU is used on a machine without a default route.
const defaultMTU = 1500

// kernel is one operation on the kernel: the root's lock and a netlink socket.
type kernel struct {
	*Manager
	h      *netlink.Handle
	unlock func()
}

func (m *Manager) open(ctx context.Context) (*kernel, error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		unlock()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &kernel{Manager: m, h: h, unlock: unlock}, nil
}

func (k *kernel) close() {
	k.h.Close()
	k.unlock()
}

// ensure makes the network's bridge and all that belongs to it. It returns the
// definition with the subnet that was chosen. Where all is there it costs two
// questions to the kernel; with refresh every step is done again.
func (k *kernel) ensure(ctx context.Context, d definition, refresh bool) (definition, netlink.Link, error) {
	name := k.bridgeName(d.Name)
	link, err := findLink(k.h, name)
	if err != nil {
		return d, nil, err
	}
	if link != nil && !refresh && k.complete(link, d) && k.hasRules(name) {
		return d, link, nil
	}
	unlock, err := flock(ctx, k.machine)
	if err != nil {
		return d, nil, err
	}
	defer unlock()
	if d, link, err = k.keep(d, link); err != nil {
		return d, nil, err
	}
	if link == nil {
		if d, err = k.settle(d); err != nil {
			return d, nil, err
		}
	}
	for _, s := range k.bridgeSteps(ctx, d) {
		if link, err = s.do(link); err != nil {
			return d, nil, fmt.Errorf("bridge %s: %s: %w", name, s.name, err)
		}
		k.step("bridge-" + s.name)
	}
	return d, link, nil
}

func (k *kernel) complete(link netlink.Link, d definition) bool {
	a := link.Attrs()
	return a.Alias == k.bridgeAlias(d) && a.Flags&unix.IFF_UP != 0
}

// keep judges the bridge that is there. One that was not finished is deleted,
// so that its subnet can be chosen again: another root may have taken it since,
// and nobody can be attached to it. Where the definition was lost, the subnet
// is the bridge's.
func (k *kernel) keep(d definition, link netlink.Link) (definition, netlink.Link, error) {
	if link == nil {
		return d, nil, nil
	}
	a := link.Attrs()
	if a.Alias == "" {
		return d, nil, deleteLink(k.h, a.Name)
	}
	root, old, ok := parseBridgeAlias(a.Alias)
	if !ok || root != k.id || old.Name != d.Name {
		return d, nil, fmt.Errorf("link %s belongs to %q", a.Name, a.Alias)
	}
	if !d.Subnet.IsValid() {
		d.Subnet = old.Subnet
		return d, link, k.save(d)
	}
	if old.Subnet != d.Subnet {
		return d, nil, fmt.Errorf("bridge %s has subnet %s, the definition says %s", a.Name, old.Subnet, d.Subnet)
	}
	return d, link, nil
}

// settle chooses the subnet of a network without bridge. One chosen before is
// kept unless somebody took it since, for instance another root that came up
// first after a reboot.
func (k *kernel) settle(d definition) (definition, error) {
	if err := k.settle6(d); err != nil {
		return d, err
	}
	taken, err := k.occupied(k.h, unix.AF_INET)
	if err != nil {
		return d, err
	}
	if d.Subnet.IsValid() {
		other := overlapping(d.Subnet, taken)
		if other == nil {
			return d, nil
		}
		if d.Fixed {
			return d, fmt.Errorf("subnet %s overlaps %s: %w", d.Subnet, *other, ErrNoSubnet)
		}
	}
	defs, err := k.loadAll()
	if err != nil {
		return d, err
	}
	for _, o := range defs {
		if o.Name != d.Name && o.Subnet.IsValid() {
			taken = append(taken, o.Subnet)
		}
	}
	old, err := k.records(d.Name)
	if err != nil {
		return d, err
	}
	if d.Subnet, err = pick(taken); err != nil {
		return d, err
	}
	// Without a bridge nobody can use the old addresses.
	for _, r := range old {
		if err := k.dropRecord(d.Name, r.Address); err != nil {
			return d, err
		}
	}
	return d, k.save(d)
}

// bridgeStep is one step of making a bridge. Each may run again.
type bridgeStep struct {
	name string
	do   func(netlink.Link) (netlink.Link, error)
}

func (k *kernel) bridgeSteps(ctx context.Context, d definition) []bridgeStep {
	name := k.bridgeName(d.Name)
	on := func(f func(netlink.Link) error) func(netlink.Link) (netlink.Link, error) {
		return func(l netlink.Link) (netlink.Link, error) { return l, f(l) }
	}
	return []bridgeStep{
		{"link", func(l netlink.Link) (netlink.Link, error) { return k.addBridge(l, d) }},
		{"sysctl", on(func(netlink.Link) error { return bridgeSysctls(name, d.Subnet6.IsValid()) })},
		{"route", on(func(netlink.Link) error { return k.addUnreachable(d) })},
		{"address", on(func(l netlink.Link) error { return k.addGateway(l, d) })},
		{"mtu", on(k.followUplink)},
		{"rules", on(func(netlink.Link) error { return k.refreshRules() })},
		{"up", on(k.h.LinkSetUp)},
		{"iptables", on(func(netlink.Link) error { return k.coexist(ctx, d) })},
		{"forward", on(func(netlink.Link) error { return k.forwardFor(d) })},
		{"alias", on(func(l netlink.Link) error { return k.h.LinkSetAlias(l, k.bridgeAlias(d)) })},
	}
}

func (k *kernel) addBridge(l netlink.Link, d definition) (netlink.Link, error) {
	if l != nil {
		return l, nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = k.bridgeName(d.Name)
	// Set by hand: otherwise a bridge takes the lowest address of its ports and
	// changes it with them, under everyone's ARP entries.
	attrs.HardwareAddr = mac(d.gateway())
	if err := k.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, err
	}
	return findLink(k.h, attrs.Name)
}

// bridgeSysctls: see ip-sysctl.rst; accept_ra is CVE-2020-13401, route_localnet
// CVE-2020-8558; publish switches the latter on where it must.
func bridgeSysctls(name string, ipv6 bool) error {
	off := "1"
	if ipv6 {
		off = "0"
	}
	for _, s := range [][2]string{
		{"ipv4/conf/" + name + "/proxy_arp", "0"},
		{"ipv6/conf/" + name + "/accept_ra", "0"},
		{"ipv6/conf/" + name + "/accept_dad", "0"},
		{"ipv6/conf/" + name + "/disable_ipv6", off},
	} {
		if err := sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

func (k *kernel) addGateway(l netlink.Link, d definition) error {
	n := ipNet(d.Subnet)
	n.IP = d.gateway().AsSlice()
	if err := k.h.AddrReplace(l, &netlink.Addr{IPNet: n}); err != nil || !d.Subnet6.IsValid() {
		return err
	}
	return k.h.AddrReplace(l, addr6(d.gateway6(), d.Subnet6.Bits()))
}

// unreachable is the route that catches what no bridge claims, above all while
// a bridge is away: without it such packets, and secrets in them, would leave
// by the default route. Its metric makes it this root's own.
func (m *Manager) unreachable(pool netip.Prefix) *netlink.Route {
	n, err := strconv.ParseUint(m.id, 16, 32)
	if err != nil {
		panic("internal error: root id is not hexadecimal: " + m.id)
	}
	family := unix.AF_INET
	if pool.Addr().Is6() {
		family = unix.AF_INET6
	}
	return &netlink.Route{
		Family: family, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNREACHABLE,
		Protocol: routeProtocol, Priority: int(n&0x3fffffff | 0x40000000), Dst: ipNet(pool),
	}
}

func (k *kernel) addUnreachable(d definition) error {
	for _, pool := range k.poolsOf(d) {
		if err := k.h.RouteAdd(k.unreachable(pool)); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}

// poolsOf are the ranges around a network's subnets.
func (m *Manager) poolsOf(d definition) []netip.Prefix {
	pools := []netip.Prefix{poolOf(d.Subnet)}
	switch own := m.pool6(); {
	case !d.Subnet6.IsValid():
	case own.Contains(d.Subnet6.Addr()):
		pools = append(pools, own)
	default:
		pools = append(pools, d.Subnet6)
	}
	return pools
}

// followUplink gives the bridge the MTU of the link with the default route:
// larger packets would be dropped there, often without a word.
func (k *kernel) followUplink(l netlink.Link) error {
	mtu, err := k.uplinkMTU()
	if err != nil || l.Attrs().MTU == mtu {
		return err
	}
	if err := k.h.LinkSetMTU(l, mtu); err != nil {
		return err
	}
	l.Attrs().MTU = mtu
	return nil
}

func (k *kernel) uplinkMTU() (int, error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	var best *netlink.Route
	for i, r := range routes {
		p, ok := prefixOf(r.Dst)
		if r.Type == unix.RTN_UNICAST && (!ok || p.Bits() == 0) && (best == nil || r.Priority < best.Priority) {
			best = &routes[i]
		}
	}
	if best == nil {
		return defaultMTU, nil
	}
	index := best.LinkIndex
	if index == 0 && len(best.MultiPath) > 0 {
		index = best.MultiPath[0].LinkIndex
	}
	uplink, err := k.h.LinkByIndex(index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return defaultMTU, nil // it went away just now
	}
	if err != nil {
		return 0, fmt.Errorf("find uplink: %w", err)
	}
	return uplink.Attrs().MTU, nil
}

// refreshRules writes the table for all networks that have a bridge. Others
// stay out of it: their subnets may be somebody else's by now.
func (k *kernel) refreshRules() error {
	live, err := k.live()
	if err != nil {
		return err
	}
	return k.applyRules(live, nil)
}

// live returns the networks that have a bridge, finished or not.
func (k *kernel) live() ([]definition, error) {
	defs, err := k.loadAll()
	if err != nil {
		return nil, err
	}
	links, err := dump(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[string]bool{}
	for _, l := range links {
		names[l.Attrs().Name] = true
	}
	var live []definition
	for _, d := range defs {
		if d.Subnet.IsValid() && names[k.bridgeName(d.Name)] {
			live = append(live, d)
		}
	}
	return live, nil
}
