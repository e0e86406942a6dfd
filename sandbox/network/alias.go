package network

import (
	"net/netip"
	"strings"
)

// Links carry their owner in IFLA_IFALIAS (rtnetlink(7), at most 255 bytes):
//
//	bridge  naru:<root>:<network>:<subnet>:<flags>[:<gateway>:<subnet6>:<gateway6>]
//	veth    naru:<root>:<network>:<container>:<address>:<interface>:<hostname>
//
// The colons of IPv6 are written as dashes. The alias is the last thing a bridge
// gets: one without it was not finished.
const aliasPrefix = "naru:"

const maxAlias = 255

func (m *Manager) bridgeAlias(d definition) string {
	flags := ""
	for _, f := range []struct {
		on   bool
		name string
	}{{d.Fixed, "f"}, {d.Internal, "i"}, {d.Untrusted, "u"}} {
		if f.on {
			flags += f.name
		}
	}
	f := []string{m.id, d.Name, d.Subnet.String(), flags}
	if d.Gateway.IsValid() || d.Subnet6.IsValid() {
		f = append(f, text(d.Gateway), text(d.Subnet6), text(d.Gateway6))
	}
	return aliasPrefix + strings.Join(f, ":")
}

// text is empty for the zero address or prefix.
func text(v interface {
	IsValid() bool
	String() string
}) string {
	if !v.IsValid() {
		return ""
	}
	return strings.ReplaceAll(v.String(), ":", "-")
}

// parseBridgeAlias is the way back; root is the hash of the owner.
func parseBridgeAlias(alias string) (root string, d definition, ok bool) {
	rest, found := strings.CutPrefix(alias, aliasPrefix)
	f := strings.Split(rest, ":")
	if !found || len(f) != 4 && len(f) != 7 {
		return "", d, false
	}
	subnet, err := netip.ParsePrefix(f[2])
	if err != nil {
		return "", d, false
	}
	d = definition{
		Name:      f[1],
		Subnet:    subnet,
		Fixed:     strings.Contains(f[3], "f"),
		Internal:  strings.Contains(f[3], "i"),
		Untrusted: strings.Contains(f[3], "u"),
	}
	if len(f) == 7 {
		// What cannot be read stays zero: the bridge's own addresses tell the rest.
		colons := strings.NewReplacer("-", ":")
		d.Gateway, _ = netip.ParseAddr(f[4])
		d.Subnet6, _ = netip.ParsePrefix(colons.Replace(f[5]))
		d.Gateway6, _ = netip.ParseAddr(colons.Replace(f[6]))
	}
	return f[0], d, true
}

func (m *Manager) vethAlias(network string, r record) string {
	a := aliasPrefix + strings.Join([]string{m.id, network, r.Container, r.Address.String(), r.Interface, ""}, ":")
	if len(a)+len(r.Hostname) > maxAlias {
		return a // the name can be lost, the owner cannot
	}
	return a + r.Hostname
}

// parseVethAlias is the way back, for veths of this root only.
func (m *Manager) parseVethAlias(alias string) (network string, r record, ok bool) {
	rest, found := strings.CutPrefix(alias, aliasPrefix+m.id+":")
	f := strings.Split(rest, ":")
	if !found || len(f) != 5 {
		return "", r, false
	}
	addr, err := netip.ParseAddr(f[2])
	if err != nil {
		return "", r, false
	}
	return f[0], record{Container: f[1], Address: addr, Interface: f[3], Hostname: f[4]}, true
}
