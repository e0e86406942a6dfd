package sandbox

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"naru/sandbox/network"
)

// writeEtc writes hostname, hosts and resolv.conf. They are bind mounted, so
// later changes must be made in place.
func (e *Engine) writeEtc(r *record, dir string) error {
	resolv, warn := e.networks.Resolve()
	if r.Config.Network == NetworkHost {
		if data, err := os.ReadFile("/etc/resolv.conf"); err == nil {
			resolv, warn = data, ""
		}
	}
	if warn != "" && r.Config.Network != NetworkNone {
		r.Warnings = append(r.Warnings, warn)
	}
	for name, data := range map[string][]byte{
		"hostname":    []byte(r.Config.Hostname + "\n"),
		"hosts":       hosts(r, network.Attachment{}, nil),
		"resolv.conf": resolv,
	} {
		if err := writeInPlace(filepath.Join(dir, name), data); err != nil {
			return err
		}
	}
	return nil
}

// hosts is the container's /etc/hosts: itself, and its peers.
func hosts(r *record, at network.Attachment, peers []network.Member) []byte {
	text := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	address := "127.0.1.1"
	if at.Address.IsValid() {
		address = at.Address.Addr().String()
	}
	names := r.Config.Hostname
	if r.Name != "" && r.Name != names {
		names += " " + r.Name
	}
	text += address + "\t" + names + "\n"
	for _, p := range peers {
		if p.Container != r.ID && p.Hostname != "" {
			text += p.Address.String() + "\t" + p.Hostname + "\n"
		}
	}
	return []byte(text)
}

// introduce tells all containers of a network each other's names. The default
// network has no names, as in Docker: it holds every app's containers.
func (e *Engine) introduce(name string) error {
	if name == network.Default || name == networkBuild {
		return nil
	}
	n, err := e.networks.Inspect(name)
	if err != nil {
		return err
	}
	for _, m := range n.Members {
		r, err := e.load(m.Container)
		if errors.Is(err, ErrNotFound) {
			continue // just gone
		}
		if err != nil {
			return err
		}
		at := network.Attachment{Address: netip.PrefixFrom(m.Address, n.Subnet.Bits())}
		err = writeInPlace(filepath.Join(e.dir(r.ID), "hosts"), hosts(r, at, n.Members))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeInPlace keeps the inode, which a container has mounted.
func writeInPlace(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask says: every user inside reads it
	}
	return errors.Join(err, f.Close())
}
