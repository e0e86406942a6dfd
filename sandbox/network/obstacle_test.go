package network

import (
	"os/exec"
	"strings"
	"testing"
)

// A firewall in nftables whose policy is drop is final: we say so, and what we
// advise helps.
func TestANativeFirewallIsNamed(t *testing.T) {
	outside := uplink(t)
	m := manager(t, t.TempDir())
	n := newNamespace(t)
	attach(t, m, "", "c1", n)
	to := serve(t, outside.fd, "192.0.2.1:0")
	if found, err := m.Obstacles(); err != nil || len(found) != 0 {
		t.Errorf("without a firewall: %v, %v", found, err)
	}
	nft := func(script string) { t.Helper(); must(t, exec.Command("nft", script).Run()) }
	nft("table inet fw { chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; }; }")
	t.Cleanup(func() { nft("delete table inet fw") })
	mustNotCall(t, n.fd, to)
	found, err := m.Obstacles()
	if err != nil || len(found) != 1 || !strings.Contains(found[0], "table inet fw, chain forward") {
		t.Errorf("with one: %v, %v", found, err)
	}
	nft(`add rule inet fw forward iifname "nr*" accept; add rule inet fw forward oifname "nr*" accept`)
	mustCall(t, n.fd, to, "192.0.2.2")
}
