package network

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// maxNameservers is how many a C library reads (resolv.conf(5), MAXNS).
const maxNameservers = 3

// Resolve returns a resolv.conf for containers: the host's IPv4 name servers
// without those on loopback, which mean another machine inside a container.
// Where the host asks a local stub, the servers behind it are taken from
// systemd-resolved's own file. warn is empty, or says in one sentence why names
// will not resolve; no public server is ever put in their place.
func (m *Manager) Resolve() (resolvConf []byte, warn string) {
	var first *resolvFile
	for _, path := range m.resolv {
		f, err := readResolv(path)
		if err != nil {
			continue // minimal hosts have none; systemd's exists on some only
		}
		if first == nil {
			first = &f
		}
		if len(f.servers) > 0 {
			// What the administrator wrote about searching counts, wherever the
			// servers were found.
			f.search, f.options = first.search, first.options
			return f.render(), ""
		}
	}
	if first == nil {
		return nil, fmt.Sprintf("no name servers: none of %s can be read", strings.Join(m.resolv, ", "))
	}
	return first.render(), fmt.Sprintf("no name servers that a container can reach in %s (only loopback or IPv6)", strings.Join(m.resolv, ", "))
}

// nameservers is every IPv4 server that any of the files names; used to keep
// subnets away from them.
func (m *Manager) nameservers() []netip.Addr {
	var all []netip.Addr
	for _, path := range m.resolv {
		if f, err := readResolv(path); err == nil {
			all = append(all, f.servers...)
		}
	}
	return all
}

type resolvFile struct {
	servers []netip.Addr // IPv4, not loopback
	search  string
	options []string
}

func readResolv(path string) (resolvFile, error) {
	var f resolvFile
	data, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			a, err := netip.ParseAddr(fields[1])
			if a = a.Unmap(); err == nil && a.Is4() && !a.IsLoopback() && !a.IsUnspecified() {
				f.servers = append(f.servers, a)
			}
		case "search", "domain": // the last one counts
			f.search = strings.Join(fields[1:], " ")
		case "options":
			for _, o := range fields[1:] {
				if o != "trust-ad" { // a statement about the stub, which is not asked
					f.options = append(f.options, o)
				}
			}
		}
	}
	return f, lines.Err()
}

func (f resolvFile) render() []byte {
	var b bytes.Buffer
	for i, s := range f.servers {
		if i == maxNameservers {
			break
		}
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if f.search != "" && f.search != "." {
		fmt.Fprintf(&b, "search %s\n", f.search)
	}
	if len(f.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(f.options, " "))
	}
	return b.Bytes()
}
