package network

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// IPv6 is forwarded only while a network with IPv6 exists. The switch is one for
// the whole machine (ip-sysctl.rst, conf/all/forwarding), and with it on a host
// no longer listens to router advertisements: it would lose its own default
// route. So links that listened are told to go on (accept_ra=2), and all that was
// changed is remembered in a table of the kernel, as in forward.go: its chains
// are named by what the links had before.
const (
	mark6       = "naru-forward6"
	forward6Key = "ipv6/conf/all/forwarding"
	raMark      = "ra-" // the link had accept_ra=1
	fwMark      = "fw-" // the link forwarded by itself
)

// forwardFor lets the host route what the network needs.
func (k *kernel) forwardFor(d definition) error {
	if err := k.forwardOn(); err != nil || !d.Subnet6.IsValid() {
		return err
	}
	on, err := readSysctl(forward6Key)
	if err != nil || on == "1" {
		return err
	}
	if err := k.markForward6(); err != nil {
		return err
	}
	k.step("forward6-mark")
	return sysctl(forward6Key, "1")
}

// markForward6 writes down what the switch overwrites, and makes links go on
// listening to routers. A kill in between leaves the mark, which is not written
// again.
func (k *kernel) markForward6() error {
	tables, err := listTables()
	if err != nil {
		return err
	}
	if !tables[mark6] {
		marks, err := k.marksForward6()
		if err != nil {
			return err
		}
		if err := addMark(mark6, marks...); err != nil {
			return err
		}
	}
	return eachMark6(func(kind, link string) error {
		if kind == raMark {
			return sysctl("ipv6/conf/"+link+"/accept_ra", "2")
		}
		return nil
	})
}

func (k *kernel) marksForward6() (marks []string, err error) {
	dirs, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return nil, fmt.Errorf("list IPv6 settings: %w", err)
	}
	for _, d := range dirs {
		name := d.Name()
		if name == "all" || name == "lo" || isBridge(name) || isVeth(name) {
			continue
		}
		for _, q := range [][3]string{{"accept_ra", "1", raMark}, {"forwarding", "1", fwMark}} {
			v, err := readSysctl("ipv6/conf/" + name + "/" + q[0])
			if errors.Is(err, os.ErrNotExist) {
				continue // the link went away
			}
			if err != nil {
				return nil, err
			}
			if v == q[1] && (q[2] != raMark || name != "default") {
				marks = append(marks, q[2]+name)
			}
		}
	}
	return marks, nil
}

// eachMark6 visits what is written in the mark; without one it does nothing.
func eachMark6(visit func(kind, link string) error) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	chains, err := dump(func() ([]*nftables.Chain, error) { return c.ListChainsOfTableFamily(nftables.TableFamilyINet) })
	if err != nil {
		return fmt.Errorf("list nftables: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name != mark6 {
			continue
		}
		for _, kind := range []string{raMark, fwMark} {
			if link, ok := strings.CutPrefix(ch.Name, kind); ok {
				if err := visit(kind, link); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// forward6Off undoes forwardFor once no network of any root has IPv6. The caller
// holds the machine's lock, so that none is being made.
func (k *kernel) forward6Off() error {
	tables, err := listTables()
	if err != nil || !tables[mark6] {
		return err
	}
	links, err := k.links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if _, d, ok := parseBridgeAlias(l.Attrs().Alias); ok && d.Subnet6.IsValid() {
			return nil
		}
	}
	if err := sysctl(forward6Key, "0"); err != nil {
		return err
	}
	err = eachMark6(func(kind, link string) error {
		if kind == fwMark {
			return sysctl("ipv6/conf/"+link+"/forwarding", "1")
		}
		return k.listenAgain(link)
	})
	if err != nil {
		return err
	}
	k.step("forward6-off")
	return dropTable(mark6)
}

// listenAgain takes accept_ra=2 back, unless somebody has changed it since.
func (k *kernel) listenAgain(link string) error {
	key := "ipv6/conf/" + link + "/accept_ra"
	v, err := readSysctl(key)
	if errors.Is(err, unix.ENOENT) {
		return nil // the link is gone
	}
	if err != nil || v != "2" {
		return err
	}
	return sysctl(key, "1")
}
