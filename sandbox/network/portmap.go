package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// published is a port with where it leads. Each element of a map carries the
// container's id as its comment, and the whole table is written from the records,
// so that what is late for one container cannot take another's away.
type published struct {
	Port
	container string
	bridge    string
	to, to6   netip.Addr
}

// portMap is a map of the table: protocol and port, with or without the address
// of the host, lead to address and port of a container.
type portMap struct {
	name       string
	v6, bound  bool
	host, addr nftables.SetDatatype
}

func portMaps() []portMap {
	return []portMap{
		{"bound4", false, true, nftables.TypeIPAddr, nftables.TypeIPAddr},
		{"any4", false, false, nftables.SetDatatype{}, nftables.TypeIPAddr},
		{"bound6", true, true, nftables.TypeIP6Addr, nftables.TypeIP6Addr},
		{"any6", true, false, nftables.SetDatatype{}, nftables.TypeIP6Addr},
	}
}

const publishChain = "publish"

// publishedPorts is what the records of the networks say.
func (m *Manager) publishedPorts(networks []definition, leaving func(string, record) bool) ([]published, error) {
	var all []published
	for _, d := range networks {
		records, err := m.records(d.Name)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			if !r.inUse() || len(r.Ports) == 0 || leaving != nil && leaving(d.Name, r) {
				continue
			}
			for _, p := range r.Ports {
				all = append(all, published{p, r.Container, m.bridgeName(d.Name), r.Address, r.Address6})
			}
		}
	}
	return all, nil
}

// set declares the map. The key is padded to registers of 4 bytes.
func (pm portMap) set(table *nftables.Table) (*nftables.Set, error) {
	key := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	if pm.bound {
		key = append([]nftables.SetDatatype{pm.host}, key...)
	}
	keyType, err := nftables.ConcatSetType(key...)
	if err != nil {
		return nil, err
	}
	dataType, err := nftables.ConcatSetType(pm.addr, nftables.TypeInetService)
	if err != nil {
		return nil, err
	}
	return &nftables.Set{Table: table, Name: pm.name, IsMap: true, Concatenation: true, KeyType: keyType, DataType: dataType}, nil
}

// element is the port's entry in the map; ok is false where it has none.
func (pm portMap) element(p published) (e nftables.SetElement, ok bool) {
	to, family := p.to, p.v4()
	if pm.v6 {
		to, family = p.to6, p.v6()
	}
	if !family || !to.IsValid() || pm.bound == p.any() {
		return e, false
	}
	if pm.bound {
		e.Key = p.Host.AsSlice()
	}
	proto := byte(unix.IPPROTO_TCP)
	if p.Proto == "udp" {
		proto = unix.IPPROTO_UDP
	}
	e.Key = append(e.Key, proto, 0, 0, 0)
	e.Key = append(binary.BigEndian.AppendUint16(e.Key, p.HostPort), 0, 0)
	e.Val = append(binary.BigEndian.AppendUint16(to.AsSlice(), p.Port.Port), 0, 0)
	e.Comment = p.container
	return e, true
}

// addPortMaps adds the maps with their elements to the transaction.
func addPortMaps(c *nftables.Conn, table *nftables.Table, ports []published) error {
	if len(ports) == 0 {
		return nil
	}
	for _, pm := range portMaps() {
		set, err := pm.set(table)
		if err != nil {
			return err
		}
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
		var elements []nftables.SetElement
		for _, p := range ports {
			if e, ok := pm.element(p); ok {
				elements = append(elements, e)
			}
		}
		// One message of netlink holds 64 KiB.
		for part := range slices.Chunk(elements, 200) {
			if err := c.SetAddElements(set, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// publishChains redirect what comes from outside, from other networks and from
// the host itself. Untrusted members do not reach the host, so not its ports.
func (m *Manager) publishChains(networks []definition) ruleset {
	pre := ruleChain{chain: baseChain("redirect", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100)}
	out := ruleChain{chain: baseChain("redirect-own", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100)}
	for _, d := range networks {
		if d.Untrusted {
			pre.rules = append(pre.rules, rule(iif(m.bridgeName(d.Name)), accept()))
		}
	}
	pre.rules = append(pre.rules, rule(local(), jump(publishChain)))
	out.rules = append(out.rules, rule(local(), jump(publishChain)))
	publish := ruleChain{chain: &nftables.Chain{Name: publishChain}}
	for _, pm := range portMaps() {
		publish.rules = append(publish.rules, pm.redirect())
	}
	return ruleset{publish, pre, out}
}

// redirect looks the destination up and rewrites it. Registers 8 and up are the
// 4-byte parts of the old 16-byte ones (nf_tables.h, NFT_REG32_00 is 8 and lies
// in register 1).
func (pm portMap) redirect() []expr.Any {
	const reg32 = 8
	proto, offset, size := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if pm.v6 {
		proto, offset, size = unix.NFPROTO_IPV6, 24, 16
	}
	next := uint32(reg32)
	var load []expr.Any
	if pm.bound {
		load = append(load, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
		next += size / 4
	}
	load = append(load,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg32, DestRegister: reg32, IsDestRegSet: true, SetName: pm.name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(proto), RegAddrMin: reg32, RegProtoMin: reg32 + size/4, Specified: true})
	return rule(family(proto), load)
}

// returnRules make answers come back by the host: to the host's own loopback
// addresses, which no container could answer, and to members of the network who
// called a member by the host's address and would get its answer directly.
func returnRules(br string, d definition) [][]expr.Any {
	rules := [][]expr.Any{
		rule(saddr(netip.MustParsePrefix("127.0.0.0/8")), oif(br), masquerade()),
		rule(saddr(d.Subnet), oif(br), redirected(), masquerade()),
	}
	if d.Subnet6.IsValid() {
		rules = append(rules, rule(saddr(d.Subnet6), oif(br), redirected(), masquerade()))
	}
	return rules
}

// routeLocalnet lets a bridge carry packets from 127.0.0.1, so that the host
// reaches published ports there as users expect. It also lets packets in that
// are meant for the host's own loopback services (CVE-2020-8558): the first
// rules of the table drop those, before connection tracking. So it is on only
// where such a port is published, and never while the table is missing.
func (m *Manager) routeLocalnet(networks []definition, ports []published, on bool) error {
	for _, d := range networks {
		br := m.bridgeName(d.Name)
		wanted := slices.ContainsFunc(ports, func(p published) bool { return p.bridge == br && p.onLoopback() })
		if wanted != on {
			continue
		}
		value := "0"
		if on {
			value = "1"
		}
		if err := sysctl("ipv4/conf/"+br+"/route_localnet", value); err != nil {
			return err
		}
	}
	return nil
}

// foreignPorts are those that other roots of the machine redirect.
func (m *Manager) foreignPorts() (all []Port, err error) {
	tables, err := listTables()
	if err != nil {
		return nil, err
	}
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	for name := range tables {
		if name == m.tableName() || !strings.HasPrefix(name, "naru-") || strings.HasPrefix(name, "naru-forward") {
			continue
		}
		table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
		for _, pm := range portMaps() {
			elements, err := dump(func() ([]nftables.SetElement, error) {
				return c.GetSetElements(&nftables.Set{Table: table, Name: pm.name})
			})
			if err != nil {
				continue // it has no such map, or is just going
			}
			for _, e := range elements {
				if p, ok := pm.port(e.Key); ok {
					all = append(all, p)
				}
			}
		}
	}
	return all, nil
}

// port reads the key of an element.
func (pm portMap) port(key []byte) (p Port, ok bool) {
	if pm.bound {
		n := int(pm.host.Bytes)
		if len(key) < n {
			return p, false
		}
		p.Host, _ = netip.AddrFromSlice(key[:n])
		key = key[n:]
	} else if p.Host = netip.IPv4Unspecified(); pm.v6 {
		p.Host = netip.IPv6Unspecified()
	}
	if len(key) < 6 {
		return p, false
	}
	p.Proto, p.HostPort = "tcp", binary.BigEndian.Uint16(key[4:])
	if key[0] == unix.IPPROTO_UDP {
		p.Proto = "udp"
	}
	return p, true
}
