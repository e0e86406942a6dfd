package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// plug is what one Attach works with.
type plug struct {
	def    definition
	bridge netlink.Link
	netns  int // descriptor
	rec    record
	fresh  bool // the address was given out by this call
	public bool // ports were published before it
}

// Attach connects the namespace of ep.Pid to a network: bridge, veth pair,
// address, default route, NAT. Attaching again gives the same address and
// repairs what is missing; a container that came back in another namespace
// takes its address along. After an error nothing stays behind.
func (m *Manager) Attach(ctx context.Context, ep Endpoint) (a Attachment, err error) {
	if ep.Network == "" {
		ep.Network = Default
	}
	if err := ep.check(); err != nil {
		return a, err
	}
	k, err := m.open(ctx)
	if err != nil {
		return a, fmt.Errorf("attach %s: %w", ep.Container, err)
	}
	defer k.close()
	p, err := k.prepare(ctx, ep)
	if err != nil {
		return a, fmt.Errorf("attach %s to network %q: %w", short(ep.Container), ep.Network, err)
	}
	defer func() { _ = unix.Close(p.netns) }()
	durable := make(chan error, 1) // while the kernel works on the interfaces
	go func() { durable <- k.syncRecord(p.def.Name, p.rec) }()
	if err = k.connect(ctx, p); err == nil {
		err = k.publish(ctx, p)
	}
	if err = errors.Join(err, <-durable); err != nil {
		err = fmt.Errorf("attach %s to network %q: %w", short(ep.Container), ep.Network, err)
		if p.fresh {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
			defer cancel()
			err = errors.Join(err, k.unplug(clean, p.def.Name, p.rec, true))
		}
		return a, err
	}
	return p.attachment(), nil
}

func (p *plug) attachment() Attachment {
	a := Attachment{
		Network:   p.def.Name,
		Interface: p.rec.Interface,
		Address:   netip.PrefixFrom(p.rec.Address, p.def.Subnet.Bits()),
		Gateway:   p.def.gateway(),
		MTU:       p.bridge.Attrs().MTU,
		MAC:       p.rec.mac().String(),
		Ports:     p.rec.Ports,
	}
	if p.rec.Address6.IsValid() {
		a.Address6 = netip.PrefixFrom(p.rec.Address6, p.def.Subnet6.Bits())
		a.Gateway6 = p.def.gateway6()
	}
	return a
}

// short is the part of an id that people read.
func short(id string) string { return id[:min(12, len(id))] }

func (ep Endpoint) check() error {
	if err := checkName("network", ep.Network, maxNetworkName); err != nil {
		return err
	}
	if err := checkName("container", ep.Container, maxContainer); err != nil {
		return err
	}
	if ep.Hostname != "" {
		if err := checkName("hostname", ep.Hostname, maxHostname); err != nil {
			return err
		}
	}
	for _, alias := range ep.Aliases {
		if err := checkName("network alias", alias, maxHostname); err != nil {
			return err
		}
	}
	if ep.Address.IsValid() && !ep.Address.Is4() || ep.Address6.IsValid() && !ep.Address6.Is6() {
		return fmt.Errorf("attach %s: addresses %s and %s: want an IPv4 and an IPv6 one", ep.Container, ep.Address, ep.Address6)
	}
	if n := len(ep.MAC); n != 0 && (n != 6 || ep.MAC[0]&1 != 0) {
		return fmt.Errorf("attach %s: MAC %s: want 6 bytes, not of a group", ep.Container, ep.MAC)
	}
	if err := checkPorts(ep.Ports); err != nil {
		return err
	}
	if ep.Pid <= 0 {
		return fmt.Errorf("attach %s: pid %d is no process", ep.Container, ep.Pid)
	}
	return nil
}

// known loads a network's definition; the default one begins to exist when it
// is first asked for.
func (k *kernel) known(name string) (d definition, err error) {
	d, err = k.load(name)
	if errors.Is(err, ErrNotFound) && name == Default {
		d = definition{Name: Default, Created: k.now().UTC()}
		err = k.save(d)
		k.step("definition")
	}
	return d, err
}

// prepare finds or makes everything up to the record of the address.
func (k *kernel) prepare(ctx context.Context, ep Endpoint) (p *plug, err error) {
	fd, inode, err := openNetns(ep.Pid)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	p = &plug{netns: fd}
	if inode == netnsInode(os.Getpid()) {
		return nil, fmt.Errorf("pid %d lives in the host's own network namespace", ep.Pid)
	}
	if p.def, err = k.known(ep.Network); err != nil {
		return nil, err
	}
	if len(ep.Ports) > 0 {
		// Held until the record says whose the ports are: two roots must not give
		// one away at a time.
		unlock, err := flock(ctx, k.machine+".ports")
		if err != nil {
			return nil, err
		}
		defer unlock()
		if ep.Ports, err = k.allocate(ctx, p.def, ep); err != nil {
			return nil, err
		}
	}
	if p.def, p.bridge, err = k.ensure(ctx, p.def, false); err != nil {
		return nil, err
	}
	if err := k.reserve(p, ep, inode); err != nil {
		return nil, err
	}
	k.step("record")
	return p, nil
}

// reserve finds the container's address in the network or gives it one.
func (k *kernel) reserve(p *plug, ep Endpoint, inode uint64) error {
	all, err := k.records(p.def.Name)
	if err != nil {
		return err
	}
	for _, r := range all {
		if r.inUse() && r.Container == ep.Container {
			p.rec = r
			if ep.Address.IsValid() && ep.Address != r.Address {
				return fmt.Errorf("address %s: the container has %s already", ep.Address, r.Address)
			}
			if r.NetNS == inode && r.Pid == ep.Pid && r.Hostname == ep.Hostname && slices.Equal(r.Aliases, ep.Aliases) &&
				slices.Equal(r.Ports, ep.Ports) {
				return nil
			}
			return k.moveIn(p, ep, inode)
		}
	}
	var a netip.Addr
	var old *record
	if ep.Address.IsValid() {
		a, old, err = claimed(p.def, all, ep.Address)
	} else {
		a, old, err = choose(p.def, all, k.now())
	}
	if err != nil {
		return err
	}
	if old != nil {
		// Whoever had it may be dead, but the namespace can be held open by a
		// process that does not die.
		if err := deleteLink(k.h, old.Link); err != nil {
			return err
		}
	}
	name, err := k.freeInterface(p.def.Name, ep.Container)
	if err != nil {
		return err
	}
	p.rec = record{
		Brief:   p.def.Untrusted && !p.def.Fixed,
		Address: a, Container: ep.Container, Hostname: ep.Hostname,
		Interface: name, Link: k.vethName(p.def.Name, ep.Container, inode), NetNS: inode, Pid: ep.Pid, Since: k.now().UTC(),
		Aliases: ep.Aliases, Ports: ep.Ports, HWAddr: ep.MAC.String(),
	}
	if err := claim6(p.def, all, &p.rec, ep.Address6); err != nil {
		return err
	}
	p.fresh = true
	return k.putRecord(p.def.Name, p.rec)
}

// moveIn takes the address along to the container's new namespace. The old pair
// goes first: two of them would answer for one address.
func (k *kernel) moveIn(p *plug, ep Endpoint, inode uint64) error {
	if r := &p.rec; r.NetNS != inode {
		if err := deleteLink(k.h, r.Link); err != nil {
			return err
		}
		r.Link, r.NetNS = k.vethName(p.def.Name, ep.Container, inode), inode
	}
	p.public = len(p.rec.Ports) > 0
	p.rec.Pid, p.rec.Hostname, p.rec.Aliases, p.rec.Ports = ep.Pid, ep.Hostname, ep.Aliases, ep.Ports
	return k.putRecord(p.def.Name, p.rec)
}

// freeInterface returns eth0 for the container's first network, eth1 for the
// second, and so on. It has no address in the network that it is joining.
func (k *kernel) freeInterface(joining, container string) (string, error) {
	defs, err := k.loadAll()
	if err != nil {
		return "", err
	}
	defs = slices.DeleteFunc(defs, func(d definition) bool { return d.Name == joining })
	taken := map[string]bool{}
	err = k.recordsOf(container, defs, func(_ string, r record) error {
		taken[r.Interface] = true
		return nil
	})
	if err != nil {
		return "", err
	}
	n := 0
	for taken["eth"+strconv.Itoa(n)] {
		n++
	}
	return "eth" + strconv.Itoa(n), nil
}

// eachRecord visits the addresses that a container has in any network.
func (m *Manager) eachRecord(container string, visit func(network string, r record) error) error {
	defs, err := m.loadAll()
	if err != nil {
		return err
	}
	return m.recordsOf(container, defs, visit)
}

// recordsOf visits the addresses that a container has in the given networks.
func (m *Manager) recordsOf(container string, defs []definition, visit func(network string, r record) error) error {
	for _, d := range defs {
		all, err := m.records(d.Name)
		if err != nil {
			return err
		}
		for _, r := range all {
			if !r.inUse() || r.Container != container {
				continue
			}
			if err := visit(d.Name, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// connect makes the pair and configures both ends, whatever is there already.
func (k *kernel) connect(ctx context.Context, p *plug) error {
	name := p.rec.Link
	near, err := findLink(k.h, name)
	if err != nil {
		return err
	}
	if near != nil {
		// It may be the end of a namespace that is just being taken down.
		if ok, err := p.leadsTo(near); err != nil {
			return err
		} else if !ok {
			if err := deleteLink(k.h, name); err != nil {
				return err
			}
			near = nil
		}
	}
	if near == nil {
		if near, err = k.addVeth(p, name); err != nil {
			return fmt.Errorf("create veth: %w", err)
		}
	}
	k.step("veth")
	if err := k.setNear(near, p); err != nil {
		return fmt.Errorf("set up %s: %w", name, err)
	}
	err = inNetns(p.netns, func(h *netlink.Handle) error { return k.setFar(h, p) })
	if err != nil {
		return fmt.Errorf("set up %s in the container: %w", p.rec.Interface, err)
	}
	for _, l := range []string{name, p.bridge.Attrs().Name} {
		if err := k.awaitCarrier(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// awaitCarrier waits until a link really sends. The end of a pair that came up
// first, and a bridge with its first port, are switched on by a kernel worker
// only (net/core/link_watch.c), and drop all packets until then: the
// container's first SYN would be lost and repeated after a second. Since Linux
// 6.8 the question itself does the worker's job, so this rarely takes a second
// turn.
func (k *kernel) awaitCarrier(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	retry := time.NewTicker(time.Millisecond)
	defer retry.Stop()
	for {
		l, err := k.h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("wait for %s: %w", name, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for carrier of %s, which is %s: %w", name, l.Attrs().OperState, context.Cause(ctx))
		case <-retry.C:
		}
	}
}

// leadsTo says whether the veth's other end is this plug's interface.
func (p *plug) leadsTo(near netlink.Link) (ok bool, err error) {
	err = inNetns(p.netns, func(h *netlink.Handle) error {
		far, err := findLink(h, p.rec.Interface)
		if far == nil || err != nil {
			return err
		}
		ok = far.Type() == "veth" && far.Attrs().ParentIndex == near.Attrs().Index &&
			near.Attrs().ParentIndex == far.Attrs().Index
		return nil
	})
	return ok, err
}

// addVeth creates the far end straight in the container's namespace: an
// interface that is moved there later costs as much again.
func (k *kernel) addVeth(p *plug, name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = p.bridge.Attrs().MTU
	v := netlink.NewVeth(attrs)
	v.PeerName = p.rec.Interface
	v.PeerNamespace = netlink.NsFd(p.netns)
	v.PeerHardwareAddr = p.rec.mac()
	if err := k.h.LinkAdd(v); err != nil {
		return nil, err
	}
	near, err := findLink(k.h, name)
	if near == nil && err == nil {
		err = errors.New("it vanished: the container ended")
	}
	return near, err
}

// setNear puts the host's end on the bridge. The alias comes first, so that
// the kernel knows the owner before any packet flows.
func (k *kernel) setNear(near netlink.Link, p *plug) error {
	a := near.Attrs()
	if alias := k.vethAlias(p.def.Name, p.rec); a.Alias != alias {
		if err := k.h.LinkSetAlias(near, alias); err != nil {
			return fmt.Errorf("set alias: %w", err)
		}
	}
	k.step("veth-alias")
	// A port needs no address of its own; a link-local one would answer the container.
	if err := sysctl("ipv6/conf/"+a.Name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if a.MasterIndex != p.bridge.Attrs().Index {
		if err := k.h.LinkSetMaster(near, p.bridge); err != nil {
			return fmt.Errorf("set master: %w", err)
		}
	}
	k.step("veth-master")
	if p.def.Untrusted {
		if err := k.h.LinkSetIsolated(near, true); err != nil {
			return fmt.Errorf("isolate port: %w", err)
		}
	}
	if len(p.rec.Ports) > 0 {
		// A member may call a port that it publishes itself: where br_netfilter
		// shows the bridge's frames to the firewall, the frame leaves by the port
		// that it came in by.
		if err := k.h.LinkSetHairpin(near, true); err != nil {
			return fmt.Errorf("set hairpin: %w", err)
		}
	}
	if err := k.h.LinkSetUp(near); err != nil {
		return err
	}
	k.step("veth-up")
	return nil
}

// setFar runs inside the container's namespace.
func (k *kernel) setFar(h *netlink.Handle, p *plug) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	far, err := h.LinkByName(p.rec.Interface)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	if err := farSysctls(p.rec); err != nil {
		return err
	}
	n := &net.IPNet{IP: p.rec.Address.AsSlice(), Mask: net.CIDRMask(p.def.Subnet.Bits(), 32)}
	if err := h.AddrReplace(far, &netlink.Addr{IPNet: n}); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	if p.rec.Address6.IsValid() {
		if err := h.AddrReplace(far, addr6(p.rec.Address6, p.def.Subnet6.Bits())); err != nil {
			return fmt.Errorf("add IPv6 address: %w", err)
		}
	}
	if err := h.LinkSetUp(far); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	k.step("far-up")
	if p.def.Internal {
		return nil // no way out: fail at once instead of after a time limit
	}
	// A container in several networks leaves by the first one.
	gateways := []netip.Addr{p.def.gateway()}
	if p.rec.Address6.IsValid() {
		gateways = append(gateways, p.def.gateway6())
	}
	for _, g := range gateways {
		err = h.RouteAdd(&netlink.Route{LinkIndex: far.Attrs().Index, Gw: g.AsSlice()})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add default route: %w", err)
		}
	}
	k.step("far-route")
	return nil
}

// farSysctls prepare the container's interface: without IPv6 addresses to give,
// programs should not even try; with them, a neighbour must not be able to
// announce itself as router (CVE-2020-13401).
func farSysctls(r record) error {
	off := "1"
	if r.Address6.IsValid() {
		off = "0"
	}
	for _, s := range [][2]string{{"accept_ra", "0"}, {"accept_dad", "0"}, {"disable_ipv6", off}} {
		if err := sysctl("ipv6/conf/"+r.Interface+"/"+s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}
