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
			if err := pruneFilters(filters, &o); err != nil {
				return err
			}
			what := "all steps of builds that no image needs, and all cache mounts"
			switch {
			case o.Type != "" || len(o.IDs) > 0:
				what = "of what builds remember that which fits " + strings.Join(filters, ", ")
			case o.All:
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
			fmt.Fprintf(env.Stdout, "removed %d steps and %d cache mounts\nTotal reclaimed space: %s\n", r.Steps, r.Mounts, humanSize(r.Freed))
			return nil
		}),
	}
	c.Flags().BoolVarP(&o.All, "all", "a", false, "also the steps whose layers images have: their next build runs again")
	c.Flags().StringVar(&keep, "keep-storage", "", "how much may stay, such as 5g")
	c.Flags().StringArrayVar(&filters, "filter", nil, "until=24h: only what was not used for so long; type=regular or exec.cachemount; id=ID")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

// pruneFilters reads --filter; of several ids, any may fit.
func pruneFilters(list []string, o *build.PruneOptions) error {
	for _, f := range list {
		key, value, ok := strings.Cut(f, "=")
		switch {
		case ok && (key == "until" || key == "unused-for"):
			before, err := parseTime("--filter "+key, value, time.Now())
			if err != nil {
				return err
			}
			o.Until = max(o.Until, time.Since(before))
		case key == "type" && (value == build.TypeStep || value == build.TypeCacheMount):
			if o.Type != "" && o.Type != value {
				return usage("--filter %s: nothing is of two types", f)
			}
			o.Type = value
		case key == "type" && ok:
			return usage("--filter %s: builds remember %s and %s", f, build.TypeStep, build.TypeCacheMount)
		case key == "id" && value != "":
			o.IDs = append(o.IDs, value)
		default:
			return usage("--filter %s: until=DURATION, type=TYPE and id=ID are known", f)
		}
	}
	return nil
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
			if err := printTable(env.Stdout, []string{"ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED", "STEP"}, stepRows(u.Steps)); err != nil {
				return err
			}
			if len(u.CacheMounts) > 0 {
				fmt.Fprintln(env.Stdout)
				if err := printTable(env.Stdout, []string{"CACHE MOUNT", "OWNER", "IN USE", "SIZE", "LAST ACCESSED"}, mountRows(u.CacheMounts)); err != nil {
					return err
				}
			}
			fmt.Fprintln(env.Stdout)
			fmt.Fprintf(env.Stdout, "Cache mounts:\t%s\nReclaimable:\t%s\nTotal:\t\t%s\n", humanSize(u.Mounts), humanSize(u.Reclaimable), humanSize(u.Total))
			return nil
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func stepRows(steps []build.CacheEntry) (rows [][]string) {
	for _, s := range steps {
		text, _, _ := strings.Cut(s.Text, "\n")
		if runes := []rune(text); len(runes) > 60 {
			text = string(runes[:57]) + "..."
		}
		rows = append(rows, []string{s.ID[:12], strconv.FormatBool(s.Reclaimable), humanSize(s.Size), ago(time.Since(s.Used)) + " ago", text})
	}
	return rows
}

func mountRows(mounts []build.CacheMount) (rows [][]string) {
	for _, m := range mounts {
		rows = append(rows, []string{printable(m.ID), printable(m.Owner), strconv.FormatBool(m.InUse), humanSize(m.Bytes), ago(time.Since(m.Used)) + " ago"})
	}
	return rows
}
