package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/build"
)

func builderCommand(env *Env) *cobra.Command {
	return group("builder", "Manage what builds remember", builderPrune(env), builderUsage(env))
}

func builderPrune(env *Env) *cobra.Command {
	var filters []string
	o, keep, force, asJSON := build.PruneOptions{}, "", false, false
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove what builds remember",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) (err error) {
			if o.Keep, err = parseSize(keep); err != nil {
				return err
			}
			if o.Until, err = untilFilter(filters); err != nil {
				return err
			}
			what := "all steps of builds that no image needs"
			if o.All {
				what = "all that builds remember"
			}
			if yes, err := confirm(env, force, what); err != nil || !yes {
				return err
			}
			r, err := e.Builder().Prune(ctx, o)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(env, r)
			}
			fmt.Fprintf(env.Stdout, "removed %d steps\nTotal reclaimed space: %s\n", r.Steps, humanSize(r.Freed))
			return nil
		}),
	}
	c.Flags().BoolVarP(&o.All, "all", "a", false, "also the steps whose layers images have: their next build runs again")
	c.Flags().StringVar(&keep, "keep-storage", "", "how much may stay, such as 5g")
	c.Flags().StringArrayVar(&filters, "filter", nil, "until=24h: only what was not used for so long")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

// untilFilter reads --filter until=DURATION.
func untilFilter(list []string) (time.Duration, error) {
	var until time.Duration
	for _, f := range list {
		value, ok := strings.CutPrefix(f, "until=")
		if !ok {
			return 0, usage("--filter %s: only until=DURATION is known", f)
		}
		before, err := parseTime("--filter until", value, time.Now())
		if err != nil {
			return 0, err
		}
		until = max(until, time.Since(before))
	}
	return until, nil
}

func builderUsage(env *Env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "du",
		Short: "Show what builds remember",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, _ []string) error {
			u, err := e.Builder().Usage()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(env, u)
			}
			var rows [][]string
			for _, s := range u.Steps {
				text, _, _ := strings.Cut(s.Text, "\n")
				if runes := []rune(text); len(runes) > 60 {
					text = string(runes[:57]) + "..."
				}
				rows = append(rows, []string{s.ID[:12], strconv.FormatBool(s.Reclaimable), humanSize(s.Size), ago(time.Since(s.Used)) + " ago", text})
			}
			if err := printTable(env.Stdout, []string{"ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED", "STEP"}, rows); err != nil {
				return err
			}
			fmt.Fprintf(env.Stdout, "Cache mounts:\t%s\nReclaimable:\t%s\nTotal:\t\t%s\n", humanSize(u.Mounts), humanSize(u.Reclaimable), humanSize(u.Total))
			return nil
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}
