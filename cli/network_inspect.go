package cli

import (
	"net/netip"
	"strconv"

	"naru/sandbox"
)

// The shapes below have Docker's names; see container_inspect.go.

type inspectedNetwork struct {
	IPAddress, Gateway, GlobalIPv6Address, IPv6Gateway, MacAddress string
	Ports                                                          map[string][]inspectedBinding
	Networks                                                       map[string]inspectedEndpoint
}

type inspectedBinding struct{ HostIp, HostPort string }

type inspectedEndpoint struct {
	IPAddress, Gateway, GlobalIPv6Address, IPv6Gateway, MacAddress string
	IPPrefixLen, GlobalIPv6PrefixLen                               int
	Aliases                                                        []string
}

func inspectNetwork(c sandbox.Container) inspectedNetwork {
	n := inspectedNetwork{Ports: map[string][]inspectedBinding{}, Networks: map[string]inspectedEndpoint{}}
	for _, l := range portLines(c.Ports, hasIPv6(c)) {
		if at, err := netip.ParseAddrPort(l[1]); err == nil {
			n.Ports[l[0]] = append(n.Ports[l[0]], inspectedBinding{at.Addr().String(), strconv.Itoa(int(at.Port()))})
		}
	}
	if len(c.Networks) == 0 {
		n.Networks[c.Config.Network] = inspectedEndpoint{}
	}
	for i, a := range c.Networks {
		e := inspectedEndpoint{
			IPAddress: a.Address.Addr().String(), Gateway: a.Gateway.String(), MacAddress: a.MAC, IPPrefixLen: a.Address.Bits(),
		}
		if a.Address6.IsValid() {
			e.GlobalIPv6Address, e.IPv6Gateway, e.GlobalIPv6PrefixLen = a.Address6.Addr().String(), a.Gateway6.String(), a.Address6.Bits()
		}
		for _, ep := range c.Config.Net.Endpoints {
			if ep.Network == a.Network {
				e.Aliases = ep.Aliases
			}
		}
		n.Networks[a.Network] = e
		if i == 0 {
			n.IPAddress, n.Gateway, n.MacAddress = e.IPAddress, e.Gateway, e.MacAddress
			n.GlobalIPv6Address, n.IPv6Gateway = e.GlobalIPv6Address, e.IPv6Gateway
		}
	}
	return n
}
