package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Port is one published port: what arrives at HostPort of the host goes to Port
// of the container, as long as that is attached. The kernel does it, by maps of
// our own table, so it needs no process of ours.
type Port struct {
	// Host is the address of the host that it is bound to. Zero: all of them, in
	// both families where the network has IPv6; 0.0.0.0 and :: mean one family.
	Host     netip.Addr `json:"host,omitzero"`
	HostPort uint16     `json:"host_port"` // 0: Attach chooses one of 49153 to 65535
	Port     uint16     `json:"port"`
	Proto    string     `json:"proto"` // tcp or udp
}

// String writes the port as docker port does: 80/tcp -> 0.0.0.0:8080.
func (p Port) String() string {
	host := p.Host
	if !host.IsValid() {
		host = netip.IPv4Unspecified()
	}
	return strconv.Itoa(int(p.Port)) + "/" + p.Proto + " -> " + netip.AddrPortFrom(host, p.HostPort).String()
}

// Ports that are given to those who ask for none: the dynamic ones (RFC 6335, 6).
const firstDynamic, lastDynamic = 49153, 65535

// maxPorts bounds what one container publishes.
const maxPorts = 4096

func checkPorts(ports []Port) error {
	if len(ports) > maxPorts {
		return fmt.Errorf("publish %d ports: at most %d are possible", len(ports), maxPorts)
	}
	for i, p := range ports {
		if p.Proto != "tcp" && p.Proto != "udp" {
			return fmt.Errorf("publish port %d: protocol %q: want tcp or udp", p.Port, p.Proto)
		}
		if p.Port == 0 {
			return fmt.Errorf("publish host port %d: the container's port is 0", p.HostPort)
		}
		if p.Host == netip.IPv6Loopback() || p.Host.IsLinkLocalUnicast() || p.Host.Zone() != "" {
			return fmt.Errorf("publish port %d on %s: the kernel cannot redirect from ::1 or from link-local addresses; name another address", p.Port, p.Host)
		}
		for _, q := range ports[:i] {
			if p.HostPort != 0 && p.clashes(q) {
				return fmt.Errorf("publish %s: it is there twice", p)
			}
		}
	}
	return nil
}

// v4 and v6 say in which families it is reachable.
func (p Port) v4() bool { return !p.Host.IsValid() || p.Host.Is4() }
func (p Port) v6() bool { return !p.Host.IsValid() || p.Host.Is6() }

// any says that it is bound to all addresses of its families.
func (p Port) any() bool { return !p.Host.IsValid() || p.Host.IsUnspecified() }

// onLoopback says whether 127.0.0.0/8 leads to it.
func (p Port) onLoopback() bool { return p.v4() && (p.any() || p.Host.IsLoopback()) }

func (p Port) clashes(q Port) bool {
	if p.Proto != q.Proto || p.HostPort != q.HostPort || !(p.v4() && q.v4() || p.v6() && q.v6()) {
		return false
	}
	return p.any() || q.any() || p.Host == q.Host
}

// allocate checks, before anything is touched, that the ports are free, and
// chooses those that were left open. The caller holds the locks of the root and
// of the machine's ports. A container that attaches again keeps its ports.
func (k *kernel) allocate(ctx context.Context, d definition, ep Endpoint) ([]Port, error) {
	if d.Internal {
		return nil, fmt.Errorf("publish ports: network %q is internal", d.Name)
	}
	for _, p := range ep.Ports {
		if !p.v4() && !d.Subnet6.IsValid() {
			return nil, fmt.Errorf("publish %s: network %q has no IPv6", p, d.Name)
		}
	}
	taken, mine, err := k.takenPorts(ctx, ep.Container)
	if err != nil {
		return nil, err
	}
	chosen := make([]Port, 0, len(ep.Ports))
	for _, p := range ep.Ports {
		switch {
		case p.HostPort != 0:
			err = isFree(ctx, p, taken, d.Subnet6.IsValid())
		default:
			p.HostPort, err = choosePort(p, mine, func(p Port) error {
				return isFree(ctx, p, append(taken, chosen...), d.Subnet6.IsValid())
			})
		}
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, p)
	}
	return chosen, nil
}

// choosePort returns the port that the container had, or the first free one.
func choosePort(p Port, mine []Port, free func(Port) error) (uint16, error) {
	for _, q := range mine {
		if q.Host == p.Host && q.Port == p.Port && q.Proto == p.Proto {
			return q.HostPort, nil
		}
	}
	for n := firstDynamic; n <= lastDynamic; n++ {
		p.HostPort = uint16(n)
		err := free(p)
		if err == nil || !errors.Is(err, ErrPortInUse) {
			return p.HostPort, err
		}
	}
	return 0, fmt.Errorf("publish %d/%s: %w: all of %d to %d", p.Port, p.Proto, ErrPortInUse, firstDynamic, lastDynamic)
}

// isFree looks for the port among those that are redirected, and then asks the
// kernel by binding it: a process of the host may listen there. With ipv6 a port
// of all addresses is one of both families.
func isFree(ctx context.Context, p Port, taken []Port, ipv6 bool) error {
	host := p.Host
	if !host.IsValid() {
		host = netip.IPv4Unspecified()
	}
	for _, q := range taken {
		if p.clashes(q) {
			return fmt.Errorf("bind for %s: %w", netip.AddrPortFrom(host, p.HostPort), ErrPortInUse)
		}
	}
	if p.v4() {
		if err := bindable(ctx, p.Proto+"4", netip.AddrPortFrom(host, p.HostPort)); err != nil {
			return err
		}
	}
	switch {
	case p.Host.Is6():
		return bindable(ctx, p.Proto+"6", netip.AddrPortFrom(host, p.HostPort))
	case ipv6 && !p.Host.IsValid():
		return bindable(ctx, p.Proto+"6", netip.AddrPortFrom(netip.IPv6Unspecified(), p.HostPort))
	}
	return nil
}

// bindable binds and lets go at once. Go sets SO_REUSEADDR for listeners, so
// that connections which are just ending do not count (socket(7)).
func bindable(ctx context.Context, network string, at netip.AddrPort) error {
	var c interface{ Close() error }
	var err error
	var lc net.ListenConfig
	if strings.HasPrefix(network, "tcp") {
		c, err = lc.Listen(ctx, network, at.String())
	} else {
		c, err = lc.ListenPacket(ctx, network, at.String())
	}
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("bind for %s: %w by a process of the host", at, ErrPortInUse)
	}
	if err != nil {
		return fmt.Errorf("bind for %s: %w", at, err)
	}
	return c.Close()
}

// takenPorts are the redirected ports of the machine, without the container's
// own, which are mine. Ports of containers that have ended are taken from them:
// nobody may have seen their end.
func (k *kernel) takenPorts(ctx context.Context, container string) (taken, mine []Port, err error) {
	defs, err := k.loadAll()
	if err != nil {
		return nil, nil, err
	}
	for _, d := range defs {
		all, err := k.records(d.Name)
		if err != nil {
			return nil, nil, err
		}
		for _, r := range all {
			switch {
			case !r.inUse() || len(r.Ports) == 0:
			case r.Container == container:
				mine = append(mine, r.Ports...)
			case !alive(r):
				if err := k.unplug(ctx, d.Name, r, false); err != nil {
					return nil, nil, err
				}
			default:
				taken = append(taken, r.Ports...)
			}
		}
	}
	others, err := k.foreignPorts()
	return append(taken, others...), mine, err
}

// publish makes the host redirect the ports of a member. A flow of datagrams
// that the host has answered itself until now has to begin anew.
func (k *kernel) publish(ctx context.Context, p *plug) error {
	if len(p.rec.Ports) == 0 && !p.public {
		return nil
	}
	if err := k.refreshRules(); err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	k.step("publish")
	for _, port := range p.rec.Ports {
		if port.Proto != "udp" {
			continue
		}
		if err := forgetFlows(func(f *netlink.ConntrackFilter) error {
			return errors.Join(f.AddProtocol(unix.IPPROTO_UDP), f.AddPort(netlink.ConntrackOrigDstPort, port.HostPort))
		}); err != nil {
			return err
		}
	}
	k.step("publish-flows")
	return nil
}

// unpublish stops redirecting to the records that match; they are freed after it.
func (k *kernel) unpublish(_ context.Context, leaving func(network string, r record) bool) error {
	live, err := k.live()
	if err != nil {
		return err
	}
	var gone []record
	if err := k.applyRules(live, func(network string, r record) bool {
		yes := leaving(network, r)
		if yes {
			gone = append(gone, r)
		}
		return yes
	}); err != nil {
		return fmt.Errorf("withdraw ports: %w", err)
	}
	k.step("unpublish")
	for _, r := range gone {
		if err := r.forgetFlows(); err != nil {
			return err
		}
	}
	return nil
}

// forgetFlows lets datagrams to a container that is gone find their new way: the
// entry of a busy flow would live for ever, with the old address.
func (r record) forgetFlows() error {
	for _, port := range r.Ports {
		if port.Proto != "udp" {
			continue
		}
		return forgetFlows(func(f *netlink.ConntrackFilter) error {
			return errors.Join(f.AddProtocol(unix.IPPROTO_UDP), f.AddIP(netlink.ConntrackReplySrcIP, r.Address.AsSlice()))
		})
	}
	return nil
}

func forgetFlows(fill func(*netlink.ConntrackFilter) error) error {
	f := &netlink.ConntrackFilter{}
	if err := fill(f); err != nil {
		return fmt.Errorf("forget flows: %w", err)
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f)
		// Without the kernel's table for programs (NF_CT_NETLINK) they end by
		// themselves, 30 s to 2 min after the last datagram.
		if err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("forget flows: %w", err)
		}
	}
	return nil
}
