package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// publish attaches a container with ports and serves on each of them.
func publish(t *testing.T, m *Manager, network, container string, ports ...Port) (*namespace, Attachment) {
	t.Helper()
	n := newNamespace(t)
	a, err := m.Attach(t.Context(), Endpoint{Network: network, Container: container, Pid: n.pid(), Ports: ports})
	must(t, err)
	for _, p := range ports {
		if p.Proto == "tcp" {
			serve(t, n.fd, netip.AddrPortFrom(a.Address.Addr(), p.Port).String())
			if a.Address6.IsValid() {
				serve(t, n.fd, netip.AddrPortFrom(a.Address6.Addr(), p.Port).String())
			}
		}
	}
	return n, a
}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestPublishedPortIsReachedFromEverywhere(t *testing.T) {
	outside := uplink(t)
	before := hostState(t)
	m := manager(t, t.TempDir())
	_, err := m.Create(t.Context(), "red", Options{})
	must(t, err)
	_, err = m.Create(t.Context(), "build", Options{Untrusted: true})
	must(t, err)
	_, err = m.Create(t.Context(), "inner", Options{Internal: true})
	must(t, err)
	n, a := publish(t, m, "", "c1", Port{HostPort: 8080, Port: 80, Proto: "tcp"})
	own := a.Address.Addr().String()
	peer, red, build, inner := newNamespace(t), newNamespace(t), newNamespace(t), newNamespace(t)
	attach(t, m, "", "peer", peer)
	attach(t, m, "red", "red", red)
	b := attach(t, m, "build", "build", build)
	i := attach(t, m, "inner", "inner", inner)

	mustCall(t, outside.fd, at("192.0.2.2:8080"), "192.0.2.1") // the client's address is kept
	mustCall(t, -1, at("127.0.0.1:8080"), a.Gateway.String())
	mustCall(t, -1, at("127.1.2.3:8080"), a.Gateway.String())
	mustCall(t, -1, at("192.0.2.2:8080"), "192.0.2.2")
	mustCall(t, -1, netip.AddrPortFrom(a.Gateway, 8080), a.Gateway.String())
	mustCall(t, peer.fd, at("192.0.2.2:8080"), a.Gateway.String())                // hairpin
	mustCall(t, peer.fd, netip.AddrPortFrom(a.Gateway, 8080), a.Gateway.String()) // by the gateway
	mustCall(t, n.fd, at("192.0.2.2:8080"), a.Gateway.String())                   // itself
	mustCall(t, red.fd, at("192.0.2.2:8080"), a.Gateway.String())                 // as from outside, by its network's way out
	mustNotCall(t, build.fd, at("192.0.2.2:8080"))
	mustNotCall(t, build.fd, netip.AddrPortFrom(b.Gateway, 8080))
	mustNotCall(t, inner.fd, netip.AddrPortFrom(i.Gateway, 8080))
	mustNotCall(t, outside.fd, at("192.0.2.2:80"))
	mustNotCall(t, -1, at("127.0.0.1:80"))

	// Publishing opens no other way in.
	outside.do(t, func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Dst: ipNet(a.Address.Masked()), Gw: []byte{192, 0, 2, 2}})
	})
	mustNotCall(t, outside.fd, at(own+":80"))
	mustNotCall(t, red.fd, at(own+":80"))

	must(t, m.Detach(t.Context(), "c1"))
	mustNotCall(t, -1, at("127.0.0.1:8080"))
	if v, err := readSysctl("ipv4/conf/" + m.bridgeName(Default) + "/route_localnet"); err != nil || v != "0" {
		t.Errorf("route_localnet is %s, %v without a published port", v, err)
	}
	must(t, m.Teardown(t.Context()))
	sameState(t, before)
}

// The trap of CVE-2020-8558: with route_localnet on, a neighbour on the bridge
// can send to 127.0.0.1 of the host.
func TestPublishingDoesNotOpenTheHostsLoopback(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	n, a := publish(t, m, "", "c1", Port{HostPort: 8080, Port: 80, Proto: "tcp"})
	secret := serve(t, -1, "127.0.0.1:0")
	attack := func() error {
		_, err := call(n.fd, secret)
		return err
	}
	n.do(t, func(h *netlink.Handle) error { // needs NET_ADMIN, which containers do not have
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := h.AddrDel(lo, mustAddr(t, "127.0.0.1/8")); err != nil {
			return err
		}
		must(t, sysctl("ipv4/conf/all/route_localnet", "1"))
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("127.0.0.0/8")), Gw: a.Gateway.AsSlice(), Src: a.Address.Addr().AsSlice()})
	})
	if attack() == nil {
		t.Error("a container reached the host's loopback")
	}
	// The test can fail: without the guard the attack works.
	must(t, exec.Command("nft", "flush", "chain", "inet", m.tableName(), "prerouting").Run())
	if err := attack(); err != nil {
		t.Errorf("the attack is no attack: %v", err)
	}
}

func mustAddr(t *testing.T, s string) *netlink.Addr {
	t.Helper()
	a, err := netlink.ParseAddr(s)
	must(t, err)
	return a
}

func TestPortsAreBoundToAnAddress(t *testing.T) {
	outside := uplink(t)
	m := manager(t, t.TempDir())
	_, one := publish(t, m, "", "one", Port{Host: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, Port: 80, Proto: "tcp"})
	mustCall(t, -1, at("127.0.0.1:8080"), one.Gateway.String())
	mustNotCall(t, -1, at("127.0.0.2:8080"))
	mustNotCall(t, outside.fd, at("192.0.2.2:8080"))
	// The same port on another address is another container's.
	_, two := publish(t, m, "", "two", Port{Host: netip.MustParseAddr("192.0.2.2"), HostPort: 8080, Port: 81, Proto: "tcp"})
	mustCall(t, outside.fd, at("192.0.2.2:8080"), "192.0.2.1")
	mustCall(t, -1, at("127.0.0.1:8080"), one.Gateway.String())
	if one.Address == two.Address {
		t.Errorf("both have %s", one.Address)
	}
	for what, p := range map[string]Port{
		"no address of the host": {Host: netip.MustParseAddr("198.51.100.9"), HostPort: 9000, Port: 80, Proto: "tcp"},
		"all addresses":          {HostPort: 8080, Port: 80, Proto: "tcp"},
		"IPv6 without IPv6":      {Host: netip.IPv6Unspecified(), HostPort: 9000, Port: 80, Proto: "tcp"},
		"::1":                    {Host: netip.IPv6Loopback(), HostPort: 9000, Port: 80, Proto: "tcp"},
		"sctp":                   {HostPort: 9000, Port: 80, Proto: "sctp"},
		"port 0":                 {HostPort: 9000, Proto: "tcp"},
	} {
		if _, err := m.Attach(t.Context(), Endpoint{Container: "three", Pid: newNamespace(t).pid(), Ports: []Port{p}}); err == nil {
			t.Errorf("%s: %s was published", what, p)
		}
	}
}

func TestAPortHasOneOwner(t *testing.T) {
	uplink(t)
	m, other := manager(t, t.TempDir()), manager(t, t.TempDir())
	web := Port{HostPort: 8080, Port: 80, Proto: "tcp"}
	n, _ := publish(t, m, "", "c1", web)
	foreign := serve(t, -1, "127.0.0.1:0")
	attach(t, other, "", "quiet", newNamespace(t))
	before := hostState(t)
	for what, c := range map[string]struct {
		m *Manager
		p Port
	}{
		"of a container":                 {m, web},
		"of another root's container":    {other, web},
		"of a process of the host":       {m, Port{HostPort: foreign.Port(), Port: 80, Proto: "tcp"}},
		"of a process, on one address":   {m, Port{Host: foreign.Addr(), HostPort: foreign.Port(), Port: 80, Proto: "tcp"}},
		"of a container, on one address": {other, Port{Host: netip.MustParseAddr("192.0.2.2"), HostPort: 8080, Port: 80, Proto: "tcp"}},
	} {
		_, err := c.m.Attach(t.Context(), Endpoint{Container: "c2", Pid: newNamespace(t).pid(), Ports: []Port{{HostPort: 9999, Port: 1, Proto: "tcp"}, c.p}})
		if !errors.Is(err, ErrPortInUse) {
			t.Errorf("port %s: %v, want ErrPortInUse", what, err)
		}
	}
	sameState(t, before)
	// The other protocol is another port.
	_, err := m.Attach(t.Context(), Endpoint{Container: "c3", Pid: newNamespace(t).pid(), Ports: []Port{{HostPort: 8080, Port: 80, Proto: "udp"}}})
	must(t, err)
	// A container that ended without anybody seeing it holds nothing up.
	n.end()
	_, a := publish(t, m, "", "c4", web)
	mustCall(t, -1, at("127.0.0.1:8080"), a.Gateway.String())
	must(t, m.Detach(t.Context(), "c1")) // late: c4's port stays
	mustCall(t, -1, at("127.0.0.1:8080"), a.Gateway.String())
}

func TestPortsAreChosenAndKept(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", firstDynamic))
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	_, a := publish(t, m, "", "c1", Port{Port: 80, Proto: "tcp"}, Port{Port: 81, Proto: "tcp"})
	if a.Ports[0].HostPort != firstDynamic+1 || a.Ports[1].HostPort != firstDynamic+2 {
		t.Errorf("chosen %v", a.Ports)
	}
	mustCall(t, -1, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), firstDynamic+2), a.Gateway.String())
	n := newNamespace(t) // a restart
	again, err := m.Attach(t.Context(), Endpoint{Container: "c1", Pid: n.pid(), Ports: []Port{{Port: 80, Proto: "tcp"}, {Port: 81, Proto: "tcp"}}})
	must(t, err)
	if diff := cmp.Diff(a.Ports, again.Ports, cmp.Comparer(equal[netip.Addr])); diff != "" {
		t.Errorf("ports after a restart (-before +after):\n%s", diff)
	}
	// A range of a thousand needs more than one message to the kernel.
	var many []Port
	for i := range uint16(1000) {
		many = append(many, Port{HostPort: 20000 + i, Port: 30000 + i, Proto: "tcp"})
	}
	big := newNamespace(t)
	b, err := m.Attach(t.Context(), Endpoint{Container: "big", Pid: big.pid(), Ports: many})
	must(t, err)
	serve(t, big.fd, b.Address.Addr().String()+":30999")
	mustCall(t, -1, at("127.0.0.1:20999"), b.Gateway.String())
}

// A sender that never pauses finds the next container.
func TestDatagramsFindTheNewContainer(t *testing.T) {
	outside := uplink(t)
	m := manager(t, t.TempDir())
	port := Port{HostPort: 5353, Port: 53, Proto: "udp"}
	var c *net.UDPConn
	outside.do(t, func(*netlink.Handle) (err error) {
		c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at("192.0.2.2:5353")))
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	ask := func(want string) {
		t.Helper()
		eventually(t, want+" answers", func() bool {
			if _, err := c.Write([]byte("who?")); err != nil {
				return false // refused so far
			}
			b := make([]byte, 16)
			_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			n, err := c.Read(b)
			return err == nil && string(b[:n]) == want
		})
	}
	_, _ = c.Write([]byte("nobody there yet")) // a flow that the host itself refuses
	for _, name := range []string{"one", "two"} {
		n, a := publish(t, m, "", name, port)
		n.do(t, func(*netlink.Handle) error { return echo(t, name, a.Address.Addr()) })
		ask(name)
		must(t, m.Detach(t.Context(), name))
	}
}

// echo answers every datagram with a name.
func echo(t *testing.T, name string, a netip.Addr) error {
	l, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 53)))
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		b := make([]byte, 64)
		for {
			_, from, err := l.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = l.WriteToUDPAddrPort([]byte(name), from)
		}
	}()
	return nil
}

func TestPublishedPortsComeBackAfterAFlush(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	_, a := publish(t, m, "", "c1", Port{HostPort: 8080, Port: 80, Proto: "tcp"})
	must(t, exec.Command("nft", "flush", "ruleset").Run())
	mustNotCall(t, -1, at("127.0.0.1:8080"))
	must(t, m.Reconcile(t.Context(), func(string) bool { return true }))
	mustCall(t, -1, at("127.0.0.1:8080"), a.Gateway.String())
	out, err := exec.Command("nft", "list", "map", "inet", m.tableName(), "any4").Output()
	must(t, err)
	if !strings.Contains(string(out), `tcp . 8080 comment "c1" : `+a.Address.Addr().String()+" . 80") {
		t.Errorf("the element does not say whose it is:\n%s", out)
	}
}

func TestAnInternalNetworkPublishesNothing(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	_, err := m.Create(t.Context(), "inner", Options{Internal: true})
	must(t, err)
	_, err = m.Attach(context.Background(), Endpoint{Network: "inner", Container: "c1", Pid: newNamespace(t).pid(), Ports: []Port{{HostPort: 8080, Port: 80, Proto: "tcp"}}})
	if err == nil || !strings.Contains(err.Error(), "internal") {
		t.Errorf("got %v", err)
	}
}
