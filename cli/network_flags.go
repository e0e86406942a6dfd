package cli

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"naru/sandbox"
	"naru/sandbox/network"
)

// networkFlags are the flags of run and create about networks.
type networkFlags struct {
	networks, publish, aliases []string
	dns, search, options, add  []string
	ip, ip6, mac               string
	all                        bool
}

func (f *networkFlags) define(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.networks, "network", nil, "bridge, none, host, container:NAME, or a network's name; several, each with ,alias=NAME ,ip=ADDRESS ,ip6=ADDRESS ,mac-address=MAC")
	flags.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port on the host: [[ADDRESS:]HOSTPORT:]PORT[/tcp|udp], or ranges")
	flags.BoolVarP(&f.all, "publish-all", "P", false, "publish what the image exposes, on ports that are chosen")
	flags.StringArrayVar(&f.aliases, "network-alias", nil, "further name in the network; several containers may share one")
	flags.StringVar(&f.ip, "ip", "", "IPv4 address in the network")
	flags.StringVar(&f.ip6, "ip6", "", "IPv6 address in the network")
	flags.StringVar(&f.mac, "mac-address", "", "address of the network interface")
	flags.StringArrayVar(&f.add, "add-host", nil, "line of /etc/hosts: NAME:ADDRESS, or NAME:host-gateway")
	flags.StringArrayVar(&f.dns, "dns", nil, "name server instead of the host's")
	flags.StringArrayVar(&f.search, "dns-search", nil, "domain to search for names; . for none")
	flags.StringArrayVar(&f.options, "dns-option", nil, "option of resolv.conf")
}

// complete turns the flags into the configuration.
func (f *networkFlags) complete(c *sandbox.ContainerConfig) error {
	c.Net = sandbox.Networking{PublishAll: f.all, AddHosts: f.add, DNSSearch: f.search, DNSOptions: f.options}
	for _, s := range f.dns {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("--dns %q: %w", s, err)
		}
		c.Net.DNS = append(c.Net.DNS, a)
	}
	for _, s := range f.publish {
		ports, err := parsePublish(s)
		if err != nil {
			return err
		}
		c.Net.Ports = append(c.Net.Ports, ports...)
	}
	return f.endpoints(c)
}

// endpoints reads --network; the other flags are about the first.
func (f *networkFlags) endpoints(c *sandbox.ContainerConfig) error {
	plain := f.ip == "" && f.ip6 == "" && f.mac == "" && len(f.aliases) == 0
	if len(f.networks) == 0 {
		f.networks = []string{network.Default}
		if plain {
			return nil
		}
	}
	for _, s := range f.networks {
		ep, err := parseNetwork(s)
		if err != nil {
			return err
		}
		c.Net.Endpoints = append(c.Net.Endpoints, ep)
	}
	first := &c.Net.Endpoints[0]
	c.Network = first.Network
	if len(f.networks) == 1 && plain && !strings.Contains(f.networks[0], ",") {
		c.Net.Endpoints = nil
		return nil
	}
	first.Aliases = append(first.Aliases, f.aliases...)
	for _, s := range []struct{ key, value string }{{"ip", f.ip}, {"ip6", f.ip6}, {"mac-address", f.mac}} {
		if s.value == "" {
			continue
		}
		if err := setEndpoint(first, s.key, s.value); err != nil {
			return fmt.Errorf("--%s: %w", s.key, err)
		}
	}
	return nil
}

// parseNetwork reads NAME, or name=NAME, with fields of the endpoint after commas.
func parseNetwork(s string) (sandbox.NetworkEndpoint, error) {
	ep := sandbox.NetworkEndpoint{}
	for i, field := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(field, "=")
		if i == 0 && !ok {
			key, value = "name", field
		}
		if err := setEndpoint(&ep, key, value); err != nil {
			return ep, fmt.Errorf("--network %q: %w", s, err)
		}
	}
	if ep.Network == "" {
		return ep, fmt.Errorf("--network %q: no name", s)
	}
	return ep, nil
}

func setEndpoint(ep *sandbox.NetworkEndpoint, key, value string) (err error) {
	switch key {
	case "name":
		ep.Network = value
	case "alias":
		ep.Aliases = append(ep.Aliases, value)
	case "ip":
		ep.Address, err = netip.ParseAddr(value)
		if err == nil && !ep.Address.Is4() {
			err = fmt.Errorf("%q is no IPv4 address", value)
		}
	case "ip6":
		ep.Address6, err = netip.ParseAddr(value)
		if err == nil && !ep.Address6.Is6() {
			err = fmt.Errorf("%q is no IPv6 address", value)
		}
	case "mac-address":
		ep.MAC = value
	default:
		err = fmt.Errorf("unknown field %q: want name, alias, ip, ip6 or mac-address", key)
	}
	return err
}

// parsePublish reads [[ADDRESS:]HOSTPORT:]PORT[/PROTOCOL], where a port may be a
// range, of the same length on both sides.
func parsePublish(s string) ([]network.Port, error) {
	wrong := func(why string) ([]network.Port, error) {
		return nil, fmt.Errorf("publish %q: %s", s, why)
	}
	rest, proto, found := strings.Cut(s, "/")
	if !found {
		proto = "tcp"
	}
	var host netip.Addr
	var err error
	inside, outside := rest, ""
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		inside, outside = rest[i+1:], rest[:i]
		if i := strings.LastIndexByte(outside, ':'); i >= 0 {
			address := strings.TrimSuffix(strings.TrimPrefix(outside[:i], "["), "]")
			if host, err = netip.ParseAddr(address); err != nil {
				return wrong("the address is none: want [[ADDRESS:]HOSTPORT:]PORT[/tcp|udp]")
			}
			outside = outside[i+1:]
		}
	}
	first, last, err := portRange(inside)
	if err != nil {
		return wrong(err.Error())
	}
	from, to := 0, 0
	if outside != "" {
		if from, to, err = portRange(outside); err != nil {
			return wrong(err.Error())
		}
		if to-from != last-first {
			return wrong("the ranges differ in length")
		}
	}
	var ports []network.Port
	for n := first; n <= last; n++ {
		p := network.Port{Host: host, Port: uint16(n), Proto: strings.ToLower(proto)}
		if from != 0 {
			p.HostPort = uint16(from + n - first)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func portRange(s string) (first, last int, err error) {
	low, high, isRange := strings.Cut(s, "-")
	if !isRange {
		high = low
	}
	a, errA := strconv.ParseUint(low, 10, 16)
	b, errB := strconv.ParseUint(high, 10, 16)
	if errA != nil || errB != nil || a == 0 || b < a {
		return 0, 0, fmt.Errorf("port %q: want 1 to 65535, or a range of them", s)
	}
	return int(a), int(b), nil
}

// portLines is how docker ps and docker port write published ports: a port of all
// addresses has one line for each family.
func portLines(ports []network.Port, ipv6 bool) (lines [][2]string) {
	for _, p := range ports {
		hosts := []netip.Addr{p.Host}
		if !p.Host.IsValid() {
			hosts = []netip.Addr{netip.IPv4Unspecified()}
			if ipv6 {
				hosts = append(hosts, netip.IPv6Unspecified())
			}
		}
		for _, h := range hosts {
			lines = append(lines, [2]string{fmt.Sprintf("%d/%s", p.Port, p.Proto), netip.AddrPortFrom(h, p.HostPort).String()})
		}
	}
	slices.SortStableFunc(lines, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	return lines
}

func hasIPv6(c sandbox.Container) bool {
	return len(c.Networks) > 0 && c.Networks[0].Address6.IsValid()
}

// portsColumn is PORTS of ps. More than eight are counted, as ranges would fill
// the screen.
func portsColumn(c sandbox.Container) string {
	lines := portLines(c.Ports, hasIPv6(c))
	parts := []string{}
	for i, l := range lines {
		if i == 8 {
			parts = append(parts, fmt.Sprintf("and %d more", len(lines)-i))
			break
		}
		parts = append(parts, l[1]+"->"+l[0])
	}
	return strings.Join(parts, ", ")
}
