package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ruleset is the root's table as data: chains in order, each with its rules.
type ruleset []ruleChain

type ruleChain struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

func (m *Manager) tableName() string { return "naru-" + m.id }

// Per network there is one chain for what it sends and one for what it gets.
// Their presence also tells that the network is in the table.
func fromChain(bridge string) string   { return "from-" + bridge }
func toChain(bridge string) string     { return "to-" + bridge }
func toHostChain(bridge string) string { return "host-" + bridge }

// plan writes the whole table. A drop is final in any base chain, whatever
// other tables say, so isolation does not depend on anyone; an accept is not,
// which is why coexist.go exists.
//
// No verdict maps: some kernels are built without them, and a machine has a
// handful of networks. Ports are looked up in maps of data, see publish.go.
func (m *Manager) plan(networks []definition, ports []published) ruleset {
	public := map[string]bool{} // bridges with published ports
	for _, p := range ports {
		public[p.bridge] = true
	}
	raw := ruleChain{chain: baseChain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)}
	forward := ruleChain{chain: baseChain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, -10)}
	input := ruleChain{chain: baseChain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, -10)}
	nat := ruleChain{chain: baseChain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100)}
	var own ruleset
	for _, d := range networks {
		br := m.bridgeName(d.Name)
		raw.rules = append(raw.rules, spoofRules(br, d)...)
		own = append(own,
			ruleChain{&nftables.Chain{Name: fromChain(br)}, fromRules(br, d)},
			ruleChain{&nftables.Chain{Name: toChain(br)}, toRules(public[br])})
		forward.rules = append(forward.rules, rule(iif(br), jump(fromChain(br))), rule(oif(br), jump(toChain(br))))
		if d.Untrusted {
			own = append(own, ruleChain{&nftables.Chain{Name: toHostChain(br)}, hostRules(d)})
			input.rules = append(input.rules, rule(iif(br), jump(toHostChain(br))))
		}
		if !d.Internal {
			nat.rules = append(nat.rules, rule(saddr(d.Subnet), oifNot(br), masquerade()))
			if d.translated() {
				nat.rules = append(nat.rules, rule(saddr(d.Subnet6), oifNot(br), masquerade()))
			}
		}
		if public[br] {
			nat.rules = append(nat.rules, returnRules(br, d)...)
		}
	}
	// Chains that are jumped to must exist before the jumps.
	own = append(own, raw, forward, input, nat)
	if len(ports) > 0 {
		own = append(own, m.publishChains(networks)...)
	}
	return own
}

// spoofRules run before connection tracking and routing.
func spoofRules(br string, d definition) [][]expr.Any {
	rules := [][]expr.Any{
		rule(iif(br), saddrNot(d.Subnet), drop()),
		// The host's own loopback services, where route_localnet is on for all
		// interfaces (CVE-2020-8558).
		rule(iif(br), daddr(netip.MustParsePrefix("127.0.0.0/8")), drop()),
		// A neighbour on the uplink, or another network, that routes to the
		// subnet through this host. Replies to NATed connections carry the host's
		// address here, so they are not meant.
		rule(daddr(d.Subnet), iifNot(br), iifNot("lo"), drop()),
	}
	if !d.Subnet6.IsValid() {
		return rules
	}
	linkLocal, none := netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("::/128")
	if d.translated() { // else replies carry the subnet's addresses here; toRules judges
		rules = append(rules, rule(daddr(d.Subnet6), iifNot(br), iifNot("lo"), drop()))
	}
	return append(rules,
		// Neighbours find each other by link-local and unspecified addresses (RFC 4861).
		rule(iif(br), saddrNot(d.Subnet6), saddrNot(linkLocal), saddrNot(none), drop()))
}

// toRules judge what members of the network get through the host.
func toRules(public bool) [][]expr.Any {
	rules := [][]expr.Any{rule(replies(), accept())}
	if public {
		rules = append(rules, rule(redirected(), accept()))
	}
	return append(rules, drop())
}

// fromRules judge what members of the network send through the host.
func fromRules(br string, d definition) [][]expr.Any {
	same := accept()
	if d.Untrusted {
		same = drop()
	}
	rules := [][]expr.Any{
		// br_netfilter shows frames between two ports here as well.
		rule(oif(br), same),
	}
	if !d.Subnet6.IsValid() {
		rules = append(rules, rule(family(unix.NFPROTO_IPV6), drop()))
	}
	if d.Internal {
		return append(rules, drop())
	}
	if d.Untrusted {
		linkLocal := daddr(netip.MustParsePrefix("169.254.0.0/16"))
		rules = append(rules,
			// Some clouds have their name server there.
			rule(linkLocal, toPort(unix.IPPROTO_UDP, 53), accept()),
			rule(linkLocal, toPort(unix.IPPROTO_TCP, 53), accept()),
			rule(linkLocal, drop()))
		for _, a := range metadataServices() {
			rules = append(rules, rule(daddr(a), toPort(unix.IPPROTO_UDP, 53), accept()), rule(daddr(a), toPort(unix.IPPROTO_TCP, 53), accept()), rule(daddr(a), drop()))
		}
		if d.Subnet6.IsValid() { // where AWS has its metadata service in IPv6
			rules = append(rules, rule(daddr(netip.MustParsePrefix("fd00:ec2::254/128")), drop()))
		}
	}
	return rules
}

// metadataServices are those of clouds that are not link-local: Azure's, which is its
// name server too, Alibaba's and Oracle's.
func metadataServices() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("168.63.129.16/32"), netip.MustParsePrefix("100.100.100.200/32"), netip.MustParsePrefix("192.0.0.192/32")}
}

// hostRules judge what untrusted members send to the host itself.
func hostRules(d definition) (rules [][]expr.Any) {
	if d.Subnet6.IsValid() {
		rules = append(rules, rule(neighbours(), accept()))
	}
	return append(rules, [][]expr.Any{
		rule(replies(), accept()),
		rule(toPort(unix.IPPROTO_UDP, 53), accept()),
		rule(toPort(unix.IPPROTO_TCP, 53), accept()),
		drop(),
	}...)
}

// applyRules replaces the root's table by one transaction: packets meet the
// old rules or the new ones, never none. Records that leaving matches count as
// gone. A bridge routes 127.0.0.0/8 only while the table that guards it stands.
func (m *Manager) applyRules(networks []definition, leaving func(network string, r record) bool) error {
	ports, err := m.publishedPorts(networks, leaving)
	if err != nil {
		return err
	}
	if err := m.routeLocalnet(networks, ports, false); err != nil {
		return err
	}
	if err := m.writeTable(networks, ports); err != nil {
		return err
	}
	return m.routeLocalnet(networks, ports, true)
}

func (m *Manager) writeTable(networks []definition, ports []published) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: m.tableName(), Family: nftables.TableFamilyINet}
	c.AddTable(table) // so that the deletion finds one
	c.DelTable(table)
	c.AddTable(table)
	if err := addPortMaps(c, table, ports); err != nil {
		return fmt.Errorf("write nftables table %s: %w", table.Name, err)
	}
	for _, rc := range m.plan(networks, ports) {
		rc.chain.Table = table
		c.AddChain(rc.chain)
		for _, r := range rc.rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: rc.chain, Exprs: r})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", table.Name, err)
	}
	return nil
}

// hasRules says whether the network is in the table. It is asked at every
// Attach because "nft flush ruleset", which restarts of nftables.service run,
// takes our table away too.
func (m *Manager) hasRules(bridge string) bool {
	c, err := nftables.New()
	if err != nil {
		return false // applyRules will say it
	}
	table := &nftables.Table{Name: m.tableName(), Family: nftables.TableFamilyINet}
	_, err = c.ListChain(table, fromChain(bridge))
	return err == nil
}

// dropTable deletes a table of ours if it is there.
func dropTable(name string) error {
	tables, err := listTables()
	if err != nil || !tables[name] {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("delete nftables table %s: %w", name, err)
	}
	return nil
}

func listTables() (map[string]bool, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	list, err := dump(func() ([]*nftables.Table, error) { return c.ListTablesOfFamily(nftables.TableFamilyINet) })
	if err != nil {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	names := map[string]bool{}
	for _, t := range list {
		names[t.Name] = true
	}
	return names, nil
}
