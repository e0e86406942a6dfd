package network

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A dual-stack network has one list of addresses: the IPv6 address of a member
// follows from its IPv4 address by the same distance from the start of the
// subnet. So one record, one quarantine and one MAC serve both.

// needIPv6 says why there can be no IPv6 here.
func needIPv6() error {
	const key = "ipv6/conf/all/disable_ipv6"
	off, err := readSysctl(key)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: the kernel was started without it", ErrNoIPv6)
	}
	if err != nil {
		return err
	}
	if off != "0" {
		return fmt.Errorf("%w: net.ipv6.conf.all.disable_ipv6 is %s", ErrNoIPv6, off)
	}
	return nil
}

// pool6 is the root's /48 of unique local addresses. RFC 4193, 3.2.2 wants its 40
// bits random, so that networks which are joined later do not meet: the root and
// the machine's id are hashed.
func (m *Manager) pool6() netip.Prefix {
	machine, _ := os.ReadFile("/etc/machine-id") // may be missing: the root alone must do
	sum := sha256.Sum256([]byte("naru unique local prefix " + m.id + " " + strings.TrimSpace(string(machine))))
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

// ownSubnet6 is the network's /64 of the root's pool.
func (m *Manager) ownSubnet6(name string) netip.Prefix {
	sum := sha256.Sum256([]byte("naru subnet " + name))
	b := m.pool6().Addr().As16()
	copy(b[6:8], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// checkIPv6 says whether the IPv6 subnet can be one and has room for every
// IPv4 address (a /24 at least, where the subnet is still to be chosen).
func (d definition) checkIPv6() error {
	p, bits := d.Subnet6, 24
	if d.Subnet.IsValid() {
		bits = d.Subnet.Bits()
	}
	if !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() < 16 || p.Bits() > 96+bits || p.Masked() != p {
		return fmt.Errorf("subnet %s: want an IPv6 network of /16 to /%d without host bits", p, 96+bits)
	}
	if a := p.Addr(); a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return fmt.Errorf("subnet %s: loopback, multicast, link-local and unspecified ranges cannot be routed", p)
	}
	if g := d.Gateway6; g.IsValid() && (!p.Contains(g) || g == p.Addr()) {
		return fmt.Errorf("gateway %s: want an address of a host in %s", g, p)
	}
	return nil
}

// derive6 is the IPv6 address beside an IPv4 address, zero without IPv6.
func (d definition) derive6(a netip.Addr) netip.Addr {
	if !d.Subnet6.IsValid() {
		return netip.Addr{}
	}
	base, own := d.Subnet.Masked().Addr().As4(), a.As4()
	distance := binary.BigEndian.Uint32(own[:]) - binary.BigEndian.Uint32(base[:])
	b := d.Subnet6.Addr().As16()
	low := binary.BigEndian.Uint32(b[12:]) | distance // no carry: checkIPv6 left room
	binary.BigEndian.PutUint32(b[12:], low)
	return netip.AddrFrom16(b)
}

// gateway6 is the host's IPv6 address, zero without IPv6.
func (d definition) gateway6() netip.Addr {
	if d.Gateway6.IsValid() {
		return d.Gateway6
	}
	return d.derive6(d.gateway())
}

// translated says whether packets to the outside get the host's address: those
// of unique local networks, as no router outside knows the way back.
func (d definition) translated() bool {
	return d.Subnet6.IsValid() && !netip.MustParsePrefix("2000::/3").Contains(d.Subnet6.Addr())
}

// claim6 settles the member's IPv6 address.
func claim6(d definition, all []record, r *record, want netip.Addr) error {
	if !want.IsValid() {
		r.Address6 = d.derive6(r.Address)
		return nil
	}
	if !d.Subnet6.IsValid() {
		return fmt.Errorf("address %s: network %q has no IPv6", want, d.Name)
	}
	if !d.Subnet6.Contains(want) || want == d.Subnet6.Addr() || want == d.gateway6() {
		return fmt.Errorf("address %s: want one of a host in %s other than the gateway %s", want, d.Subnet6, d.gateway6())
	}
	for _, o := range all {
		if o.inUse() && o.Address6 == want && o.Container != r.Container {
			return fmt.Errorf("address %s of network %q: %w by container %s", want, d.Name, ErrAddressInUse, short(o.Container))
		}
	}
	r.Address6 = want
	return nil
}

// addr6 is an address that is used at once: a bridge without ports would never
// finish looking for duplicates, and a program's first connection must not wait
// a second for it (RFC 4862, 5.4). There are none: records exclude each other.
func addr6(a netip.Addr, bits int) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits)), Flags: unix.IFA_F_NODAD}
}

// settle6 refuses an IPv6 subnet that the machine reaches by something else.
func (k *kernel) settle6(d definition) error {
	if !d.Subnet6.IsValid() {
		return nil
	}
	if err := needIPv6(); err != nil {
		return err
	}
	taken, err := k.occupied(k.h, unix.AF_INET6)
	if err != nil {
		return err
	}
	if other := overlapping(d.Subnet6, taken); other != nil {
		return fmt.Errorf("subnet %s overlaps %s: %w", d.Subnet6, *other, ErrNoSubnet)
	}
	return nil
}
