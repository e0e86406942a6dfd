package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

func TestTwoContainersTalkToEachOtherTheHostAndOutside(t *testing.T) {
	outside := uplink(t)
	before := hostState(t)
	m := manager(t, t.TempDir())
	n1, n2 := newNamespace(t), newNamespace(t)
	a1, a2 := attach(t, m, "", "c1", n1), attach(t, m, "", "c2", n2)

	if a1.MTU != uplinkMTU {
		t.Errorf("MTU %d, want the uplink's %d", a1.MTU, uplinkMTU)
	}
	if a1.Address == a2.Address || a1.Gateway != a2.Gateway || a1.Interface != "eth0" {
		t.Errorf("attachments %+v and %+v", a1, a2)
	}
	ip1, ip2 := a1.Address.Addr().String(), a2.Address.Addr().String()
	mustCall(t, n1.fd, serve(t, n2.fd, ip2+":0"), ip1)
	mustCall(t, n1.fd, serve(t, -1, a1.Gateway.String()+":0"), ip1)
	mustCall(t, -1, serve(t, n1.fd, ip1+":0"), a1.Gateway.String())
	mustCall(t, n1.fd, serve(t, n1.fd, "127.0.0.1:0"), "127.0.0.1")
	mustCall(t, n1.fd, serve(t, outside.fd, "192.0.2.1:0"), "192.0.2.2") // masqueraded

	// The other way: a machine on the uplink that knows the route.
	outside.do(t, func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Dst: ipNet(a1.Address.Masked()), Gw: []byte{192, 0, 2, 2}})
	})
	mustNotCall(t, outside.fd, serve(t, n2.fd, ip2+":0"))

	must(t, m.Teardown(t.Context()))
	sameState(t, before)
}

func TestNetworksAreIsolated(t *testing.T) {
	outside := uplink(t)
	root2 := t.TempDir()
	m, other := manager(t, t.TempDir()), manager(t, root2)
	for name, o := range map[string]Options{
		"blue": {}, "red": {}, "inner": {Internal: true}, "build": {Untrusted: true},
	} {
		_, err := m.Create(t.Context(), name, o)
		must(t, err)
	}
	type end struct {
		n  *namespace
		at Attachment
		to netip.AddrPort
	}
	plugIn := func(m *Manager, network, container string) end {
		e := end{n: newNamespace(t)}
		e.at = attach(t, m, network, container, e.n)
		e.to = serve(t, e.n.fd, e.at.Address.Addr().String()+":0")
		return e
	}
	ends := map[string]end{
		"blue1": plugIn(m, "blue", "blue1"), "blue2": plugIn(m, "blue", "blue2"), "red": plugIn(m, "red", "red"),
		"inner1": plugIn(m, "inner", "inner1"), "inner2": plugIn(m, "inner", "inner2"),
		"build1": plugIn(m, "build", "build1"), "build2": plugIn(m, "build", "build2"),
		"foreign": plugIn(other, "", "foreign"),
	}
	friends := map[string]string{"blue1": "blue2", "blue2": "blue1", "inner1": "inner2", "inner2": "inner1"}
	out := serve(t, outside.fd, "192.0.2.1:0")
	var wg sync.WaitGroup
	for from, f := range ends {
		for to, e := range ends {
			if from == to {
				continue
			}
			wg.Go(func() {
				_, err := call(f.n.fd, e.to)
				if want := friends[from] == to; (err == nil) != want {
					t.Errorf("%s → %s: %v, want success %v", from, to, err, want)
				}
			})
		}
		wg.Go(func() {
			_, err := call(f.n.fd, out)
			if want := !strings.HasPrefix(from, "inner"); (err == nil) != want {
				t.Errorf("%s → outside: %v, want success %v", from, err, want)
			}
		})
	}
	wg.Wait()
	// Untrusted members do not reach the host, the host reaches them.
	mustNotCall(t, ends["build1"].n.fd, serve(t, -1, ends["build1"].at.Gateway.String()+":0"))
	mustNotCall(t, ends["build1"].n.fd, serve(t, -1, "192.0.2.2:0"))
	mustCall(t, -1, ends["build1"].to, ends["build1"].at.Gateway.String())
	// Nor does anyone reach the host by another network's gateway.
	mustNotCall(t, ends["blue1"].n.fd, serve(t, -1, ends["red"].at.Gateway.String()+":0"))
}

func TestAttachIsIdempotentAndRepairs(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	n := newNamespace(t)
	first := attach(t, m, "", "c1", n)
	to := serve(t, n.fd, first.Address.Addr().String()+":0")
	damage := map[string]func(){
		"nothing":     func() {},
		"the rules":   func() { must(t, exec.Command("nft", "flush", "ruleset").Run()) },
		"the bridge":  func() { must(t, deleteLink(&netlink.Handle{}, m.bridgeName(Default))) },
		"the veth":    func() { must(t, deleteLink(&netlink.Handle{}, onlyVeth(t))) },
		"the address": func() { n.do(t, flushAddresses) },
	}
	for what, do := range damage {
		do()
		if diff := cmp.Diff(first, attach(t, m, "", "c1", n), cmp.Comparer(equal[netip.Addr]), cmp.Comparer(equal[netip.Prefix])); diff != "" {
			t.Errorf("attached again without %s (-first +again):\n%s", what, diff)
		}
		mustCall(t, -1, to, first.Gateway.String())
	}
	// The same container in a new namespace, while the old one still exists.
	n2 := newNamespace(t)
	again := attach(t, m, "", "c1", n2)
	if again.Address != first.Address {
		t.Errorf("address %s in the new namespace, want %s", again.Address, first.Address)
	}
	mustCall(t, -1, serve(t, n2.fd, again.Address.Addr().String()+":0"), first.Gateway.String())
}

func onlyVeth(t *testing.T) string {
	t.Helper()
	for _, name := range linkNames(t) {
		if isVeth(name) {
			return name
		}
	}
	t.Fatal("no veth")
	return ""
}

func equal[T comparable](a, b T) bool { return a == b }

func flushAddresses(h *netlink.Handle) error {
	l, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := h.AddrDel(l, &a); err != nil {
			return err
		}
	}
	return nil
}

func TestFreedAddressRestsBeforeItIsReused(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	now := time.Now()
	m.now = func() time.Time { return now }
	_, err := m.Create(t.Context(), "tiny", Options{Subnet: netip.MustParsePrefix("10.99.0.0/30")})
	must(t, err)
	n1, n2 := newNamespace(t), newNamespace(t)
	a := attach(t, m, "tiny", "c1", n1) // the only address
	join := func() (Attachment, error) {
		return m.Attach(t.Context(), Endpoint{Network: "tiny", Container: "c2", Pid: n2.pid()})
	}
	if _, err := join(); !errors.Is(err, ErrFull) {
		t.Fatalf("second attach: %v, want ErrFull", err)
	}
	must(t, m.Detach(t.Context(), "c1"))
	now = now.Add(quarantine - time.Second)
	if _, err := join(); !errors.Is(err, ErrFull) {
		t.Fatalf("attach in quarantine: %v, want ErrFull", err)
	}
	now = now.Add(2 * time.Second)
	b, err := join()
	must(t, err)
	if a.Address != b.Address || a.MAC != b.MAC {
		t.Errorf("got %v, want %v again", b, a)
	}
	must(t, m.Detach(t.Context(), "c1")) // late, must not hurt c2
	mustCall(t, -1, serve(t, n2.fd, b.Address.Addr().String()+":0"), b.Gateway.String())
}

func TestDetachAfterTheEndIsFast(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	for _, alive := range []bool{true, false} {
		n := newNamespace(t)
		attach(t, m, "", "c1", n)
		if !alive {
			n.end()
		}
		start := time.Now()
		must(t, m.Detach(t.Context(), "c1"))
		t.Logf("detach, process alive %v: %v", alive, time.Since(start))
		eventually(t, "the veth is gone", func() bool {
			return !strings.Contains(strings.Join(linkNames(t), " "), "nv")
		})
	}
	n, err := m.Inspect(Default)
	must(t, err)
	if len(n.Members) != 0 {
		t.Errorf("members %v after detach", n.Members)
	}
}

func TestContainerInTwoNetworks(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	_, err := m.Create(t.Context(), "back", Options{Internal: true})
	must(t, err)
	n, db := newNamespace(t), newNamespace(t)
	front, back := attach(t, m, "", "web", n), attach(t, m, "back", "web", n)
	d := attach(t, m, "back", "db", db)
	if front.Interface != "eth0" || back.Interface != "eth1" {
		t.Errorf("interfaces %s and %s", front.Interface, back.Interface)
	}
	mustCall(t, n.fd, serve(t, db.fd, d.Address.Addr().String()+":0"), back.Address.Addr().String())
	if err := m.Remove(t.Context(), "back"); !errors.Is(err, ErrInUse) {
		t.Errorf("remove of a used network: %v", err)
	}
	info, err := m.Inspect("back")
	must(t, err)
	want := []Member{
		{Container: "web", Hostname: "web", Address: back.Address.Addr(), MAC: back.MAC},
		{Container: "db", Hostname: "db", Address: d.Address.Addr(), MAC: d.MAC},
	}
	if diff := cmp.Diff(want, info.Members, cmp.Comparer(equal[netip.Addr])); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	must(t, m.Detach(t.Context(), "web"))
	must(t, m.Detach(t.Context(), "db"))
	must(t, m.Remove(t.Context(), "back"))
	if err := m.Remove(t.Context(), "back"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second remove: %v", err)
	}
	list, err := m.List()
	must(t, err)
	if len(list) != 1 || list[0].Name != Default {
		t.Errorf("list %v", list)
	}
}

func TestRootsSideBySideChooseDifferentSubnetsAndShareForwarding(t *testing.T) {
	uplink(t)
	before := hostState(t)
	roots := []*Manager{manager(t, t.TempDir()), manager(t, t.TempDir()), manager(t, t.TempDir())}
	spaces := []*namespace{newNamespace(t), newNamespace(t), newNamespace(t)}
	got := make([]Attachment, len(roots))
	var wg sync.WaitGroup
	for i, m := range roots {
		wg.Go(func() {
			var err error
			if got[i], err = m.Attach(context.Background(), Endpoint{Container: "c", Pid: spaces[i].pid()}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range got {
		for j := range i {
			if got[i].Address.Overlaps(got[j].Address) {
				t.Errorf("roots %d and %d share %s", i, j, got[i].Address)
			}
		}
	}
	for i, m := range roots {
		if v, err := readSysctl(forwardKey); err != nil || v != "1" {
			t.Errorf("ip_forward %s, %v while %d roots are up", v, err, len(roots)-i)
		}
		must(t, m.Teardown(t.Context()))
	}
	sameState(t, before)
}

func TestForwardingThatWasOnStaysOn(t *testing.T) {
	uplink(t)
	must(t, sysctl(forwardKey, "1"))
	t.Cleanup(func() { must(t, sysctl(forwardKey, "0")) })
	before := hostState(t)
	m := manager(t, t.TempDir())
	attach(t, m, "", "c1", newNamespace(t))
	must(t, m.Teardown(t.Context()))
	sameState(t, before)
}

func TestSubnetMovesAwayWhenTakenWhileDown(t *testing.T) {
	uplink(t)
	root := t.TempDir()
	m := manager(t, root)
	first := attach(t, m, "", "c1", newNamespace(t))
	must(t, m.Teardown(t.Context())) // as a reboot leaves it
	other := manager(t, t.TempDir())
	if a := attach(t, other, "", "c1", newNamespace(t)); a.Address != first.Address {
		t.Fatalf("the other root took %s, this test wants %s", a.Address, first.Address)
	}
	if a := attach(t, m, "", "c1", newNamespace(t)); a.Address.Overlaps(first.Address) {
		t.Errorf("still %s, which another root has", a.Address)
	}
	_, err := m.Create(t.Context(), "fixed", Options{Subnet: first.Address.Masked()})
	if !errors.Is(err, ErrNoSubnet) {
		t.Errorf("fixed subnet that is taken: %v, want ErrNoSubnet", err)
	}
	if _, err := m.Inspect("fixed"); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a failed create: %v, want ErrNotFound", err)
	}
}

func TestPoolNeverLeavesByTheDefaultRoute(t *testing.T) {
	outside := uplink(t)
	outside.do(t, func(h *netlink.Handle) error { // it would answer
		l, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("10.213.77.7/32")
		if err != nil {
			return err
		}
		return h.AddrAdd(l, a)
	})
	to := serve(t, outside.fd, "10.213.77.7:0")
	mustCall(t, -1, to, "192.0.2.2")
	m := manager(t, t.TempDir())
	n := newNamespace(t)
	attach(t, m, "", "c1", n)
	mustNotCall(t, -1, to)
	mustNotCall(t, n.fd, to)
}

func TestAttachRefusesTheHostsNamespaceAndBadNames(t *testing.T) {
	m := manager(t, t.TempDir())
	before := hostState(t)
	for _, ep := range []Endpoint{
		{Container: "c", Pid: os.Getpid()},
		{Container: "c", Pid: 1 << 30},
		{Container: "../c", Pid: os.Getpid()},
		{Container: "c", Network: "no/such", Pid: os.Getpid()},
		{Container: "c", Network: "missing", Pid: newNamespace(t).pid()},
	} {
		if _, err := m.Attach(t.Context(), ep); err == nil {
			t.Errorf("attach %+v succeeded", ep)
		}
	}
	sameState(t, before)
}

func TestIptablesForwardDropDoesNotStopUs(t *testing.T) {
	for _, tc := range []struct{ name, script, undo string }{
		{"ufw on nft", "iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT"},
		{"ufw on legacy", "iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT"},
		{"docker", "iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -I FORWARD -j DOCKER-USER",
			"iptables-nft -P FORWARD ACCEPT; iptables-nft -D FORWARD -j DOCKER-USER; iptables-nft -X DOCKER-USER"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			program := strings.Fields(tc.script)[0]
			if _, err := exec.LookPath(program); err != nil {
				t.Skipf("%s is not installed", program)
			}
			outside := uplink(t)
			must(t, exec.Command("sh", "-ec", tc.script).Run())
			t.Cleanup(func() { must(t, exec.Command("sh", "-ec", tc.undo).Run()) })
			before := hostState(t)
			m := manager(t, t.TempDir())
			n := newNamespace(t)
			attach(t, m, "", "c1", n)
			to := serve(t, outside.fd, "192.0.2.1:0")
			mustCall(t, n.fd, to, "192.0.2.2")

			// A second time nothing is added; a restart of Docker is repaired.
			list := strings.Join(iptablesListings(t), ";")
			first, err := exec.Command("sh", "-ec", list).Output()
			must(t, err)
			must(t, m.Reconcile(t.Context(), func(string) bool { return true }))
			second, err := exec.Command("sh", "-ec", list).Output()
			must(t, err)
			if diff := cmp.Diff(string(first), string(second)); diff != "" {
				t.Errorf("rules were added (-first +second):\n%s", diff)
			}
			if tc.name == "docker" {
				must(t, exec.Command("iptables-nft", "-F", "DOCKER-USER").Run())
				mustNotCall(t, n.fd, to)
				must(t, m.Reconcile(t.Context(), func(string) bool { return true }))
				mustCall(t, n.fd, to, "192.0.2.2")
			}
			must(t, m.Teardown(t.Context()))
			sameState(t, before)
		})
	}
}

func TestResolve(t *testing.T) {
	for _, tc := range []struct{ name, etc, systemd, want, warn string }{
		{"plain servers", "nameserver 192.0.2.53\nnameserver 192.0.2.54 \nsearch a.example b.example\noptions ndots:2\n", "",
			"nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch a.example b.example\noptions ndots:2\n", ""},
		{"the stub of systemd-resolved", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n", "nameserver 192.0.2.1\n",
			"nameserver 192.0.2.1\nsearch lan\noptions edns0\n", ""},
		{"loopback and IPv6 are left out", "# x\nnameserver ::1\nnameserver 127.0.0.1\nnameserver 2001:db8::1\nnameserver 192.0.2.9\n", "",
			"nameserver 192.0.2.9\n", ""},
		{"at most three", "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", "",
			"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n", ""},
		{"only loopback", "nameserver 127.0.0.1\nsearch lan\n", "", "search lan\n", "no name servers that a container can reach"},
		{"no file at all", "", "", "", "no name servers"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			m := openRoot(t, dir)
			for name, text := range map[string]string{"etc": tc.etc, "systemd": tc.systemd} {
				if text != "" {
					must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
				}
			}
			m.resolv = []string{filepath.Join(dir, "etc"), filepath.Join(dir, "systemd")}
			got, warn := m.Resolve()
			if string(got) != tc.want || !strings.HasPrefix(warn, tc.warn) || tc.warn == "" && warn != "" {
				t.Errorf("got %q, warning %q; want %q, %q", got, warn, tc.want, tc.warn)
			}
		})
	}
}

func TestPickSkipsWhatIsTaken(t *testing.T) {
	prefixes := func(s ...string) (all []netip.Prefix) {
		for _, p := range s {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	for _, tc := range []struct {
		taken []netip.Prefix
		want  string
	}{
		{nil, "10.213.0.0/24"},
		{prefixes("10.213.0.128/25", "10.213.1.0/32"), "10.213.2.0/24"},
		{prefixes("10.0.0.0/8"), "172.29.0.0/24"},
		{prefixes("10.0.0.0/8", "172.16.0.0/12"), "192.168.208.0/24"},
	} {
		if got, err := pick(tc.taken); err != nil || got.String() != tc.want {
			t.Errorf("taken %v: got %v, %v; want %s", tc.taken, got, err, tc.want)
		}
	}
	if _, err := pick(prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")); !errors.Is(err, ErrNoSubnet) {
		t.Errorf("everything taken: %v, want ErrNoSubnet", err)
	}
}
