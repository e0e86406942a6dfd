package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"naru/sandbox/network"
	"naru/sandbox/runtime"
)

// NetworkContainer begins the network mode that shares another container's
// network: container:NAME.
const NetworkContainer = "container:"

// Networking is what a container asks of its networks beside the name of the
// first one. The zero value asks for nothing.
type Networking struct {
	// Endpoints are all networks of the container; the first is the one that
	// ContainerConfig.Network names. Empty: that one alone.
	Endpoints  []NetworkEndpoint `json:"endpoints,omitempty"`
	Ports      []network.Port    `json:"ports,omitempty"`       // published by the first network
	PublishAll bool              `json:"publish_all,omitempty"` // what the image exposes too, on ports that are chosen
	AddHosts   []string          `json:"add_hosts,omitempty"`   // NAME:ADDRESS in /etc/hosts; ADDRESS may be host-gateway
	DNS        []netip.Addr      `json:"dns,omitempty"`         // name servers instead of the host's
	DNSSearch  []string          `json:"dns_search,omitempty"`  // resolv.conf(5) search; "." for none
	DNSOptions []string          `json:"dns_options,omitempty"` // resolv.conf(5) options
}

// NetworkEndpoint is one network of a container. Addresses are zero for any.
type NetworkEndpoint struct {
	Network  string     `json:"network"`
	Aliases  []string   `json:"aliases,omitempty"` // names for the other members; several may share one
	Address  netip.Addr `json:"address,omitzero"`
	Address6 netip.Addr `json:"address6,omitzero"`
	MAC      string     `json:"mac,omitempty"`
}

// networksFile holds the endpoints of a container that was connected to or
// disconnected from networks after its creation. It comes before the change in
// the kernel: the next start makes it true.
const networksFile = "networks.json"

// noNetwork says whether the mode stands for no network of ours.
func noNetwork(mode string) bool {
	return mode == NetworkNone || mode == NetworkHost || strings.HasPrefix(mode, NetworkContainer)
}

func (n *Networking) check(c *ContainerConfig) error {
	if len(n.Endpoints) > 0 {
		if c.Network != n.Endpoints[0].Network {
			return fmt.Errorf("network %q: the first endpoint is of %q", c.Network, n.Endpoints[0].Network)
		}
		for i, e := range n.Endpoints {
			if err := e.check(); err != nil {
				return err
			}
			if i > 0 && (noNetwork(e.Network) || noNetwork(c.Network)) {
				return fmt.Errorf("network %s cannot be combined with others", firstOf(e.Network, c.Network))
			}
			if slices.ContainsFunc(n.Endpoints[:i], func(o NetworkEndpoint) bool { return o.Network == e.Network }) {
				return fmt.Errorf("network %s is there twice", e.Network)
			}
		}
	}
	if noNetwork(c.Network) && (len(n.Ports) > 0 || n.PublishAll) {
		return fmt.Errorf("publish ports: a container with network %s has none of its own", c.Network)
	}
	for _, h := range n.AddHosts {
		if _, _, err := parseHost(h); err != nil {
			return err
		}
	}
	for _, list := range [][]string{n.DNSSearch, n.DNSOptions} {
		for _, s := range list {
			if s == "" || strings.ContainsAny(s, " \t\n") {
				return fmt.Errorf("resolv.conf entry %q: want one word", s)
			}
		}
	}
	return nil
}

func (e NetworkEndpoint) check() error {
	if _, err := e.mac(); err != nil {
		return err
	}
	wants := e.Address.IsValid() || e.Address6.IsValid() || e.MAC != "" || len(e.Aliases) > 0
	if wants && (noNetwork(e.Network) || e.Network == network.Default && len(e.Aliases) > 0) {
		return fmt.Errorf("network %s has no names and addresses to ask for", e.Network)
	}
	return nil
}

func (e NetworkEndpoint) mac() (net.HardwareAddr, error) {
	if e.MAC == "" {
		return nil, nil
	}
	a, err := net.ParseMAC(e.MAC)
	if err != nil {
		return nil, fmt.Errorf("MAC address %q: %w", e.MAC, err)
	}
	return a, nil
}

// exposed are the ports of the image that are not published by name.
func exposed(cfg v1.ImageConfig, have []network.Port) ([]network.Port, error) {
	var more []network.Port
	for spec := range cfg.ExposedPorts {
		number, proto, found := strings.Cut(spec, "/")
		if !found {
			proto = "tcp"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("exposed port %q of the image: %w", spec, err)
		}
		p := network.Port{Port: uint16(n), Proto: proto}
		if !slices.ContainsFunc(have, func(q network.Port) bool { return q.Port == p.Port && q.Proto == p.Proto }) {
			more = append(more, p)
		}
	}
	slices.SortFunc(more, func(a, b network.Port) int { return int(a.Port) - int(b.Port) })
	return more, nil
}

// endpoints are the networks that the container is in, or will be when it starts.
func (e *Engine) endpoints(r *record) ([]NetworkEndpoint, error) {
	var list []NetworkEndpoint
	found, err := loadJSON(filepath.Join(e.dir(r.ID), networksFile), &list)
	if err != nil || found {
		return list, err
	}
	if noNetwork(r.Config.Network) || r.Config.Network == "" {
		return nil, nil
	}
	if len(r.Config.Net.Endpoints) > 0 {
		return r.Config.Net.Endpoints, nil
	}
	return []NetworkEndpoint{{Network: r.Config.Network}}, nil
}

// attached is address.json on tmpfs: what the networks gave. The first one's
// attachment is the object itself.
type attached struct {
	network.Attachment
	More []network.Attachment `json:"more,omitempty"`
}

func (a attached) all() []network.Attachment {
	if a.Network == "" {
		return nil
	}
	return append([]network.Attachment{a.Attachment}, a.More...)
}

func newAttached(list []network.Attachment) attached {
	if len(list) == 0 {
		return attached{}
	}
	return attached{list[0], list[1:]}
}

// attach plugs the container into its networks. Ports are published by the first.
func (e *Engine) attach(ctx context.Context, r *record, pid int) error {
	list, err := e.endpoints(r)
	if err != nil || len(list) == 0 {
		return err
	}
	var got []network.Attachment
	for i, ep := range list {
		ports := r.Config.Net.Ports
		if i > 0 {
			ports = nil
		}
		at, err := e.plug(ctx, r, ep, pid, ports)
		if err != nil {
			return err
		}
		got = append(got, at)
	}
	if err := saveRun(e.addressFile(r.ID), newAttached(got)); err != nil {
		return err
	}
	if err := rewrite(filepath.Join(e.dir(r.ID), "hosts"), hosts(r, got, nil)); err != nil {
		return err
	}
	return e.introduce(ctx, list)
}

func (e *Engine) plug(ctx context.Context, r *record, ep NetworkEndpoint, pid int, ports []network.Port) (network.Attachment, error) {
	mac, err := ep.mac()
	if err != nil {
		return network.Attachment{}, err
	}
	return e.networks.Attach(ctx, network.Endpoint{
		Network: ep.Network, Container: r.ID, Hostname: r.Name, Pid: pid, Ports: ports,
		Aliases: ep.Aliases, Address: ep.Address, Address6: ep.Address6, MAC: mac,
	})
}

// Connect puts a container into one more network: at once if it runs, and at
// every start from now on.
func (e *Engine) Connect(ctx context.Context, ref string, ep NetworkEndpoint) error {
	return e.reconnect(ctx, ref, ep.Network, func(r *record, list []NetworkEndpoint) ([]NetworkEndpoint, error) {
		if slices.ContainsFunc(list, func(o NetworkEndpoint) bool { return o.Network == ep.Network }) {
			return nil, fmt.Errorf("container %s is in network %s already", firstOf(r.Name, short(r.ID)), ep.Network)
		}
		if noNetwork(r.Config.Network) && r.Config.Network != NetworkNone {
			return nil, fmt.Errorf("container %s with network %s cannot join others", firstOf(r.Name, short(r.ID)), r.Config.Network)
		}
		_, err := e.networks.Inspect(ep.Network)
		return append(slices.Clone(list), ep), errors.Join(err, ep.check())
	})
}

// Disconnect takes a container out of a network, for good. Ports that the
// container publishes belong to its first network and go with it.
func (e *Engine) Disconnect(ctx context.Context, ref, name string) error {
	return e.reconnect(ctx, ref, name, func(r *record, list []NetworkEndpoint) ([]NetworkEndpoint, error) {
		rest := slices.DeleteFunc(slices.Clone(list), func(o NetworkEndpoint) bool { return o.Network == name })
		if len(rest) == len(list) {
			return nil, fmt.Errorf("container %s is not in network %s", firstOf(r.Name, short(r.ID)), name)
		}
		return rest, nil
	})
}

// reconnect changes the list of networks, first on disk and then in the kernel.
func (e *Engine) reconnect(ctx context.Context, ref, name string, change func(*record, []NetworkEndpoint) ([]NetworkEndpoint, error)) error {
	id, err := e.resolve(ref)
	if err != nil {
		return err
	}
	l, err := e.lockContainer(ctx, id)
	if err != nil {
		return err
	}
	defer l.Unlock()
	r, err := e.load(id)
	if err != nil {
		return err
	}
	old, err := e.endpoints(r)
	if err != nil {
		return err
	}
	list, err := change(r, old)
	if err != nil {
		return err
	}
	if err := saveJSON(filepath.Join(e.dir(id), networksFile), list); err != nil {
		return err
	}
	e.step("networks")
	c, err := e.view(r)
	if err != nil || c.Pid == 0 {
		return err
	}
	if err := e.replug(ctx, r, name, c.Pid); err != nil {
		return errors.Join(err, saveJSON(filepath.Join(e.dir(id), networksFile), old))
	}
	return nil
}

// replug makes the kernel's side of one network what the list says.
func (e *Engine) replug(ctx context.Context, r *record, name string, pid int) error {
	var now attached
	if _, err := loadRun(e.addressFile(r.ID), &now); err != nil {
		return err
	}
	list, err := e.endpoints(r)
	if err != nil {
		return err
	}
	got := slices.DeleteFunc(now.all(), func(a network.Attachment) bool { return a.Network == name })
	if i := slices.IndexFunc(list, func(o NetworkEndpoint) bool { return o.Network == name }); i >= 0 {
		at, err := e.plug(ctx, r, list[i], pid, nil)
		if err != nil {
			return err
		}
		got = append(got, at)
	} else if err := e.networks.Disconnect(ctx, name, r.ID); err != nil && !errors.Is(err, network.ErrNotConnected) {
		return err
	}
	if err := saveRun(e.addressFile(r.ID), newAttached(got)); err != nil {
		return err
	}
	if err := rewrite(filepath.Join(e.dir(r.ID), "hosts"), hosts(r, got, nil)); err != nil {
		return err
	}
	return e.introduce(ctx, append(list, NetworkEndpoint{Network: name}))
}

// joinNetwork puts another container's network namespace into the spec. The
// descriptor names the namespace until done is called.
func (e *Engine) joinNetwork(ctx context.Context, r *record, s *specs.Spec) (done func(), err error) {
	ref, ok := strings.CutPrefix(r.Config.Network, NetworkContainer)
	if !ok {
		return func() {}, nil
	}
	before, err := e.Get(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", r.Config.Network, err)
	}
	if before.Pid == 0 {
		return nil, fmt.Errorf("network %s: %w", r.Config.Network, ErrNotRunning)
	}
	f, err := os.Open("/proc/" + strconv.Itoa(before.Pid) + "/ns/net")
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", r.Config.Network, err)
	}
	// The process may have ended, and its number been given away, before the open.
	after, err := e.Get(ctx, before.ID)
	if err != nil || after.Pid != before.Pid {
		return nil, errors.Join(fmt.Errorf("network %s: %w", r.Config.Network, ErrNotRunning), err, f.Close())
	}
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
		}
	}
	for key := range s.Linux.Sysctl {
		if strings.HasPrefix(key, "net.") {
			delete(s.Linux.Sysctl, key) // they are the other container's
		}
	}
	return func() { _ = f.Close() }, nil // read only: nothing can be lost
}

// etcOf is whose /etc/hosts and resolv.conf a container sees: with another's
// network it has that one's names too.
func (e *Engine) etcOf(r *record) string {
	if ref, ok := strings.CutPrefix(r.Config.Network, NetworkContainer); ok {
		if id, err := e.resolve(ref); err == nil {
			return id
		}
	}
	return r.ID
}

// PruneNetworks removes the networks that no container asks for, running or not,
// and returns their names.
func (e *Engine) PruneNetworks(ctx context.Context) ([]string, error) {
	removed := []string{}
	records, err := e.records()
	if err != nil {
		return removed, err
	}
	used := map[string]bool{network.Default: true, networkBuild: true}
	for _, r := range records {
		list, err := e.endpoints(r)
		if err != nil {
			return removed, err
		}
		for _, ep := range list {
			used[ep.Network] = true
		}
	}
	all, err := e.networks.List()
	if err != nil {
		return removed, err
	}
	for _, n := range all {
		if used[n.Name] || len(n.Members) > 0 {
			continue
		}
		err := e.networks.Remove(ctx, n.Name)
		if errors.Is(err, network.ErrNotFound) || errors.Is(err, network.ErrInUse) {
			continue
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, n.Name)
	}
	return removed, nil
}

// viewNetworks is what a running container has been given.
func (e *Engine) viewNetworks(c *Container) error {
	var at attached
	found, err := loadRun(e.addressFile(c.ID), &at)
	if err != nil || !found {
		return err
	}
	c.Networks = at.all()
	c.Address = at.Address.Addr()
	for _, a := range c.Networks {
		c.Ports = append(c.Ports, a.Ports...)
	}
	if c.State == string(runtime.Stopped) {
		c.Networks, c.Ports = nil, nil
	}
	return nil
}
