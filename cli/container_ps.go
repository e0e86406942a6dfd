package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
)

// psFlags are the flags of ps.
type psFlags struct {
	all, quiet, json, noTrunc bool
	filters                   []string
	format                    string
}

func psCommand(env *Env) *cobra.Command {
	f := psFlags{}
	c := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			return ps(ctx, env, e, f)
		}),
	}
	c.Flags().BoolVarP(&f.all, "all", "a", false, "also those that do not run")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "ids only")
	c.Flags().BoolVar(&f.json, "json", false, "as JSON")
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "whole ids and commands")
	c.Flags().StringArrayVarP(&f.filters, "filter", "f", nil, "label=KEY[=VALUE], name=PART or status=STATE")
	c.Flags().StringVar(&f.format, "format", "", "Go template for each line, or json")
	return c
}

func ps(ctx context.Context, env *Env, e *sandbox.Engine, f psFlags) error {
	keep, labels, err := parseFilters(f.filters)
	if err != nil {
		return err
	}
	// A filter on the state looks at all containers, as Docker's does.
	hasStatus := slices.ContainsFunc(f.filters, func(s string) bool { return strings.HasPrefix(s, "status=") })
	list, err := e.List(ctx, f.all || hasStatus, labels)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(c sandbox.Container) bool { return !keep(c) })
	switch {
	case f.json:
		return printJSON(env, list)
	case f.quiet:
		for _, c := range list {
			fmt.Fprintln(env.Stdout, cut(c.ID, f.noTrunc))
		}
		return nil
	case f.format != "":
		rows := make([]any, len(list))
		for i, c := range list {
			rows[i] = newPsRow(c, f.noTrunc)
		}
		return printFormat(env.Stdout, f.format, rows)
	}
	head := []string{"CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"}
	rows := [][]string{}
	for _, c := range list {
		r := newPsRow(c, f.noTrunc)
		rows = append(rows, []string{r.ID, r.Image, r.Command, r.RunningFor, r.Status, r.Ports, r.Names})
	}
	return printTable(env.Stdout, head, rows)
}

// psRow has the names that Docker's --format knows.
type psRow struct {
	ID, Image, Command, CreatedAt, RunningFor, State, Status, Ports, Names, Labels string
}

func newPsRow(c sandbox.Container, noTrunc bool) psRow {
	command := strings.Join(c.Command, " ")
	if !noTrunc && len(command) > 20 {
		command = command[:19] + "…"
	}
	labels := []string{}
	for key, value := range c.Labels {
		labels = append(labels, key+"="+value)
	}
	slices.Sort(labels)
	state := c.State
	if state == "stopped" {
		state = "exited"
	}
	image := c.Image
	if strings.HasPrefix(image, "sha256:") {
		image = cut(image, noTrunc)
	}
	return psRow{
		ID: cut(c.ID, noTrunc), Image: image, Command: strconv.Quote(command), CreatedAt: c.Created.Local().Format(time.DateTime),
		RunningFor: ago(time.Since(c.Created)) + " ago", State: state, Status: status(c), Names: c.Name, Labels: strings.Join(labels, ","),
	}
}

// status is Docker's sentence about a container's state.
func status(c sandbox.Container) string {
	switch c.State {
	case "running":
		return "Up " + ago(time.Since(c.Started))
	case "paused":
		return "Up " + ago(time.Since(c.Started)) + " (Paused)"
	case "created":
		return "Created"
	}
	code := strconv.Itoa(c.ExitCode)
	if !c.ExitKnown {
		code = "unknown"
	}
	return "Exited (" + code + ") " + ago(time.Since(c.Finished)) + " ago"
}

func cut(id string, whole bool) string {
	if whole {
		return id
	}
	return shortID(id)
}

// parseFilters splits --filter into labels, which the engine looks at, and the
// rest. Different keys must all hold; one key twice means either, as in Docker.
func parseFilters(filters []string) (keep func(sandbox.Container) bool, labels map[string]string, err error) {
	labels = map[string]string{}
	names, states := []string{}, []string{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		switch {
		case ok && key == "label":
			name, want, _ := strings.Cut(value, "=")
			labels[name] = want
		case ok && key == "name":
			names = append(names, value)
		case ok && key == "status":
			if value == "exited" {
				value = "stopped"
			}
			states = append(states, value)
		default:
			return nil, nil, usage("filter %q: want label=KEY[=VALUE], name=PART or status=STATE", f)
		}
	}
	keep = func(c sandbox.Container) bool {
		named := slices.ContainsFunc(names, func(part string) bool { return strings.Contains(c.Name, part) })
		return (len(names) == 0 || named) && (len(states) == 0 || slices.Contains(states, c.State))
	}
	return keep, labels, nil
}
