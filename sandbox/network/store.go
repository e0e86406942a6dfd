package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
)

// definition is a network as it is on disk, in <root>/networks/<name>/network.json.
// Address records lie beside it, one file per address.
type definition struct {
	Name      string       `json:"name"`
	Subnet    netip.Prefix `json:"subnet"`          // zero until the bridge is first made
	Fixed     bool         `json:"fixed,omitempty"` // the subnet was asked for, never pick another
	Internal  bool         `json:"internal,omitempty"`
	Untrusted bool         `json:"untrusted,omitempty"`
	Created   time.Time    `json:"created"`

	Subnet6  netip.Prefix      `json:"subnet6,omitzero"`  // zero: no IPv6
	Gateway  netip.Addr        `json:"gateway,omitzero"`  // zero: the first of the subnet
	Gateway6 netip.Addr        `json:"gateway6,omitzero"` // zero: see ipv6.go
	Range    netip.Prefix      `json:"range,omitzero"`    // zero: addresses come from the whole subnet
	Labels   map[string]string `json:"labels,omitempty"`
}

// gateway is the host's address in the subnet.
func (d definition) gateway() netip.Addr {
	if d.Gateway.IsValid() {
		return d.Gateway
	}
	return d.Subnet.Masked().Addr().Next()
}

func (m *Manager) networkDir(name string) string { return filepath.Join(m.dir, name) }

func (m *Manager) bridgeName(network string) string { return "nr" + shortHash(m.id, network) }

// vethName contains the namespace, so that a container which is restarted need
// not wait for the kernel to take the old pair away.
func (m *Manager) vethName(network, container string, netns uint64) string {
	return "nv" + shortHash(m.id, network, container, strconv.FormatUint(netns, 10))
}

func (m *Manager) load(name string) (definition, error) {
	var d definition
	path := filepath.Join(m.networkDir(name), "network.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, fmt.Errorf("%q: %w", name, ErrNotFound)
	}
	if err != nil {
		return d, fmt.Errorf("read network: %w", err)
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return d, fmt.Errorf("read %s: %w", path, err)
	}
	return d, nil
}

func (m *Manager) save(d definition) error {
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fmt.Errorf("save network: %w", err)
	}
	dir := m.networkDir(d.Name)
	if err := os.MkdirAll(filepath.Join(dir, recordDir), 0o700); err != nil {
		return fmt.Errorf("save network: %w", err)
	}
	if err := atomicfile.WriteFile(filepath.Join(dir, "network.json"), data, 0o600); err != nil {
		return fmt.Errorf("save network: %w", err)
	}
	return atomicfile.SyncDir(m.dir)
}

// forget removes the definition first: without it the rest is rubbish that
// loadAll does not see and sweep removes.
func (m *Manager) forget(name string) error {
	dir := m.networkDir(name)
	if err := os.Remove(filepath.Join(dir, "network.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network: %w", err)
	}
	m.step("forget")
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove network: %w", err)
	}
	return nil
}

// loadAll returns the networks of the root by name.
func (m *Manager) loadAll() ([]definition, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	var all []definition
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		d, err := m.load(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // half made or half removed
		}
		if err != nil {
			return nil, err
		}
		all = append(all, d)
	}
	return all, nil
}

// sweep removes directories that hold no definition, and temporary files of
// writers that were killed. The caller holds the root's lock.
func (m *Manager) sweep() error {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return fmt.Errorf("sweep networks: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if _, err := m.load(e.Name()); errors.Is(err, ErrNotFound) {
			if err := m.forget(e.Name()); err != nil {
				return err
			}
			continue
		}
		for _, pattern := range []string{".*.tmp-*", recordDir + "/.*.tmp-*"} {
			left, err := filepath.Glob(filepath.Join(m.networkDir(e.Name()), pattern))
			if err != nil {
				return fmt.Errorf("sweep networks: %w", err)
			}
			for _, f := range left {
				if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("sweep networks: %w", err)
				}
			}
		}
	}
	return nil
}

// lock takes the root's lock. Where both are held, it is taken before the machine's.
func (m *Manager) lock(ctx context.Context) (unlock func(), err error) {
	return flock(ctx, filepath.Join(m.dir, ".lock"))
}

// flock waits for an exclusive lock on the file at path until ctx ends. Each
// call opens the file anew, so that goroutines exclude each other as well
// (flock(2): the lock belongs to the open file description).
func flock(ctx context.Context, path string) (unlock func(), err error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock %s: %w", path, err)
	}
	retry := time.NewTicker(time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// Unlocked by name and not only by close: a child that was forked but
			// has not yet executed holds a copy of the descriptor.
			return func() { _ = unix.Flock(fd, unix.LOCK_UN); _ = unix.Close(fd) }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = unix.Close(fd)
			return nil, fmt.Errorf("lock %s: %w", path, context.Cause(ctx))
		case <-retry.C:
		}
	}
}
