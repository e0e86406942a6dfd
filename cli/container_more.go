package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
)

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(c, args[0])
		}
		return usage("%s needs a command; see '%s --help'", c.CommandPath(), c.CommandPath())
	}}
	c.AddCommand(commands...)
	return c
}

// listFlags are the flags that every ls has.
type listFlags struct{ quiet, json bool }

func (f *listFlags) define(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "names or ids only")
	c.Flags().BoolVar(&f.json, "json", false, "as JSON")
	return c
}

func volumeCommand(env *Env) *cobra.Command {
	format := ""
	inspect := &cobra.Command{
		Use:   "inspect VOLUME...",
		Short: "Show volumes, as a JSON array",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			return inspectVolumes(env, e.Volumes(), args, format)
		}),
	}
	inspect.Flags().StringVarP(&format, "format", "f", "", "Go template for each volume")
	return group("volume", "Manage volumes", volumeCreate(env), volumeList(env), inspect, &cobra.Command{
		Use:   "rm VOLUME...",
		Short: "Remove volumes with their data",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			return forEach(env, args, e.RemoveVolume)
		}),
	})
}

func volumeCreate(env *Env) *cobra.Command {
	var labels []string
	c := &cobra.Command{
		Use:   "create VOLUME",
		Short: "Create a volume",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			v, err := e.Volumes().Create(args[0], parseLabels(labels), nil)
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, v.Name)
			return nil
		}),
	}
	c.Flags().StringArrayVarP(&labels, "label", "l", nil, "label KEY=value")
	return c
}

func volumeList(env *Env) *cobra.Command {
	f := listFlags{}
	return f.define(&cobra.Command{
		Use:   "ls",
		Short: "List volumes",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, _ []string) error {
			list, err := e.Volumes().List()
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(env, list)
			}
			rows := [][]string{}
			for _, v := range list {
				if f.quiet {
					fmt.Fprintln(env.Stdout, v.Name)
				}
				rows = append(rows, []string{v.Name, ago(time.Since(v.Created)) + " ago", v.Path})
			}
			if f.quiet {
				return nil
			}
			return printTable(env.Stdout, []string{"VOLUME NAME", "CREATED", "PATH"}, rows)
		}),
	})
}
