package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"naru/agent/store"
)

func tokenCommand(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Tokens for the HTTP API; works on the data directory, also while the agent runs"}
	var asJSON bool
	list := &cobra.Command{
		Use: "ls", Short: "List the tokens", Args: cobra.NoArgs,
		RunE: withStore(env, func(ctx context.Context, s *store.Store, _ []string) error {
			all, err := s.Tokens(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(env, all)
			}
			return printTokens(env, all)
		}),
	}
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(list,
		&cobra.Command{
			Use: "create NAME", Short: "Make a token and print it; it cannot be shown again", Args: cobra.ExactArgs(1),
			RunE: withStore(env, func(ctx context.Context, s *store.Store, args []string) error {
				plain, _, err := s.CreateToken(ctx, args[0])
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(env.Stdout, plain)
				return err
			}),
		},
		&cobra.Command{
			Use: "revoke ID", Short: "Make a token invalid, at once", Args: cobra.ExactArgs(1),
			RunE: withStore(env, func(ctx context.Context, s *store.Store, args []string) error {
				return s.RevokeToken(ctx, args[0])
			}),
		})
	return c
}

func printTokens(env *Env, all []store.Token) error {
	w := tabwriter.NewWriter(env.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tCREATED\tLAST USED")
	for _, t := range all {
		used := "never"
		if !t.Used.IsZero() {
			used = t.Used.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", t.ID, t.Name, t.Created.Local().Format(time.DateTime), used)
	}
	return w.Flush()
}

// withStore opens the agent's database for one command.
func withStore(env *Env, f func(context.Context, *store.Store, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) (err error) {
		s, err := store.Open(filepath.Join(env.Root, databaseName))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		return f(c.Context(), s, args)
	}
}
