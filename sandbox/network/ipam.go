package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
)

const recordDir = "addresses"

// record says whose an address is. It is written before the veth exists and
// marked freed after the veth is gone, so that an address has one owner at any
// time, whenever the process is killed.
type record struct {
	Address   netip.Addr `json:"address"`
	Container string     `json:"container"`
	Hostname  string     `json:"hostname,omitempty"`
	Interface string     `json:"interface"`       // inside the container
	Link      string     `json:"link"`            // the veth's end on the host
	NetNS     uint64     `json:"netns,omitempty"` // inode of the namespace
	Pid       int        `json:"pid,omitempty"`   // a process in it at the time of Attach
	Since     time.Time  `json:"since"`
	Freed     time.Time  `json:"freed,omitzero"` // set: in quarantine

	Address6 netip.Addr `json:"address6,omitzero"`
	HWAddr   string     `json:"hwaddr,omitempty"` // set: asked for
	Aliases  []string   `json:"aliases,omitempty"`
	Ports    []Port     `json:"ports,omitempty"`

	// Brief addresses are of an untrusted network: nobody connects to them, so that
	// nobody still knows them by heart, and no boot needs to remember them.
	Brief bool `json:"brief,omitempty"`
}

func (r record) inUse() bool { return r.Freed.IsZero() }

// rested says whether the quarantine is over. A clock that was set back must
// not keep the address locked up.
func (r record) rested(now time.Time) bool {
	d, rest := now.Sub(r.Freed), quarantine
	if r.Brief {
		rest = briefQuarantine
	}
	return !r.inUse() && (d >= rest || d < -rest)
}

// mac is derived from the address (locally administered, unicast), so that a
// neighbour's ARP entry stays true when the address changes hands.
func mac(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 'n', b[0], b[1], b[2], b[3]}
}

// mac is the address that the container's end has.
func (r record) mac() net.HardwareAddr {
	if a, err := net.ParseMAC(r.HWAddr); err == nil {
		return a
	}
	return mac(r.Address)
}

func (m *Manager) recordPath(network string, a netip.Addr) string {
	return filepath.Join(m.networkDir(network), recordDir, a.String())
}

// records returns all records of a network, by address.
func (m *Manager) records(network string) ([]record, error) {
	entries, err := os.ReadDir(filepath.Join(m.networkDir(network), recordDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var all []record
	for _, e := range entries {
		a, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // a temporary file
		}
		data, err := readSmall(m.recordPath(network, a))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a reader without lock met a writer
		}
		if err != nil {
			return nil, fmt.Errorf("read address: %w", err)
		}
		var r record
		err = json.Unmarshal(data, &r)
		if errors.As(err, new(*json.SyntaxError)) {
			continue // cut off by a power cut, after which nobody has the address
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", m.recordPath(network, a), err)
		}
		r.Address = a // the name of the file is what excludes others
		all = append(all, r)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Address.Less(all[j].Address) })
	return all, nil
}

// readSmall is os.ReadFile for the dozens of records that every Attach reads: a
// record is no pipe that the poller would have to know.
func readSmall(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) // read only: nothing can be lost
	data := make([]byte, 0, 1024)
	for {
		n, err := unix.Read(fd, data[len(data):cap(data)])
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return data, nil
		}
		data = slices.Grow(data[:len(data)+n], 512)
	}
}

// putRecord writes a record so that it survives a kill at once, and a power cut
// when syncRecord has returned. Between the two nothing can go wrong: the power cut
// takes the owner of the address along.
func (m *Manager) putRecord(network string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write address record: %w", err)
	}
	path := m.recordPath(network, r.Address)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write address record: %w", err)
	}
	if err := atomicfile.Replace(path, data, 0o600); err != nil {
		return fmt.Errorf("write address record: %w", err)
	}
	return nil
}

// syncRecord makes a record durable: after a boot its address is not given to
// somebody else while others, such as an nginx that starts with its old
// configuration, still take it for the old one's.
func (m *Manager) syncRecord(network string, r record) error {
	if r.Brief {
		return nil
	}
	f, err := os.Open(m.recordPath(network, r.Address))
	if err != nil {
		return fmt.Errorf("sync address record: %w", err)
	}
	err = errors.Join(f.Sync(), f.Close())
	if err = errors.Join(err, atomicfile.SyncDir(filepath.Dir(f.Name()))); err != nil {
		return fmt.Errorf("sync address record: %w", err)
	}
	return nil
}

func (m *Manager) dropRecord(network string, a netip.Addr) error {
	if err := os.Remove(m.recordPath(network, a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove address record: %w", err)
	}
	return nil
}

// free sends an address into quarantine.
func (m *Manager) free(network string, r record) error {
	r.Freed = m.now()
	if err := m.putRecord(network, r); err != nil {
		return err
	}
	return m.syncRecord(network, r)
}

// holders is who has or had the addresses of a network.
type holders struct {
	by4   map[netip.Addr]*record
	taken map[netip.Addr]bool // IPv6 addresses in use or at rest
}

func index(all []record) holders {
	h := holders{map[netip.Addr]*record{}, map[netip.Addr]bool{}}
	for i, r := range all {
		h.by4[r.Address] = &all[i]
		h.taken[r.Address6] = true // the zero one harms nobody
	}
	return h
}

// choose returns an address without an owner: one never used if there is any,
// otherwise the longest rested. old is the rested record it takes over, if any.
func choose(d definition, all []record, now time.Time) (a netip.Addr, old *record, err error) {
	h, resting := index(all), 0
	from := d.Subnet
	if d.Range.IsValid() {
		from = d.Range
	}
	for a = from.Masked().Addr(); from.Contains(a); a = a.Next() {
		if a == d.gateway() || !d.usable(a) || d.derive6(a) == d.gateway6() && d.Subnet6.IsValid() {
			continue
		}
		r := h.by4[a]
		if r == nil && !h.taken[d.derive6(a)] || r == nil && !d.Subnet6.IsValid() {
			return a, nil, nil
		}
		if r == nil || r.inUse() {
			continue
		}
		resting++
		if r.rested(now) && (old == nil || r.Freed.Before(old.Freed)) {
			old = r
		}
		if old != nil && old.Brief {
			break // the fewer there are, the faster the next Attach reads them
		}
	}
	if old != nil {
		return old.Address, old, nil
	}
	return a, nil, fmt.Errorf("network %q, %s: %w (%d in quarantine)", d.Name, from, ErrFull, resting)
}

// claimed returns the address that was asked for. One at rest may be had: who
// names an address knows what it is known for.
func claimed(d definition, all []record, a netip.Addr) (netip.Addr, *record, error) {
	if !d.Fixed {
		return a, nil, fmt.Errorf("address %s: only a network that was created with a subnet gives an address that is asked for", a)
	}
	if !d.usable(a) || a == d.gateway() {
		return a, nil, fmt.Errorf("address %s: want one of a host in %s other than the gateway %s", a, d.Subnet, d.gateway())
	}
	r := index(all).by4[a]
	if r != nil && r.inUse() {
		return a, nil, fmt.Errorf("address %s of network %q: %w by container %s", a, d.Name, ErrAddressInUse, short(r.Container))
	}
	return a, r, nil
}

// broadcast is the last address of an IPv4 prefix.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}
