package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Default is the network of containers that ask for none by name. It is made
// by the first Attach and cannot be created or removed by hand.
const Default = "bridge"

// machineLock is held, by flock(2), while a root picks a subnet or changes
// what all roots of the machine share.
const machineLock = "/run/naru-network.lock"

// quarantine is how long a freed address rests: longer than what still knows
// it by heart (nginx upstreams, conntrack entries of UDP, ARP caches).
const quarantine = 60 * time.Second

// briefQuarantine is that of build steps, of which many follow each other within a
// second: until the kernel has taken the old one's port off the bridge.
const briefQuarantine = 2 * time.Second

// cleanup bounds what is undone after an error, whatever happened to the
// caller's context.
const cleanup = 10 * time.Second

// Errors that a caller may branch on.
var (
	// ErrNotFound: there is no network of that name.
	ErrNotFound = errors.New("no such network")
	// ErrExists: a network of that name exists already.
	ErrExists = errors.New("network exists")
	// ErrInUse: containers are attached; detach them first.
	ErrInUse = errors.New("network in use")
	// ErrNoSubnet: every subnet overlaps something the machine already reaches.
	ErrNoSubnet = errors.New("no free subnet")
	// ErrPortInUse: the port of the host belongs to another container or process.
	ErrPortInUse = errors.New("port is already allocated")
	// ErrAddressInUse: the address that was asked for is another container's.
	ErrAddressInUse = errors.New("address already in use")
	// ErrNoIPv6: the machine has no IPv6, or it is switched off.
	ErrNoIPv6 = errors.New("no IPv6 on this machine")
	// ErrNotConnected: the container is not in the network.
	ErrNotConnected = errors.New("not connected")
	// ErrFull: no address is free; those in quarantine come back within 60 s.
	ErrFull = errors.New("no free address")
)

// Manager is the networks of one data root. It holds no state of its own and
// is safe for concurrent use by goroutines and by processes.
type Manager struct {
	dir     string // <root>/networks
	id      string // 8 hex digits of the root's path: part of every global name
	machine string // path of the machine-wide lock
	resolv  []string
	now     func() time.Time
	step    func(name string) // called between steps; tests die in it
}

// Endpoint says which container joins which network.
type Endpoint struct {
	Network   string // name; empty means Default
	Container string // id, the owner of the address
	Hostname  string // name for the other containers of the network; may be empty
	Pid       int    // a process in the container's network namespace

	Aliases  []string         // further names in this network; several containers may share one
	Address  netip.Addr       // IPv4 that is wanted; zero: any
	Address6 netip.Addr       // IPv6 that is wanted; zero: the one that follows from the IPv4
	MAC      net.HardwareAddr // wanted; nil: follows from the IPv4
	Ports    []Port           // published on the host for as long as it is attached
}

// Attachment is what an endpoint got.
type Attachment struct {
	Network   string       `json:"network"`
	Interface string       `json:"interface"` // name inside the container, e.g. eth0
	Address   netip.Prefix `json:"address"`
	Gateway   netip.Addr   `json:"gateway"` // the host's address on the bridge
	MTU       int          `json:"mtu"`     // bytes
	MAC       string       `json:"mac"`
	Address6  netip.Prefix `json:"address6,omitzero"`
	Gateway6  netip.Addr   `json:"gateway6,omitzero"`
	Ports     []Port       `json:"ports,omitempty"` // with the host ports that were chosen
}

// Options of a new network.
type Options struct {
	// Subnet is IPv4, /8 to /30; the zero value takes a free /24 of the pool.
	Subnet netip.Prefix
	// Internal networks have no way out: no NAT, no forwarding off the bridge.
	Internal bool
	// Untrusted is for builds and jobs: members reach the outside, but not each
	// other, not the host (DNS excepted), not link-local addresses such as a
	// cloud's metadata service 169.254.169.254.
	Untrusted bool
	// Gateway is the host's address; the zero value takes the first of the subnet.
	Gateway netip.Addr
	// Range is the part of the subnet that containers get addresses from, except
	// those that ask for one; the zero value is all of it.
	Range netip.Prefix
	// IPv6 gives every member an IPv6 address too.
	IPv6 bool
	// Subnet6 and Gateway6 are as Subnet and Gateway; the zero values take a /64
	// of the root's unique local range (RFC 4193), whose packets to the outside
	// get the host's address. Global addresses (2000::/3) are routed unchanged.
	Subnet6  netip.Prefix
	Gateway6 netip.Addr
	Labels   map[string]string
}

// Network is one network and who is in it.
type Network struct {
	Name      string       `json:"name"`
	Bridge    string       `json:"bridge"` // name of the link
	Subnet    netip.Prefix `json:"subnet"`
	Gateway   netip.Addr   `json:"gateway"`
	Internal  bool         `json:"internal,omitempty"`
	Untrusted bool         `json:"untrusted,omitempty"`
	Created   time.Time    `json:"created"`
	Members   []Member     `json:"members,omitempty"` // by address

	Subnet6  netip.Prefix      `json:"subnet6,omitzero"`
	Gateway6 netip.Addr        `json:"gateway6,omitzero"`
	Range    netip.Prefix      `json:"range,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// Member is an endpoint as Inspect and List show it: enough for a hosts file.
type Member struct {
	Container string     `json:"container"`
	Hostname  string     `json:"hostname,omitempty"`
	Address   netip.Addr `json:"address"`
	MAC       string     `json:"mac"`
	Address6  netip.Addr `json:"address6,omitzero"`
	Aliases   []string   `json:"aliases,omitempty"`
	Ports     []Port     `json:"ports,omitempty"`
}

// Open returns the networks of the data root. run is the root's directory on
// tmpfs. Nothing is changed in the kernel before the first Attach or Create.
func Open(root, run string) (*Manager, error) {
	dir := filepath.Join(root, "networks")
	for _, d := range []string{dir, run} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open networks: %w", err)
		}
	}
	// The hash must not depend on how the path was spelled.
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, fmt.Errorf("open networks: %w", err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, fmt.Errorf("open networks: %w", err)
	}
	return &Manager{
		dir:     dir,
		id:      shortHash(real),
		machine: machineLock,
		resolv:  []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"},
		now:     time.Now,
		step:    func(string) {},
	}, nil
}

// shortHash gives the 8 hex digits that names of links have room for.
func shortHash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:4])
}

// Limits of names. With them an alias without host name fits 255 bytes.
const (
	maxNetworkName = 63
	maxContainer   = 128
	maxHostname    = 253 // RFC 1035, 2.3.4
)

// checkName keeps names fit for a file name and for an alias.
func checkName(kind, name string, limit int) error {
	alnum := func(c byte) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
	}
	ok := name != "" && len(name) <= limit && alnum(name[0])
	for i := 0; ok && i < len(name); i++ {
		ok = alnum(name[i]) || name[i] == '_' || name[i] == '.' || name[i] == '-'
	}
	if !ok {
		return fmt.Errorf("%s %q: want 1 to %d letters, digits, '_', '.', '-', the first a letter or digit", kind, name, limit)
	}
	return nil
}

// Create makes a network with its bridge. Killed half-way, it leaves a network
// whose bridge the first Attach completes.
func (m *Manager) Create(ctx context.Context, name string, o Options) (n Network, err error) {
	if err := checkName("network", name, maxNetworkName); err != nil {
		return n, err
	}
	if name == Default || name == "none" || name == "host" {
		return n, fmt.Errorf("network %q: the name is reserved", name)
	}
	d, err := m.define(name, o)
	if err != nil {
		return n, fmt.Errorf("create network %q: %w", name, err)
	}
	k, err := m.open(ctx)
	if err != nil {
		return n, fmt.Errorf("create network %q: %w", name, err)
	}
	defer k.close()
	if _, err := m.load(name); err == nil {
		return n, fmt.Errorf("%q: %w", name, ErrExists)
	} else if !errors.Is(err, ErrNotFound) {
		return n, err
	}
	if err := m.save(d); err != nil {
		return n, err
	}
	m.step("definition")
	if d, _, err = k.ensure(ctx, d, false); err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
		defer cancel()
		return n, errors.Join(fmt.Errorf("create network %q: %w", name, err), k.remove(clean, name))
	}
	return m.describe(d)
}

// define checks what was asked for.
func (m *Manager) define(name string, o Options) (definition, error) {
	d := definition{
		Name: name, Subnet: o.Subnet, Fixed: o.Subnet.IsValid(), Gateway: o.Gateway, Range: o.Range,
		Subnet6: o.Subnet6, Gateway6: o.Gateway6, Labels: o.Labels,
		Internal: o.Internal, Untrusted: o.Untrusted, Created: m.now().UTC(),
	}
	if err := d.checkIPv4(); err != nil {
		return d, err
	}
	if !o.IPv6 {
		if o.Subnet6.IsValid() || o.Gateway6.IsValid() {
			return d, errors.New("an IPv6 subnet or gateway needs IPv6 to be asked for (--ipv6)")
		}
		return d, nil
	}
	if err := needIPv6(); err != nil {
		return d, err
	}
	if !d.Subnet6.IsValid() {
		d.Subnet6 = m.ownSubnet6(name)
	}
	return d, d.checkIPv6()
}

// Ensure brings the default network up, so that its addresses, and the rest of
// the pool, lead nowhere else. It must be called before anything may connect
// to an address of before a reboot: without the bridge and the unreachable route
// such packets would leave by the default route.
func (m *Manager) Ensure(ctx context.Context) error {
	k, err := m.open(ctx)
	if err != nil {
		return fmt.Errorf("ensure network: %w", err)
	}
	defer k.close()
	d, err := k.known(Default)
	if err == nil {
		_, _, err = k.ensure(ctx, d, false)
	}
	if err != nil {
		return fmt.Errorf("ensure network: %w", err)
	}
	return nil
}

// Remove deletes a network without members; its bridge goes too. Removing what
// does not exist is ErrNotFound.
func (m *Manager) Remove(ctx context.Context, name string) error {
	if name == Default {
		return fmt.Errorf("network %q is built in and cannot be removed", name)
	}
	if err := checkName("network", name, maxNetworkName); err != nil {
		return err
	}
	k, err := m.open(ctx)
	if err != nil {
		return fmt.Errorf("remove network %q: %w", name, err)
	}
	defer k.close()
	d, err := m.load(name)
	if err != nil {
		return err
	}
	n, err := m.describe(d)
	if err != nil {
		return err
	}
	if len(n.Members) > 0 {
		return fmt.Errorf("remove network %q: %w by %d containers", name, ErrInUse, len(n.Members))
	}
	if err := k.remove(ctx, name); err != nil {
		return fmt.Errorf("remove network %q: %w", name, err)
	}
	return nil
}

// List returns all networks of the root, by name. Default is among them once
// it has been used.
func (m *Manager) List() ([]Network, error) {
	defs, err := m.loadAll()
	if err != nil {
		return nil, err
	}
	all := make([]Network, 0, len(defs))
	for _, d := range defs {
		n, err := m.describe(d)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// Inspect returns one network.
func (m *Manager) Inspect(name string) (Network, error) {
	if err := checkName("network", name, maxNetworkName); err != nil {
		return Network{}, err
	}
	d, err := m.load(name)
	if err != nil {
		return Network{}, err
	}
	return m.describe(d)
}

func (m *Manager) describe(d definition) (Network, error) {
	n := Network{
		Name: d.Name, Bridge: m.bridgeName(d.Name), Subnet: d.Subnet,
		Internal: d.Internal, Untrusted: d.Untrusted, Created: d.Created,
		Subnet6: d.Subnet6, Range: d.Range, Labels: d.Labels,
	}
	if d.Subnet.IsValid() {
		n.Gateway = d.gateway()
		n.Gateway6 = d.gateway6()
	}
	all, err := m.records(d.Name)
	if err != nil {
		return n, err
	}
	for _, r := range all {
		if r.inUse() {
			n.Members = append(n.Members, Member{
				Container: r.Container, Hostname: r.Hostname, Address: r.Address, MAC: r.mac().String(),
				Address6: r.Address6, Aliases: r.Aliases, Ports: r.Ports,
			})
		}
	}
	return n, nil
}
