package nginx

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"naru/pipeline"
)

// Everything that reaches a configuration file passes through one of these
// expressions first; none admits white space, quotes, braces, ";", "#", "$" or "\".
var (
	appName  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`) })
	hostName = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
	})
	filePath = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^/[A-Za-z0-9/._+@=,~-]*$`) })
	userName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`) })
)

const (
	maxHostName   = 253 // RFC 1035 §2.3.4 without the final dot
	maxSocketPath = 107 // unix(7): sun_path with its final zero
)

// checkRoute returns r in the one form in which equal routes have equal text:
// names in lower case, lists sorted and without repetition.
func checkRoute(r pipeline.Route) (pipeline.Route, error) {
	if !appName().MatchString(r.App) {
		return r, fmt.Errorf("app name %q: want lower case letters, digits, - and _", r.App)
	}
	domains := make([]string, 0, len(r.Domains))
	for _, d := range r.Domains {
		d, err := checkDomain(d)
		if err != nil {
			return r, err
		}
		domains = append(domains, d)
	}
	slices.Sort(domains)
	r.Domains = slices.Compact(domains)
	servers := make([]netip.AddrPort, 0, len(r.Servers))
	for _, s := range r.Servers {
		if !s.IsValid() || s.Port() == 0 || s.Addr().Zone() != "" || s.Addr().IsUnspecified() {
			return r, fmt.Errorf("server address %v of app %s cannot be connected to", s, r.App)
		}
		servers = append(servers, netip.AddrPortFrom(s.Addr().Unmap(), s.Port()))
	}
	slices.SortFunc(servers, netip.AddrPort.Compare)
	r.Servers = slices.Compact(servers)
	if r.Drain < 0 || r.Drain > 24*time.Hour {
		return r, fmt.Errorf("drain %v of app %s: want 0 to 24h", r.Drain, r.App)
	}
	return r, nil
}

// checkDomain admits host names of RFC 952/1123 with "_" and, as the first label,
// "*", and returns them in lower case without the final dot.
func checkDomain(d string) (string, error) {
	s := strings.ToLower(strings.TrimSuffix(d, "."))
	if len(s) > maxHostName || !hostName().MatchString(s) {
		return "", fmt.Errorf("domain %q is not a host name", d)
	}
	return s, nil
}

// listener is one address of the public server.
type listener struct{ addr netip.AddrPort }

func (l listener) String() string { return l.addr.String() }

// checkListen understands "127.0.0.1:80", "[::]:80", ":80" and "80"; the last two
// mean every address of the machine.
func checkListen(list []string) ([]listener, error) {
	var all []listener
	for _, s := range list {
		if !strings.Contains(s, ":") {
			s = ":" + s
		}
		host, port, err := net.SplitHostPort(s)
		n, perr := strconv.ParseUint(port, 10, 16)
		if err != nil || perr != nil || n == 0 {
			return nil, fmt.Errorf("listen %q: want address:port", s)
		}
		hosts := []string{host}
		if host == "" || host == "*" {
			hosts = anyAddress()
		}
		for _, h := range hosts {
			a, err := netip.ParseAddr(h)
			if err != nil || a.Zone() != "" {
				return nil, fmt.Errorf("listen %q: want an IP address", s)
			}
			all = append(all, listener{netip.AddrPortFrom(a.Unmap(), uint16(n))})
		}
	}
	slices.SortFunc(all, func(a, b listener) int { return a.addr.Compare(b.addr) })
	return slices.Compact(all), nil
}

// anyAddress has the IPv6 one only where the kernel speaks IPv6: nginx refuses to
// start otherwise.
func anyAddress() []string {
	if b, err := os.ReadFile("/proc/net/if_inet6"); err != nil || len(b) == 0 {
		return []string{"0.0.0.0"}
	}
	return []string{"0.0.0.0", "::"}
}

func checkPath(what, path string) error {
	if !filePath().MatchString(path) {
		return fmt.Errorf("%s %q: want an absolute path of letters, digits and /._+@=,~-", what, path)
	}
	return nil
}

// short is a stable name for s, for what is global on a machine.
func short(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}
