package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

// uplink6 gives the uplink IPv6 too: 2001:db8::2 here, 2001:db8::1 outside.
func uplink6(t *testing.T) (outside *namespace) {
	t.Helper()
	outside = uplink(t)
	set := func(cidr, gateway string) func(*netlink.Handle) error {
		return func(h *netlink.Handle) error {
			l, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			for _, s := range [][2]string{{"accept_dad", "0"}, {"disable_ipv6", "0"}} {
				if err := sysctl("ipv6/conf/eth0/"+s[0], s[1]); err != nil {
					return err
				}
			}
			p := netip.MustParsePrefix(cidr)
			if err := h.AddrAdd(l, addr6(p.Addr(), p.Bits())); err != nil || gateway == "" {
				return err
			}
			return h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr(gateway).AsSlice()})
		}
	}
	h := &netlink.Handle{}
	must(t, set("2001:db8::2/64", "2001:db8::1")(h))
	outside.do(t, set("2001:db8::1/64", ""))
	return outside
}

func TestDualStackNetwork(t *testing.T) {
	outside := uplink6(t)
	before := hostState(t)
	m := manager(t, t.TempDir())
	made, err := m.Create(t.Context(), "six", Options{IPv6: true})
	must(t, err)
	if !m.pool6().Contains(made.Subnet6.Addr()) || made.Subnet6.Bits() != 64 || made.Gateway6 != made.Subnet6.Addr().Next() {
		t.Errorf("made %+v, want a /64 of %s", made, m.pool6())
	}
	if v, _ := readSysctl("ipv6/conf/eth0/accept_ra"); v != "2" {
		t.Errorf("accept_ra of the uplink is %s: the host would lose its route", v)
	}
	n1, a1 := publish(t, m, "six", "c1", Port{HostPort: 8080, Port: 80, Proto: "tcp"})
	n2 := newNamespace(t)
	a2 := attach(t, m, "six", "c2", n2)
	four := newNamespace(t)
	attach(t, m, "", "four", four)

	to := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	mustCall(t, n2.fd, to(a1.Address6.Addr(), 80), a2.Address6.Addr().String())
	mustCall(t, -1, to(a1.Address6.Addr(), 80), a1.Gateway6.String())
	mustCall(t, n1.fd, serve(t, outside.fd, "[2001:db8::1]:0"), "2001:db8::2") // translated
	mustCall(t, outside.fd, at("[2001:db8::2]:8080"), "2001:db8::1")
	mustCall(t, -1, at("[2001:db8::2]:8080"), "2001:db8::2")
	mustCall(t, n2.fd, at("[2001:db8::2]:8080"), a1.Gateway6.String())
	mustCall(t, n1.fd, at("[2001:db8::2]:8080"), a1.Gateway6.String())
	mustCall(t, outside.fd, at("192.0.2.2:8080"), "192.0.2.1")

	// A router outside that knows the way does not get in, and a network
	// without IPv6 has none at all.
	outside.do(t, func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Dst: ipNet(a1.Address6.Masked()), Gw: netip.MustParseAddr("2001:db8::2").AsSlice()})
	})
	mustNotCall(t, outside.fd, to(a1.Address6.Addr(), 80))
	four.do(t, func(h *netlink.Handle) error {
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_V6) })
		if err != nil || len(addrs) > 0 {
			t.Errorf("a container of an IPv4 network has %v, %v", addrs, err)
		}
		return nil
	})
	// What no bridge claims does not leave by the default route.
	out, err := exec.Command("ip", "-6", "route", "get", m.pool6().Addr().Next().String()).CombinedOutput()
	if err == nil {
		t.Errorf("the pool leads somewhere: %s", out)
	}

	must(t, m.Detach(t.Context(), "c1"))
	must(t, m.Detach(t.Context(), "c2"))
	must(t, m.Remove(t.Context(), "six"))
	if v, _ := readSysctl(forward6Key); v != "0" {
		t.Errorf("IPv6 is still forwarded without a network that needs it")
	}
	must(t, m.Teardown(t.Context()))
	sameState(t, before)
}

// Three networks, two members each, both families: who reaches whom.
func TestIsolationMatrix(t *testing.T) {
	outside := uplink6(t)
	m := manager(t, t.TempDir())
	names := []string{"red", "green", "blue"}
	type end struct {
		network string
		n       *namespace
		to      []netip.AddrPort
	}
	var ends []end
	for _, name := range names {
		_, err := m.Create(t.Context(), name, Options{IPv6: true, Internal: name == "blue"})
		must(t, err)
		for i := range 2 {
			n := newNamespace(t)
			a := attach(t, m, name, fmt.Sprintf("%s%d", name, i), n)
			ends = append(ends, end{name, n, []netip.AddrPort{
				serve(t, n.fd, netip.AddrPortFrom(a.Address.Addr(), 0).String()), serve(t, n.fd, netip.AddrPortFrom(a.Address6.Addr(), 0).String()),
			}})
		}
	}
	out := []netip.AddrPort{serve(t, outside.fd, "192.0.2.1:0"), serve(t, outside.fd, "[2001:db8::1]:0")}
	var all sync.WaitGroup
	for i, from := range ends {
		for j, e := range append(ends, end{network: "outside", to: out}) {
			if i == j {
				continue
			}
			want := from.network == e.network || e.network == "outside" && from.network != "blue"
			for _, to := range e.to {
				all.Go(func() {
					if _, err := call(from.n.fd, to); (err == nil) != want {
						t.Errorf("%s → %s (%s): %v, want success %v", from.network, e.network, to, err, want)
					}
				})
			}
		}
	}
	all.Wait()
}

func TestGlobalAddressesAreRouted(t *testing.T) {
	outside := uplink6(t)
	m := manager(t, t.TempDir())
	_, err := m.Create(t.Context(), "pub", Options{IPv6: true, Subnet6: netip.MustParsePrefix("2001:db8:5::/64")})
	must(t, err)
	outside.do(t, func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("2001:db8:5::/64")), Gw: netip.MustParseAddr("2001:db8::2").AsSlice()})
	})
	n := newNamespace(t)
	a := attach(t, m, "pub", "c1", n)
	mustCall(t, n.fd, serve(t, outside.fd, "[2001:db8::1]:0"), a.Address6.Addr().String())
	mustNotCall(t, outside.fd, serve(t, n.fd, "["+a.Address6.Addr().String()+"]:0"))
}

func TestIPv6ThatIsOffIsAnError(t *testing.T) {
	uplink(t)
	must(t, sysctl("ipv6/conf/all/disable_ipv6", "1"))
	t.Cleanup(func() { must(t, sysctl("ipv6/conf/all/disable_ipv6", "0")) })
	before := hostState(t)
	m := manager(t, t.TempDir())
	_, err := m.Create(t.Context(), "six", Options{IPv6: true})
	if !errors.Is(err, ErrNoIPv6) || !strings.Contains(err.Error(), "disable_ipv6") {
		t.Errorf("got %v, want ErrNoIPv6 with the switch's name", err)
	}
	sameState(t, before)
}

func TestWhatWasAskedFor(t *testing.T) {
	uplink6(t)
	m := manager(t, t.TempDir())
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	_, err := m.Create(t.Context(), "own", Options{
		Subnet: p("10.99.0.0/24"), Gateway: a("10.99.0.254"), Range: p("10.99.0.128/30"),
		IPv6: true, Subnet6: p("fd00:99::/64"), Gateway6: a("fd00:99::fe"), Labels: map[string]string{"a": "b"},
	})
	must(t, err)
	n := newNamespace(t)
	mac := []byte{2, 0, 0, 0, 0, 7}
	got, err := m.Attach(t.Context(), Endpoint{
		Network: "own", Container: "c1", Pid: n.pid(), Address: a("10.99.0.7"), Address6: a("fd00:99::77"), MAC: mac, Aliases: []string{"db"},
	})
	must(t, err)
	if got.Address.String() != "10.99.0.7/24" || got.Address6.String() != "fd00:99::77/64" || got.Gateway != a("10.99.0.254") || got.MAC != "02:00:00:00:00:07" {
		t.Errorf("got %+v", got)
	}
	mustCall(t, n.fd, serve(t, -1, "10.99.0.254:0"), "10.99.0.7")
	mustCall(t, n.fd, serve(t, -1, "[fd00:99::fe]:0"), "fd00:99::77")
	for i := range 3 { // the range has four, and none of them is a gateway
		r := attach(t, m, "own", fmt.Sprint("r", i), newNamespace(t))
		if !p("10.99.0.128/30").Contains(r.Address.Addr()) {
			t.Errorf("address %s is outside of the range", r.Address)
		}
	}
	for what, ep := range map[string]Endpoint{
		"taken":          {Address: a("10.99.0.7")},
		"taken, IPv6":    {Address6: a("fd00:99::77")},
		"the gateway":    {Address: a("10.99.0.254")},
		"the broadcast":  {Address: a("10.99.0.255")},
		"outside":        {Address: a("10.98.0.1")},
		"outside, IPv6":  {Address6: a("fd00:98::1")},
		"gateway, IPv6":  {Address6: a("fd00:99::fe")},
		"of a group MAC": {MAC: []byte{1, 0, 0, 0, 0, 7}},
		"bad alias":      {Aliases: []string{"a b"}},
	} {
		ep.Network, ep.Container, ep.Pid = "own", "c9", newNamespace(t).pid()
		if got, err := m.Attach(t.Context(), ep); err == nil {
			t.Errorf("%s: got %+v", what, got)
		}
	}
	// Who names an address at rest may have it.
	must(t, m.Detach(t.Context(), "c1"))
	_, err = m.Attach(t.Context(), Endpoint{Network: "own", Container: "c2", Pid: newNamespace(t).pid(), Address: a("10.99.0.7")})
	must(t, err)
	// An address of the default network may move: it cannot be asked for.
	if _, err := m.Attach(t.Context(), Endpoint{Container: "c3", Pid: newNamespace(t).pid(), Address: a("10.213.0.9")}); err == nil {
		t.Error("the default network gave an address that was asked for")
	}
	for what, o := range map[string]Options{
		"gateway outside":      {Subnet: p("10.98.0.0/24"), Gateway: a("10.97.0.1")},
		"gateway alone":        {Gateway: a("10.97.0.1")},
		"range outside":        {Subnet: p("10.98.0.0/24"), Range: p("10.97.0.0/28")},
		"overlap":              {Subnet: p("10.99.0.128/25")},
		"overlap, IPv6":        {IPv6: true, Subnet6: p("fd00:99::/64")},
		"the uplink's, IPv6":   {IPv6: true, Subnet6: p("2001:db8::/64")},
		"link-local":           {IPv6: true, Subnet6: p("fe80::/64")},
		"too small, IPv6":      {IPv6: true, Subnet6: p("fd00:98::/124")},
		"IPv6 not asked for":   {Subnet6: p("fd00:98::/64")},
		"IPv4 in IPv6's place": {IPv6: true, Subnet6: p("10.98.0.0/24")},
	} {
		if _, err := m.Create(t.Context(), "bad", o); err == nil {
			t.Errorf("%s: it was created", what)
			must(t, m.Remove(t.Context(), "bad"))
		}
	}
}

func TestDisconnectKeepsTheOtherWayOut(t *testing.T) {
	outside := uplink6(t)
	m := manager(t, t.TempDir())
	for _, name := range []string{"one", "two"} {
		_, err := m.Create(t.Context(), name, Options{IPv6: true})
		must(t, err)
	}
	n := newNamespace(t)
	attach(t, m, "one", "c1", n)
	attach(t, m, "two", "c1", n)
	must(t, m.Disconnect(t.Context(), "one", "c1"))
	mustCall(t, n.fd, serve(t, outside.fd, "192.0.2.1:0"), "192.0.2.2")
	mustCall(t, n.fd, serve(t, outside.fd, "[2001:db8::1]:0"), "2001:db8::2")
	if err := m.Disconnect(t.Context(), "one", "c1"); !errors.Is(err, ErrNotConnected) {
		t.Errorf("disconnected twice: %v", err)
	}
	if got := attach(t, m, "one", "c1", n); got.Interface != "eth0" {
		t.Errorf("connected again as %s", got.Interface)
	}
}

// With ufw's or Docker's ip6tables in the way, IPv6 gets out too.
func TestIp6tablesForwardDropDoesNotStopUs(t *testing.T) {
	for _, program := range []string{"ip6tables-nft", "ip6tables-legacy"} {
		t.Run(program, func(t *testing.T) {
			if _, err := exec.LookPath(program); err != nil {
				t.Skipf("%s is not installed", program)
			}
			outside := uplink6(t)
			must(t, exec.Command(program, "-P", "FORWARD", "DROP").Run())
			t.Cleanup(func() { must(t, exec.Command(program, "-P", "FORWARD", "ACCEPT").Run()) })
			before := hostState(t)
			m := manager(t, t.TempDir())
			_, err := m.Create(t.Context(), "six", Options{IPv6: true})
			must(t, err)
			n := newNamespace(t)
			attach(t, m, "six", "c1", n)
			mustCall(t, n.fd, serve(t, outside.fd, "[2001:db8::1]:0"), "2001:db8::2")
			must(t, m.Teardown(t.Context()))
			sameState(t, before)
		})
	}
}

// sysctls6 is what forwarding changes; part of hostState.
func sysctls6(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	dirs, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	must(t, err)
	for _, d := range dirs {
		for _, key := range []string{"forwarding", "accept_ra"} {
			v, err := readSysctl("ipv6/conf/" + d.Name() + "/" + key)
			must(t, err)
			fmt.Fprintf(&b, "ipv6/%s/%s=%s\n", d.Name(), key, v)
		}
	}
	return b.String()
}
