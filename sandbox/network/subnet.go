package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pools are cut into /24s, in this order. The first is rarely routed anywhere;
// the others are for machines whose VPN claims all of 10.0.0.0/8.
func pools() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.213.0.0/16"),
		netip.MustParsePrefix("172.29.0.0/16"),
		netip.MustParsePrefix("192.168.208.0/20"),
	}
}

// poolOf is the range around subnet that must never leave by the default route.
func poolOf(subnet netip.Prefix) netip.Prefix {
	for _, p := range pools() {
		if p.Bits() <= subnet.Bits() && p.Contains(subnet.Addr()) {
			return p
		}
	}
	return subnet.Masked()
}

// pick returns the first /24 of the pools that overlaps nothing taken.
func pick(taken []netip.Prefix) (netip.Prefix, error) {
	for _, pool := range pools() {
		base := pool.Addr().As4()
		first := binary.BigEndian.Uint32(base[:])
		for n := range uint32(1) << (24 - pool.Bits()) {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], first+n<<8)
			p := netip.PrefixFrom(netip.AddrFrom4(b), 24)
			if overlapping(p, taken) == nil {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("%w in %v: name one when creating the network", ErrNoSubnet, pools())
}

func overlapping(p netip.Prefix, taken []netip.Prefix) *netip.Prefix {
	for i, t := range taken {
		if t.Overlaps(p) {
			return &taken[i]
		}
	}
	return nil
}

// occupied is every range of one family that this machine reaches by something other
// than a default route: routes of all tables, addresses of links that are down,
// bridges of other roots even before they have an address, and name servers.
func (m *Manager) occupied(h *netlink.Handle, family int) ([]netip.Prefix, error) {
	var taken []netip.Prefix
	add := func(n *net.IPNet) {
		// 0.0.0.0/1 and 128.0.0.0/1 are how VPNs write "default".
		p, ok := prefixOf(n)
		if ok && p.Bits() >= 8 && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			taken = append(taken, p)
		}
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Protocol != routeProtocol {
			add(r.Dst)
		}
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet)
	}
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if _, d, ok := parseBridgeAlias(l.Attrs().Alias); ok {
			taken = append(taken, d.Subnet)
			if d.Subnet6.IsValid() {
				taken = append(taken, d.Subnet6)
			}
		}
	}
	for _, a := range m.nameservers() {
		taken = append(taken, netip.PrefixFrom(a, a.BitLen()))
	}
	return taken, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if !ok || size == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), bits).Masked(), true
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// checkIPv4 says whether subnet, gateway and range fit together.
func (d definition) checkIPv4() error {
	if !d.Subnet.IsValid() {
		if d.Gateway.IsValid() || d.Range.IsValid() {
			return errors.New("a gateway or an address range needs a subnet that it lies in")
		}
		return nil
	}
	if err := checkSubnet(d.Subnet); err != nil {
		return err
	}
	if g := d.gateway(); !d.usable(g) {
		return fmt.Errorf("gateway %s: want an address of a host in %s", g, d.Subnet)
	}
	if d.Range.IsValid() && (d.Range.Masked() != d.Range || d.Range.Bits() < d.Subnet.Bits() || !d.Subnet.Contains(d.Range.Addr())) {
		return fmt.Errorf("address range %s: want a part of %s without host bits", d.Range, d.Subnet)
	}
	return nil
}

// usable says whether a host can have the IPv4 address.
func (d definition) usable(a netip.Addr) bool {
	return d.Subnet.Contains(a) && a != d.Subnet.Addr() && a != broadcast(d.Subnet)
}

// checkSubnet says whether a subnet that was asked for can be one.
func checkSubnet(p netip.Prefix) error {
	if !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 30 || p.Masked() != p {
		return fmt.Errorf("subnet %s: want an IPv4 network of /8 to /30 without host bits", p)
	}
	if a := p.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return fmt.Errorf("subnet %s: loopback, multicast, link-local and unspecified ranges cannot be routed", p)
	}
	return nil
}
