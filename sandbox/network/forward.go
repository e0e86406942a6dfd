package network

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
)

// markPrefix names an empty nftables table. It says that one of our roots
// switched ip_forward on, and, by its last letter, what
// conf/all/accept_redirects was before (the kernel overwrites it in both
// directions, ip-sysctl.rst). A table and not a file, because it then belongs
// to the network namespace and is gone after a reboot, just as the switch is.
const markPrefix = "naru-forward-"

const (
	forwardKey   = "ipv4/ip_forward"
	redirectsKey = "ipv4/conf/all/accept_redirects"
)

// forwardOn lets the host route. The caller holds the machine's lock.
func (m *Manager) forwardOn() error {
	on, err := readSysctl(forwardKey)
	if err != nil || on == "1" {
		return err
	}
	redirects, err := readSysctl(redirectsKey)
	if err != nil {
		return err
	}
	// The mark comes first: killed after it, the next call sets the switch;
	// killed after the switch without a mark, nobody would ever set it back.
	marked, err := forwardMark()
	if err != nil {
		return err
	}
	if marked == "" {
		if err := addMark(markPrefix + redirects); err != nil {
			return err
		}
	}
	m.step("forward-mark")
	return sysctl(forwardKey, "1")
}

// forwardOff undoes forwardOn; without a mark it does nothing. The caller holds
// the machine's lock and knows that no root has a bridge left.
func (m *Manager) forwardOff() error {
	mark, err := forwardMark()
	if err != nil || mark == "" {
		return err
	}
	if err := sysctl(forwardKey, "0"); err != nil {
		return err
	}
	if err := sysctl(redirectsKey, strings.TrimPrefix(mark, markPrefix)); err != nil {
		return err
	}
	m.step("forward-off")
	return dropTable(mark)
}

func forwardMark() (string, error) {
	tables, err := listTables()
	if err != nil {
		return "", err
	}
	for t := range tables {
		if strings.HasPrefix(t, markPrefix) { // not mark6: that one has no dash there
			return t, nil
		}
	}
	return "", nil
}

// addMark writes a table with empty chains, which only say something by their names.
func addMark(name string, chains ...string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := c.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	for _, ch := range chains {
		c.AddChain(&nftables.Chain{Name: ch, Table: table})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", name, err)
	}
	return nil
}
