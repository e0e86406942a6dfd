package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// Docker and ufw set the policy of iptables' FORWARD chain to DROP. A drop in
// their chain is final and an accept in our table cannot lift it, so where one
// of them is found a chain NARU-<root> gets the traffic through, by one jump
// from DOCKER-USER (which Docker keeps for others and never flushes) or else
// from FORWARD. Accepting all there opens nothing: our own forward chain runs
// first, at priority -10, and has dropped what may not pass.
//
// The rules are written by the host's own iptables, which knows its rules'
// form, and only in a backend that the kernel shows to be in use: merely
// listing with the legacy program would load its modules.

// iptables is one backend in use on this machine, for one family.
type iptables struct {
	program string // with the backend's name
	plain   string // where a distribution ships a single backend
	v6      bool
}

// activeIptables returns the backends whose filter table exists.
func activeIptables() ([]iptables, error) {
	var found []iptables
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	for _, f := range []struct {
		names, plain string
		family       nftables.TableFamily
	}{{"ip_tables_names", "iptables", nftables.TableFamilyIPv4}, {"ip6_tables_names", "ip6tables", nftables.TableFamilyIPv6}} {
		v6 := f.family == nftables.TableFamilyIPv6
		names, err := os.ReadFile("/proc/thread-self/net/" + f.names)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("look for iptables: %w", err)
		}
		if slices.Contains(strings.Fields(string(names)), "filter") {
			found = append(found, iptables{f.plain + "-legacy", f.plain, v6})
		}
		chains, err := dump(func() ([]*nftables.Chain, error) { return c.ListChainsOfTableFamily(f.family) })
		if err != nil {
			return nil, fmt.Errorf("look for iptables: %w", err)
		}
		if slices.ContainsFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name == "filter" && ch.Name == "FORWARD" }) {
			found = append(found, iptables{f.plain + "-nft", f.plain, v6})
		}
	}
	return found, nil
}

// run returns the standard output.
func (t iptables) run(ctx context.Context, args ...string) (string, error) {
	program, err := exec.LookPath(t.program)
	if err != nil {
		if program, err = exec.LookPath(t.plain); err != nil {
			return "", fmt.Errorf("the kernel has rules of %s but the program is missing: %w", t.program, err)
		}
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"-w", "10"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", t.program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// has says whether a rule or chain exists: iptables exits 1 where it does not.
func (t iptables) has(ctx context.Context, args ...string) (bool, error) {
	_, err := t.run(ctx, args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return false, nil
	}
	return err == nil, err
}

func (m *Manager) chainName() string { return "NARU-" + m.id }

// coexist lets the bridge's traffic pass the host's iptables, if those would
// drop it. Safe to repeat; every prefix of it leaves rules that let through
// less than the whole.
func (m *Manager) coexist(ctx context.Context, d definition) error {
	active, err := activeIptables()
	if err != nil {
		return err
	}
	for _, t := range active {
		if t.v6 && !d.Subnet6.IsValid() {
			continue
		}
		if err := m.passThrough(ctx, t, m.bridgeName(d.Name)); err != nil {
			return fmt.Errorf("get along with iptables: %w", err)
		}
	}
	return nil
}

func (m *Manager) passThrough(ctx context.Context, t iptables, bridge string) error {
	hook, err := t.hook(ctx)
	if err != nil || hook == "" {
		return err
	}
	chain := m.chainName()
	if ok, err := t.has(ctx, "-S", chain); err != nil {
		return err
	} else if !ok {
		if _, err := t.run(ctx, "-N", chain); err != nil {
			return err
		}
	}
	for _, r := range passRules(bridge, hook) {
		if ok, err := t.has(ctx, append([]string{"-C", chain}, r...)...); err != nil {
			return err
		} else if ok {
			continue
		}
		if _, err := t.run(ctx, append([]string{"-A", chain}, r...)...); err != nil {
			return err
		}
	}
	m.step("iptables-chain")
	if ok, err := t.has(ctx, "-C", hook, "-j", chain); err != nil || ok {
		return err
	}
	_, err = t.run(ctx, "-I", hook, "-j", chain)
	return err
}

// hook is the chain to jump from; empty where nothing is in the way.
func (t iptables) hook(ctx context.Context) (string, error) {
	out, err := t.run(ctx, "-S", "FORWARD")
	if err != nil {
		return "", err
	}
	if strings.Contains(out, "-j DOCKER-USER") {
		return "DOCKER-USER", nil
	}
	if strings.Contains(out, "-P FORWARD DROP") {
		return "FORWARD", nil
	}
	return "", nil
}

func passRules(bridge, hook string) [][]string {
	rules := [][]string{
		{"-i", bridge, "-j", "ACCEPT"},
		{"-o", bridge, "-j", "ACCEPT"},
	}
	if hook != "DOCKER-USER" {
		return rules
	}
	// Docker judges for itself what enters its bridges.
	return append([][]string{
		{"-i", bridge, "-o", "docker0", "-j", "RETURN"},
		{"-i", bridge, "-o", "br-+", "-j", "RETURN"},
	}, rules...)
}

// leave removes the bridge's rules, or with an empty name the whole chain and
// the jumps to it.
func (m *Manager) leave(ctx context.Context, bridge string) error {
	active, err := activeIptables()
	if err != nil {
		return err
	}
	for _, t := range active {
		if ok, err := t.has(ctx, "-S", m.chainName()); err != nil {
			return fmt.Errorf("leave iptables: %w", err)
		} else if !ok {
			continue
		}
		if bridge != "" {
			err = t.removeRules(ctx, m.chainName(), bridge)
		} else {
			err = t.removeChain(ctx, m.chainName())
		}
		if err != nil {
			return fmt.Errorf("leave iptables: %w", err)
		}
	}
	return nil
}

func (t iptables) removeRules(ctx context.Context, chain, bridge string) error {
	// Backwards, so that what a kill leaves is a prefix again, which coexist
	// can complete in the right order.
	for _, r := range slices.Backward(passRules(bridge, "DOCKER-USER")) {
		ok, err := t.has(ctx, append([]string{"-C", chain}, r...)...)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if _, err := t.run(ctx, append([]string{"-D", chain}, r...)...); err != nil {
			return err
		}
	}
	return nil
}

func (t iptables) removeChain(ctx context.Context, chain string) error {
	for _, hook := range []string{"DOCKER-USER", "FORWARD"} {
		// -C on a chain that does not exist fails too, with the codes 1 or 2.
		if _, err := t.run(ctx, "-C", hook, "-j", chain); err != nil {
			continue
		}
		if _, err := t.run(ctx, "-D", hook, "-j", chain); err != nil {
			return err
		}
	}
	if _, err := t.run(ctx, "-F", chain); err != nil {
		return err
	}
	_, err := t.run(ctx, "-X", chain)
	return err
}
