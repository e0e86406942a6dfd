package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/network"
)

func networkCommand(env *Env) *cobra.Command {
	return group("network", "Manage networks", networkCreate(env), networkList(env), networkInspect(env), networkRemove(env),
		networkConnect(env), networkDisconnect(env), networkPrune(env))
}

func networkInspect(env *Env) *cobra.Command {
	format := ""
	c := &cobra.Command{
		Use:   "inspect NETWORK...",
		Short: "Show networks and who is in them, as a JSON array",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			return inspectAll(env, args, format, func(name string) (any, error) { return e.Networks().Inspect(name) })
		}),
	}
	c.Flags().StringVarP(&format, "format", "f", "", "Go template for each network")
	c.Flags().Bool("json", true, "as JSON, which it always is")
	return c
}

func networkRemove(env *Env) *cobra.Command {
	force := false
	c := &cobra.Command{
		Use:     "rm NETWORK...",
		Aliases: []string{"remove"},
		Short:   "Remove networks",
		Args:    cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return forEach(env, args, func(name string) error {
				err := e.Networks().Remove(ctx, name)
				if force && errors.Is(err, network.ErrNotFound) {
					return nil
				}
				return err
			})
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "a network that does not exist is no error")
	return c
}

// createFlags are the flags of network create.
type createFlags struct {
	subnets, gateways, ranges, labels []string
	driver                            string
	o                                 network.Options
}

func networkCreate(env *Env) *cobra.Command {
	f := createFlags{}
	c := &cobra.Command{
		Use:   "create NETWORK",
		Short: "Create a network; its containers know each other by name",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			if err := f.complete(); err != nil {
				return err
			}
			n, err := e.Networks().Create(ctx, args[0], f.o)
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, n.Name)
			return nil
		}),
	}
	flags := c.Flags()
	flags.StringArrayVar(&f.subnets, "subnet", nil, "subnet, such as 10.5.0.0/24; a second one for IPv6")
	flags.StringArrayVar(&f.gateways, "gateway", nil, "the host's address in the subnet; a second one for IPv6")
	flags.StringArrayVar(&f.ranges, "ip-range", nil, "part of the subnet that containers get addresses from")
	flags.BoolVar(&f.o.Internal, "internal", false, "no way out of the network")
	flags.BoolVar(&f.o.IPv6, "ipv6", false, "IPv6 addresses too; without --subnet for it, unique local ones")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "label KEY=value")
	flags.StringVarP(&f.driver, "driver", "d", "bridge", "accepted for Docker's sake: bridge")
	return c
}

func (f *createFlags) complete() error {
	if f.driver != "bridge" {
		return usage("--driver %q: only bridge networks exist", f.driver)
	}
	f.o.Labels = parseLabels(f.labels)
	for _, s := range f.subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return usage("--subnet: %w", err)
		}
		at := &f.o.Subnet
		if p.Addr().Is6() {
			at = &f.o.Subnet6
		}
		if at.IsValid() {
			return usage("--subnet %s: the network has %s already", p, *at)
		}
		*at = p
	}
	for _, s := range f.gateways {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return usage("--gateway: %w", err)
		}
		at := &f.o.Gateway
		if a.Is6() {
			at = &f.o.Gateway6
		}
		if at.IsValid() {
			return usage("--gateway %s: the network has %s already", a, *at)
		}
		*at = a
	}
	for _, s := range f.ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return usage("--ip-range: %w", err)
		}
		if !p.Addr().Is4() || f.o.Range.IsValid() {
			return usage("--ip-range %s: one range of IPv4 is possible; IPv6 addresses follow from it", p)
		}
		f.o.Range = p
	}
	return nil
}

func networkList(env *Env) *cobra.Command {
	f, format := listFlags{}, ""
	c := f.define(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List networks",
		Args:    cobra.NoArgs,
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, _ []string) error {
			list, err := e.Networks().List()
			if err != nil {
				return err
			}
			return printNetworks(env, list, f, format)
		}),
	})
	c.Flags().StringVar(&format, "format", "", "Go template for each line, or json")
	return c
}

func printNetworks(env *Env, list []network.Network, f listFlags, format string) error {
	if f.json {
		return printJSON(env, list)
	}
	rows, values := [][]string{}, []any{}
	for _, n := range list {
		if f.quiet {
			fmt.Fprintln(env.Stdout, n.Name)
		}
		subnet := ""
		if n.Subnet.IsValid() { // the default network has one from its first container on
			subnet = n.Subnet.String()
		}
		if n.Subnet6.IsValid() {
			subnet += ", " + n.Subnet6.String()
		}
		rows = append(rows, []string{n.Name, subnet, n.Bridge, fmt.Sprint(len(n.Members))})
		values = append(values, n)
	}
	switch {
	case f.quiet:
		return nil
	case format != "":
		return printFormat(env.Stdout, format, values)
	}
	return printTable(env.Stdout, []string{"NAME", "SUBNET", "BRIDGE", "CONTAINERS"}, rows)
}

func networkConnect(env *Env) *cobra.Command {
	var ep sandbox.NetworkEndpoint
	ip, ip6 := "", ""
	c := &cobra.Command{
		Use:   "connect NETWORK CONTAINER",
		Short: "Put a container into one more network, for now and after a restart",
		Args:  cobra.ExactArgs(2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			ep.Network = args[0]
			for key, value := range map[string]string{"ip": ip, "ip6": ip6} {
				if value != "" {
					if err := setEndpoint(&ep, key, value); err != nil {
						return usage("--%s: %w", key, err)
					}
				}
			}
			return e.Connect(ctx, args[1], ep)
		}),
	}
	c.Flags().StringArrayVar(&ep.Aliases, "alias", nil, "further name in the network")
	c.Flags().StringVar(&ip, "ip", "", "IPv4 address in the network")
	c.Flags().StringVar(&ip6, "ip6", "", "IPv6 address in the network")
	return c
}

func networkDisconnect(env *Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "disconnect NETWORK CONTAINER",
		Short: "Take a container out of a network",
		Args:  cobra.ExactArgs(2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return e.Disconnect(ctx, args[1], args[0])
		}),
	}
	c.Flags().BoolP("force", "f", true, "accepted for Docker's sake")
	return c
}

func networkPrune(env *Env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove networks that no container, running or not, is to be in",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			names, err := e.PruneNetworks(ctx)
			if asJSON {
				return errorsFirst(err, printJSON(env, names))
			}
			if len(names) > 0 {
				fmt.Fprintln(env.Stdout, "Deleted Networks:\n"+strings.Join(names, "\n"))
			}
			return err
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().BoolP("force", "f", true, "accepted for Docker's sake: there is no question to skip")
	return c
}

// portCommand is docker port.
func portCommand(env *Env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "port CONTAINER [PORT[/PROTOCOL]]",
		Short: "Show the published ports of a container",
		Args:  cobra.RangeArgs(1, 2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			c, err := e.Get(ctx, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				data, err := json.Marshal(c.Ports)
				fmt.Fprintln(env.Stdout, string(data))
				return err
			}
			return printPorts(env, c, args[1:])
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func printPorts(env *Env, c sandbox.Container, wanted []string) error {
	want := ""
	if len(wanted) > 0 {
		if want = wanted[0]; !strings.Contains(want, "/") {
			want += "/tcp"
		}
	}
	found := false
	for _, l := range portLines(c.Ports, hasIPv6(c)) {
		switch {
		case want == "":
			fmt.Fprintln(env.Stdout, l[0]+" -> "+l[1])
		case l[0] == want:
			found = true
			fmt.Fprintln(env.Stdout, l[1])
		}
	}
	if want != "" && !found {
		return fmt.Errorf("no public port %q published for %s", want, c.Name)
	}
	return nil
}
