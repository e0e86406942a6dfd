package fetch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Guard decides which addresses may be connected to. Its zero value lets
// everything pass but this machine and what only this machine should reach.
type Guard struct {
	// Allow are networks that may be reached all the same.
	Allow []netip.Prefix
}

// ErrForbidden is the error of an address that may not be reached.
var ErrForbidden = errors.New("address may not be reached by a build")

// closed are the networks that no build has to reach, with the reason.
var closed = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this host"}, // RFC 1122; Linux connects it to loopback
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local, with the metadata services of clouds"},
	{netip.MustParsePrefix("100.100.100.200/32"), "the metadata service of Alibaba Cloud"},
	{netip.MustParsePrefix("192.0.0.192/32"), "the metadata service of Oracle Cloud"},
	{netip.MustParsePrefix("168.63.129.16/32"), "the wire server of Azure"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"}, // with the broadcast address
	{netip.MustParsePrefix("::/128"), "this host"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "site-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
	{netip.MustParsePrefix("fd00:ec2::/32"), "the metadata service of AWS"},
	{netip.MustParsePrefix("fd20:ce::/32"), "the metadata service of Google Cloud"},
}

// embedded are the networks whose addresses carry an IPv4 address, and where.
var embedded = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},   // NAT64, RFC 6052
	{netip.MustParsePrefix("64:ff9b:1::/48"), 12}, // NAT64, RFC 8215
	{netip.MustParsePrefix("2002::/16"), 2},       // 6to4, RFC 3056
	{netip.MustParsePrefix("::/96"), 12},          // RFC 4291, 2.5.5.1
}

// Check tells why an address may not be reached; nil: it may.
func (g Guard) Check(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	if slices.ContainsFunc(g.Allow, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return nil
	}
	for _, c := range closed {
		if c.prefix.Contains(ip) {
			return fmt.Errorf("%s is %s: %w", ip, c.what, ErrForbidden)
		}
	}
	for _, e := range embedded {
		if e.prefix.Contains(ip) {
			b := ip.As16()
			return g.Check(netip.AddrFrom4([4]byte(b[e.at : e.at+4])))
		}
	}
	return checkHost(ip)
}

// checkHost closes the machine's own addresses, and the networks behind its
// bridges, where containers are.
func checkHost(ip netip.Addr) error {
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue // it is gone
		}
		_, err = os.Stat(filepath.Join("/sys/class/net", link.Name, "bridge"))
		bridge := err == nil
		for _, a := range addrs {
			own, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			if own.Addr().Unmap().WithZone("") == ip {
				return fmt.Errorf("%s is an address of this machine: %w", ip, ErrForbidden)
			}
			if bridge && own.Masked().Contains(ip) {
				return fmt.Errorf("%s is in the network of %s on this machine: %w", ip, link.Name, ErrForbidden)
			}
		}
	}
	return nil
}

// Dialer connects to nothing but what Check lets pass.
func (g Guard) Dialer() *net.Dialer {
	return &net.Dialer{Timeout: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return g.Check(at.Addr())
	}}
}

// transport asks servers directly through the guard, and those that the
// environment (HTTPS_PROXY and so on) wants asked through a proxy, by that.
type transport struct {
	guard  Guard
	direct *http.Transport
	proxy  *http.Transport
	which  func(*http.Request) (*url.URL, error)
}

// Transport is an http transport behind the guard. The proxies of the
// environment are used, and may have any address: who runs this process set
// them. What they are asked for is looked at as far as this machine can resolve it.
func (g Guard) Transport() http.RoundTripper {
	base := http.Transport{
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: 30 * time.Second,
		ResponseHeaderTimeout: time.Minute, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 1 << 20,
	}
	t := &transport{guard: g, direct: base.Clone(), proxy: base.Clone(), which: http.ProxyFromEnvironment}
	t.direct.DialContext = g.Dialer().DialContext
	t.proxy.Proxy = func(r *http.Request) (*url.URL, error) { return t.which(r) }
	return t
}

// RoundTrip asks a server (http.RoundTripper).
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "http" && r.URL.Scheme != "https" {
		return nil, fmt.Errorf("scheme %q is neither http nor https", r.URL.Scheme)
	}
	proxy, err := t.which(r)
	if err != nil {
		return nil, fmt.Errorf("find proxy: %w", err)
	}
	if proxy == nil {
		return t.direct.RoundTrip(r)
	}
	if err := t.guard.checkName(r.Context(), r.URL.Hostname()); err != nil {
		return nil, err
	}
	return t.proxy.RoundTrip(r)
}

// CloseIdleConnections ends what is kept open for more requests.
func (t *transport) CloseIdleConnections() {
	t.direct.CloseIdleConnections()
	t.proxy.CloseIdleConnections()
}

// checkName looks at a name that a proxy will resolve. One that cannot be
// resolved here is the proxy's to judge.
func (g Guard) checkName(ctx context.Context, name string) error {
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil
	}
	for _, ip := range ips {
		if err := g.Check(ip); err != nil {
			return err
		}
	}
	return nil
}
