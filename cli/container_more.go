package cli

import (
	"github.com/spf13/cobra"
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
