package network

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Detach disconnects a container from all networks of the root, takes its ports
// off the host and sends its addresses into quarantine. A container that has
// none is no error.
//
// After the container's end it does not wait for the kernel: the veth pair goes
// with the namespace, where deleting it by name would take 15 to 20 ms.
func (m *Manager) Detach(ctx context.Context, container string) error {
	k, err := m.open(ctx)
	if err != nil {
		return fmt.Errorf("detach %s: %w", container, err)
	}
	defer k.close()
	if err := k.detach(ctx, container); err != nil {
		return fmt.Errorf("detach %s: %w", container, err)
	}
	return nil
}

func (k *kernel) detach(ctx context.Context, container string) error {
	published := false
	err := k.eachRecord(container, func(_ string, r record) error {
		published = published || len(r.Ports) > 0
		return nil
	})
	if err == nil && published {
		err = k.unpublish(ctx, func(_ string, r record) bool { return r.Container == container })
	}
	if err != nil {
		return err
	}
	return k.eachRecord(container, func(network string, r record) error {
		return k.release(network, r, alive(r))
	})
}

// Rename changes the Hostname of a container in all networks of the root.
func (m *Manager) Rename(ctx context.Context, container, hostname string) error {
	if err := checkName("hostname", hostname, maxHostname); err != nil {
		return fmt.Errorf("rename %s: %w", container, err)
	}
	k, err := m.open(ctx)
	if err != nil {
		return fmt.Errorf("rename %s: %w", container, err)
	}
	defer k.close()
	err = k.eachRecord(container, func(network string, r record) error {
		r.Hostname = hostname
		link, err := findLink(k.h, r.Link)
		if err != nil {
			return err
		}
		if link != nil { // else it goes with a namespace that is gone
			if err := k.h.LinkSetAlias(link, k.vethAlias(network, r)); err != nil {
				return err
			}
		}
		return k.putRecord(network, r)
	})
	if err != nil {
		return fmt.Errorf("rename %s: %w", container, err)
	}
	return nil
}

// alive says whether the container's process is still the one that was attached.
func alive(r record) bool { return r.NetNS != 0 && netnsInode(r.Pid) == r.NetNS }

// Disconnect takes a running container out of one network. If that was the one
// by which it reached the outside, the first of those it is still in takes over.
func (m *Manager) Disconnect(ctx context.Context, network, container string) error {
	if err := checkName("network", network, maxNetworkName); err != nil {
		return err
	}
	k, err := m.open(ctx)
	if err != nil {
		return fmt.Errorf("disconnect %s: %w", container, err)
	}
	defer k.close()
	err = k.disconnect(ctx, network, container)
	if err != nil {
		return fmt.Errorf("disconnect %s from network %q: %w", container, network, err)
	}
	return nil
}

func (k *kernel) disconnect(ctx context.Context, network, container string) error {
	if _, err := k.load(network); err != nil {
		return err
	}
	var gone *record
	err := k.eachRecord(container, func(n string, r record) error {
		if n == network {
			gone = &r
		}
		return nil
	})
	if err != nil {
		return err
	}
	if gone == nil {
		return ErrNotConnected
	}
	if err := k.unplug(ctx, network, *gone, true); err != nil {
		return err
	}
	return k.eachRecord(container, func(n string, r record) error {
		if !alive(r) {
			return nil
		}
		return k.leaveBy(n, r)
	})
}

// leaveBy gives the container a default route by this network if it has none.
func (k *kernel) leaveBy(network string, r record) error {
	d, err := k.load(network)
	if err != nil {
		return err
	}
	fd, inode, err := openNetns(r.Pid)
	if err != nil || inode != r.NetNS {
		return nil // it has just ended
	}
	defer unix.Close(fd)
	return inNetns(fd, func(h *netlink.Handle) error { return k.setFar(h, &plug{def: d, netns: fd, rec: r}) })
}

// unplug takes one address of a container back, ports and link first.
func (k *kernel) unplug(ctx context.Context, network string, r record, deleteVeth bool) error {
	if len(r.Ports) > 0 {
		err := k.unpublish(ctx, func(n string, o record) bool { return n == network && o.Container == r.Container })
		if err != nil {
			return err
		}
	}
	return k.release(network, r, deleteVeth)
}

// release takes an address back: link first, so that it never has two users.
func (k *kernel) release(network string, r record, deleteVeth bool) error {
	if deleteVeth {
		if err := deleteLink(k.h, r.Link); err != nil {
			return err
		}
		k.step("release-veth")
	}
	return k.free(network, r)
}
