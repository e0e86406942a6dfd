package cli

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"naru/sandbox"
)

// containerCommand holds the commands about containers a second time, as Docker does.
func containerCommand(env *Env) *cobra.Command {
	list := psCommand(env)
	list.Use, list.Aliases = "ls", []string{"ps", "list"}
	return group("container", "Manage containers: the same commands as without this word, and prune",
		runCommand(env), createCommand(env), startCommand(env), stopCommand(env), killCommand(env), rmCommand(env), waitCommand(env),
		execCommand(env), logsCommand(env), list, inspectCommand(env), copyCommand(env), diffCommand(env), exportCommand(env),
		commitCommand(env), renameCommand(env), updateCommand(env), topCommand(env), statsCommand(env), containerPrune(env))
}

func systemCommand(env *Env) *cobra.Command {
	return group("system", "Manage the data directory", systemPrune(env), systemUsage(env), eventsCommand(env), systemReset(env))
}

// confirm asks the person at the terminal. Without one nobody can be asked: who
// wrote the script has decided.
func confirm(env *Env, force bool, what string) (bool, error) {
	if force || env.Stdin == nil || !term.IsTerminal(int(env.Stdin.Fd())) {
		return true, nil
	}
	fmt.Fprintf(env.Stderr, "WARNING! This will remove %s.\nAre you sure you want to continue? [y/N] ", what)
	answer, err := bufio.NewReader(env.Stdin).ReadString('\n')
	if err != nil {
		return false, nil // no answer is no
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

// pruneFilter reads --filter of prune: what does not fit stays.
func pruneFilter(list []string) (keep func(sandbox.Container) bool, err error) {
	var rest []string
	before := time.Time{}
	for _, f := range list {
		value, ok := strings.CutPrefix(f, "until=")
		if !ok {
			rest = append(rest, f)
			continue
		}
		if before, err = parseTime("--filter until", value, time.Now()); err != nil {
			return nil, err
		}
	}
	fits, err := parseFilters(rest)
	if err != nil {
		return nil, err
	}
	return func(c sandbox.Container) bool { return !fits(c) || !before.IsZero() && !c.Created.Before(before) }, nil
}

func containerPrune(env *Env) *cobra.Command {
	var filters []string
	force := false
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove all containers that do not run",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			keep, err := pruneFilter(filters)
			if err != nil {
				return err
			}
			if yes, err := confirm(env, force, "all containers that do not run"); err != nil || !yes {
				return err
			}
			removed, err := e.PruneContainers(ctx, keep)
			for _, id := range removed {
				fmt.Fprintln(env.Stdout, id)
			}
			return err
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().StringArrayVar(&filters, "filter", nil, "until=10m, label=KEY[=VALUE], or another of ps")
	return c
}

func systemPrune(env *Env) *cobra.Command {
	o, asJSON, force := sandbox.PruneOptions{}, false, false
	var filters []string
	c := &cobra.Command{
		Use:   "prune",
		Short: "Clean up after crashes, and remove what is not in use",
		Long: "Clean up after crashes, and remove containers that do not run, networks that nobody uses,\n" +
			"what builds have left, and images without a name.",
		Args: cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) (err error) {
			if o.Keep, err = pruneFilter(filters); err != nil {
				return err
			}
			what := "containers that do not run, networks that nobody uses, the build cache, and images without a name"
			if yes, err := confirm(env, force, what); err != nil || !yes {
				return err
			}
			o.Networks, o.BuildCache = true, true
			report, err := e.Prune(ctx, o)
			if asJSON {
				return errorsFirst(err, printJSON(env, report))
			}
			printPruned(env, report)
			return err
		}),
	}
	c.Flags().BoolVarP(&o.AllImages, "all", "a", false, "all images without a container, not only those without a name")
	c.Flags().BoolVar(&o.Volumes, "volumes", false, "volumes without a container too")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	c.Flags().StringArrayVar(&filters, "filter", nil, "of the containers: until=10m, label=KEY[=VALUE], or another of ps")
	return c
}

func printPruned(env *Env, report sandbox.PruneReport) {
	for _, id := range report.Containers {
		fmt.Fprintln(env.Stdout, "removed container", shortID(id))
	}
	for _, name := range report.Volumes {
		fmt.Fprintln(env.Stdout, "removed volume", name)
	}
	for _, name := range report.Networks {
		fmt.Fprintln(env.Stdout, "removed network", name)
	}
	if report.BuildCache > 0 {
		fmt.Fprintln(env.Stdout, "Reclaimed space of the build cache:", humanSize(report.BuildCache))
	}
	fmt.Fprintln(env.Stdout, "Total reclaimed space of images:", humanSize(report.Freed))
}

func systemUsage(env *Env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "df",
		Short: "Show what the data directory takes on disk",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			u, err := e.DiskUsage(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(env, u)
			}
			rows := [][]string{
				usageRow("Images", u.Images), usageRow("Containers", u.Containers), usageRow("Volumes", u.Volumes), usageRow("Build Cache", u.BuildCache),
			}
			return printTable(env.Stdout, []string{"TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"}, rows)
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func usageRow(name string, u sandbox.Usage) []string {
	free := humanSize(u.Reclaimable)
	if u.Size > 0 {
		free += fmt.Sprintf(" (%d%%)", 100*u.Reclaimable/u.Size)
	}
	return []string{name, strconv.Itoa(u.Total), strconv.Itoa(u.Active), humanSize(u.Size), free}
}

// errorsFirst returns the first error of two.
func errorsFirst(first, second error) error {
	if first != nil {
		return first
	}
	return second
}
