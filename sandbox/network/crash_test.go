package network

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestKilledAtAnyStep kills the process that runs a call at each of its steps
// and then (a) calls again, (b) reconciles with the container gone. Both must
// end in a working or clean network, and Teardown in the host as it was.
func TestKilledAtAnyStep(t *testing.T) {
	uplink(t)
	for _, call := range []string{"attach", "detach", "create", "remove", "teardown", "reconcile", "publish", "unpublish", "disconnect", "create6"} {
		for step := 0; ; step++ {
			done := false
			t.Run(fmt.Sprintf("%s-%d", call, step), func(t *testing.T) {
				done = killedAt(t, call, step)
			})
			if done || t.Failed() {
				break
			}
		}
	}
}

func killedAt(t *testing.T, call string, step int) (done bool) {
	before := hostState(t)
	root := t.TempDir()
	m := manager(t, root)
	n := newNamespace(t)
	setUp(t, m, call, n)
	done = dieAt(t, step, call, root, n.pid())

	again := attach(t, m, "", "c1", n)
	mustCall(t, n.fd, serve(t, -1, again.Gateway.String()+":0"), again.Address.Addr().String())
	if done {
		return true
	}
	must(t, m.Teardown(t.Context()))
	sameState(t, before)

	// The same once more, but now the container dies with the process.
	root = t.TempDir()
	m = manager(t, root)
	setUp(t, m, call, n)
	dieAt(t, step, call, root, n.pid())
	must(t, m.Reconcile(t.Context(), func(string) bool { return false }))
	clean(t, m)
	must(t, m.Teardown(t.Context()))
	sameState(t, before)
	return false
}

// setUp makes what the call takes away.
func setUp(t *testing.T, m *Manager, call string, n *namespace) {
	t.Helper()
	switch call {
	case "detach", "teardown", "reconcile":
		attach(t, m, "", "c1", n)
	case "unpublish", "disconnect":
		must(t, operation(m, "publish", n.pid()))
	case "remove":
		must(t, operation(m, "create6", 0))
	}
}

// clean says that nothing of any container is left.
func clean(t *testing.T, m *Manager) {
	t.Helper()
	for _, name := range linkNames(t) {
		if isVeth(name) {
			t.Errorf("link %s is left", name)
		}
	}
	list, err := m.List()
	must(t, err)
	for _, n := range list {
		if len(n.Members) > 0 {
			t.Errorf("network %s still has %v", n.Name, n.Members)
		}
	}
	if out, err := exec.Command("nft", "list", "ruleset").Output(); err != nil || strings.Contains(string(out), "8080") {
		t.Errorf("a port is still redirected, %v:\n%s", err, out)
	}
	temp, err := filepath.Glob(filepath.Join(m.dir, "*", ".*.tmp-*"))
	must(t, err)
	if len(temp) > 0 {
		t.Errorf("temporary files are left: %v", temp)
	}
}

func TestReconcileRebuildsWhatTheDiskLost(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	_, err := m.Create(t.Context(), "blue", Options{Untrusted: true})
	must(t, err)
	n := newNamespace(t)
	want := attach(t, m, "blue", "c1", n)
	must(t, os.RemoveAll(m.networkDir("blue")))
	must(t, m.Reconcile(t.Context(), func(c string) bool { return c == "c1" }))
	got, err := m.Inspect("blue")
	must(t, err)
	if !got.Untrusted || len(got.Members) != 1 || got.Members[0].Address != want.Address.Addr() || got.Members[0].Hostname != "c1" {
		t.Errorf("rebuilt %+v, want the member %+v", got, want)
	}
	must(t, os.RemoveAll(m.networkDir("blue")))
	must(t, m.Reconcile(t.Context(), func(string) bool { return false }))
	for _, name := range linkNames(t) {
		if isVeth(name) || isBridge(name) {
			t.Errorf("link %s is left", name)
		}
	}
}

func TestReconcileKeepsTheLivingAndFreesTheDead(t *testing.T) {
	uplink(t)
	m := manager(t, t.TempDir())
	live, dead := newNamespace(t), newNamespace(t)
	a := attach(t, m, "", "live", live)
	attach(t, m, "", "dead", dead)
	alive := func(c string) bool { return c == "live" }
	must(t, m.Reconcile(t.Context(), alive)) // the namespace of "dead" is still held
	n, err := m.Inspect(Default)
	must(t, err)
	if len(n.Members) != 1 || n.Members[0].Container != "live" {
		t.Errorf("members %v", n.Members)
	}
	mustCall(t, -1, serve(t, live.fd, a.Address.Addr().String()+":0"), a.Gateway.String())

	// A bridge that somebody deleted by hand comes back with its ports.
	must(t, deleteLink(&netlink.Handle{}, m.bridgeName(Default)))
	must(t, m.Reconcile(t.Context(), alive))
	mustCall(t, -1, serve(t, live.fd, a.Address.Addr().String()+":0"), a.Gateway.String())

	// After the quarantine the records are gone.
	m.now = func() time.Time { return time.Now().Add(2 * quarantine) }
	must(t, m.Reconcile(t.Context(), alive))
	all, err := m.records(Default)
	must(t, err)
	if len(all) != 1 {
		t.Errorf("records %v, want one", all)
	}
}

func TestAliasesAreReadBack(t *testing.T) {
	m := &Manager{id: "0123abcd"}
	d := definition{Name: "blue", Subnet: netip.MustParsePrefix("10.213.4.0/24"), Internal: true, Fixed: true}
	root, got, ok := parseBridgeAlias(m.bridgeAlias(d))
	if !ok || root != m.id || !reflect.DeepEqual(got, d) {
		t.Errorf("bridge: %v %v %v", root, got, ok)
	}
	r := record{Container: strings.Repeat("c", maxContainer), Address: netip.MustParseAddr("10.213.4.200"), Interface: "eth0", Hostname: "web"}
	for _, network := range []string{"b", strings.Repeat("n", maxNetworkName)} {
		alias := m.vethAlias(network, r)
		if len(alias) > maxAlias {
			t.Errorf("alias of %d bytes", len(alias))
		}
		name, back, ok := m.parseVethAlias(alias)
		if !ok || name != network || back.Container != r.Container || back.Address != r.Address {
			t.Errorf("veth: %v %v %v", name, back, ok)
		}
	}
	if _, _, ok := (&Manager{id: "ffffffff"}).parseVethAlias(m.vethAlias("blue", r)); ok {
		t.Error("a veth of another root was taken for ours")
	}
}
