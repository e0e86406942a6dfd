package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/agent/store"
)

func tokenCommand(env *Env) *cobra.Command {
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
	return group("token", "Tokens for the HTTP API; works on the data directory, also while the agent runs", list,
		&cobra.Command{
			Use: "create NAME", Short: "Make a token and print it; it cannot be shown again", Args: cobra.ExactArgs(1),
			RunE: withStore(env, func(ctx context.Context, s *store.Store, args []string) error {
				if strings.TrimSpace(args[0]) == "" {
					return usage("a token needs a name")
				}
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
				if err := s.RevokeToken(ctx, args[0]); err != nil {
					return err
				}
				_, err := fmt.Fprintln(env.Stdout, args[0])
				return err
			}),
		})
}

func printTokens(env *Env, all []store.Token) error {
	rows := [][]string{}
	for _, t := range all {
		used := "never"
		if !t.Used.IsZero() {
			used = ago(time.Since(t.Used)) + " ago"
		}
		rows = append(rows, []string{t.ID, t.Name, t.Created.Local().Format(time.DateTime), used})
	}
	return printTable(env.Stdout, []string{"ID", "NAME", "CREATED", "LAST USED"}, rows)
}

// withStore opens the agent's database for one command.
func withStore(env *Env, f func(context.Context, *store.Store, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) (err error) {
		file := filepath.Join(env.Root, databaseName)
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no agent has run on %s yet: 'naru serve' makes it, and --root (NARU_ROOT) must be the root of its config", env.Root)
		}
		s, err := store.Open(file)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		return f(c.Context(), s, args)
	}
}
