package network

import (
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Obstacles names, one sentence each, the chains of others that drop what
// containers send to the outside and that are left alone: a table of nftables that
// an administrator or firewalld wrote has no place for rules of ours. iptables' own
// are not among them, see coexist.go.
func (m *Manager) Obstacles() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("look for firewalls: %w", err)
	}
	var found []string
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet} {
		chains, err := dump(func() ([]*nftables.Chain, error) { return c.ListChainsOfTableFamily(family) })
		if err != nil {
			return nil, fmt.Errorf("look for firewalls: %w", err)
		}
		for _, ch := range chains {
			drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
			forwards := ch.Hooknum != nil && *ch.Hooknum == nftables.ChainHook(unix.NF_INET_FORWARD)
			iptables := ch.Table.Name == "filter" && ch.Name == "FORWARD" && family != nftables.TableFamilyINet
			if !drops || !forwards || iptables {
				continue
			}
			name := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}[family]
			found = append(found, fmt.Sprintf(
				"nftables drops by policy in table %s %s, chain %s: containers get out, and published ports in, only if it has rules such as: iifname \"nr*\" accept; oifname \"nr*\" accept",
				name, ch.Table.Name, ch.Name))
		}
	}
	return found, nil
}
