package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/network"
)

// Names between containers are lines of /etc/hosts (docs/adr/0003): they need no
// process that answers. Several containers of one name or alias are several lines,
// of which C libraries return all.

// hostsLock is held while the hosts files of a root are rewritten: the last writer
// must be the one who looked last.
const hostsLock = "hosts.lock"

// hostGateway stands for the host's address on the container's first network.
const hostGateway = "host-gateway"

// parseHost reads NAME:ADDRESS or NAME=ADDRESS. The address is zero for host-gateway.
func parseHost(s string) (name string, a netip.Addr, err error) {
	name, address, ok := strings.Cut(s, "=")
	if !ok {
		name, address, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" || strings.ContainsAny(name, " \t\n#") {
		return "", a, fmt.Errorf("host %q: want NAME:ADDRESS", s)
	}
	if address == hostGateway {
		return name, a, nil
	}
	if a, err = netip.ParseAddr(strings.Trim(address, "[]")); err != nil {
		return "", a, fmt.Errorf("host %q: %w", s, err)
	}
	return name, a, nil
}

// hosts is the container's /etc/hosts: itself, what was added, and its peers.
func hosts(r *record, at []network.Attachment, peers []network.Member) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	line := func(a netip.Addr, names ...string) {
		if a.IsValid() && len(names) > 0 {
			fmt.Fprintf(&b, "%s\t%s\n", a, strings.Join(names, " "))
		}
	}
	for _, h := range r.Config.Net.AddHosts {
		name, a, err := parseHost(h)
		if err == nil && !a.IsValid() && len(at) > 0 {
			a = at[0].Gateway
		}
		line(a, name)
	}
	names := []string{r.Config.Hostname}
	if r.Name != "" && r.Name != r.Config.Hostname {
		names = append(names, r.Name)
	}
	if len(at) == 0 {
		line(netip.AddrFrom4([4]byte{127, 0, 1, 1}), names...)
	}
	for _, a := range at {
		line(a.Address.Addr(), names...)
		line(a.Address6.Addr(), names...)
	}
	for _, p := range peers {
		known := p.Aliases
		if p.Hostname != "" {
			known = append([]string{p.Hostname}, known...)
		}
		line(p.Address, known...)
		line(p.Address6, known...)
	}
	return b.Bytes()
}

// nameless networks hold containers that need not know of each other: the default
// one has every app's, as in Docker.
func nameless(name string) bool { return name == network.Default || name == networkBuild }

// introduce tells the members of networks each other's names, of all networks that
// they are in.
func (e *Engine) introduce(ctx context.Context, changed []NetworkEndpoint) error {
	changed = slices.DeleteFunc(slices.Clone(changed), func(ep NetworkEndpoint) bool { return nameless(ep.Network) })
	if len(changed) == 0 {
		return nil
	}
	l, err := waitLock(ctx, filepath.Join(e.root, hostsLock), unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("tell containers of each other: %w", err)
	}
	defer l.Unlock()
	all, err := e.networks.List()
	if err != nil {
		return err
	}
	told := map[string]bool{}
	for _, n := range all {
		if !slices.ContainsFunc(changed, func(ep NetworkEndpoint) bool { return ep.Network == n.Name }) {
			continue
		}
		for _, m := range n.Members {
			if told[m.Container] {
				continue
			}
			told[m.Container] = true
			if err := e.tell(m.Container, all); err != nil {
				return err
			}
		}
	}
	return nil
}

// tellItself writes one container's hosts file, whatever networks it is in.
func (e *Engine) tellItself(ctx context.Context, id string) error {
	l, err := waitLock(ctx, filepath.Join(e.root, hostsLock), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer l.Unlock()
	all, err := e.networks.List()
	if err != nil {
		return err
	}
	return e.tell(id, all)
}

// tell writes one container's hosts file.
func (e *Engine) tell(id string, all []network.Network) error {
	r, err := e.load(id)
	if errors.Is(err, ErrNotFound) {
		return nil // just gone
	}
	if err != nil {
		return err
	}
	var now attached
	if _, err := loadRun(e.addressFile(id), &now); err != nil {
		return err
	}
	at := now.all()
	var peers []network.Member
	for _, n := range all {
		i := slices.IndexFunc(n.Members, func(m network.Member) bool { return m.Container == id })
		if i < 0 {
			continue
		}
		if !slices.ContainsFunc(at, func(a network.Attachment) bool { return a.Network == n.Name }) {
			at = append(at, attachmentOf(n, n.Members[i])) // it is joining right now
		}
		if nameless(n.Name) {
			continue
		}
		for _, m := range n.Members {
			if m.Container != id || len(m.Aliases) > 0 {
				if m.Container == id {
					m.Hostname = ""
				}
				peers = append(peers, m)
			}
		}
	}
	err = rewrite(filepath.Join(e.dir(id), "hosts"), hosts(r, at, peers))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	return err
}

func attachmentOf(n network.Network, m network.Member) network.Attachment {
	a := network.Attachment{Network: n.Name, Address: netip.PrefixFrom(m.Address, n.Subnet.Bits()), Gateway: n.Gateway}
	if m.Address6.IsValid() {
		a.Address6 = netip.PrefixFrom(m.Address6, n.Subnet6.Bits())
	}
	return a
}

// rewrite changes a file that a container has mounted, so its inode stays. Readers
// never see it empty or cut off: blank lines make room first, then all is written at
// once. It never gets shorter, as a reader beside a truncation sees zeros: the rest
// is one line of blanks.
func rewrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	rest := int(info.Size()) - len(data)
	if rest < 0 {
		_, err = f.WriteAt(bytes.Repeat([]byte("\n"), -rest), info.Size())
	}
	if rest > 0 {
		data = append(slices.Clip(data), bytes.Repeat([]byte(" "), rest-1)...)
		data = append(data, '\n')
	}
	if err == nil {
		_, err = f.WriteAt(data, 0)
	}
	return errors.Join(err, f.Close())
}

// resolvConf is the container's name servers: those it asks for, or the host's.
func (e *Engine) resolvConf(r *record) (data []byte, warn string) {
	data, warn = e.networks.Resolve()
	if r.Config.Network == NetworkHost {
		if own, err := os.ReadFile("/etc/resolv.conf"); err == nil {
			data, warn = own, ""
		}
	}
	n := r.Config.Net
	if len(n.DNS) > 0 {
		warn = ""
	}
	if noNetwork(r.Config.Network) && r.Config.Network != NetworkHost {
		warn = ""
	}
	return n.resolv(data), warn
}

// resolv replaces the kinds of lines that were asked for.
func (n Networking) resolv(data []byte) []byte {
	lines := map[string][]string{"search": n.DNSSearch, "options": n.DNSOptions}
	for _, a := range n.DNS {
		lines["nameserver"] = append(lines["nameserver"], a.String())
	}
	var b bytes.Buffer
	for line := range strings.Lines(string(data)) {
		kind, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if kind == "domain" {
			kind = "search"
		}
		if len(lines[kind]) == 0 {
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	for _, a := range lines["nameserver"] {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	for _, kind := range []string{"search", "options"} {
		if list := lines[kind]; len(list) > 0 && !slices.Equal(list, []string{"."}) {
			fmt.Fprintf(&b, "%s %s\n", kind, strings.Join(list, " "))
		}
	}
	return b.Bytes()
}
