package cli

import (
	"cmp"
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
	all, quiet, json, noTrunc, latest, size bool
	last                                    int
	filters                                 []string
	format                                  string
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
	c.Flags().BoolVarP(&f.latest, "latest", "l", false, "the one that was created last, running or not")
	c.Flags().IntVarP(&f.last, "last", "n", -1, "that many that were created last, running or not")
	c.Flags().BoolVarP(&f.size, "size", "s", false, "what each has written")
	c.Flags().StringArrayVarP(&f.filters, "filter", "f", nil, "KEY=VALUE with "+strings.Join(filterKeys(), ", "))
	c.Flags().StringVar(&f.format, "format", "", "Go template for each line, table TEMPLATE, or json")
	return c
}

func ps(ctx context.Context, env *Env, e *sandbox.Engine, f psFlags) error {
	list, err := psList(ctx, e, f)
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(env, list)
	}
	if f.quiet {
		for _, c := range list {
			fmt.Fprintln(env.Stdout, cut(c.ID, f.noTrunc))
		}
		return nil
	}
	rows := []psRow{}
	for _, c := range list {
		row := newPsRow(c, f.noTrunc)
		if f.size || strings.Contains(f.format, ".Size") {
			if row.Size, err = sizeOf(e, c); err != nil {
				return err
			}
		}
		rows = append(rows, row)
	}
	return printPs(env, f, rows)
}

// psList is what ps shows, in its order.
func psList(ctx context.Context, e *sandbox.Engine, f psFlags) ([]sandbox.Container, error) {
	keep, err := parseFilters(f.filters)
	if err != nil {
		return nil, err
	}
	if f.latest {
		f.last = 1
	}
	// A filter on the state or the end looks at all containers, as Docker's does.
	every := f.all || f.last >= 0 || slices.ContainsFunc(f.filters, func(s string) bool {
		return strings.HasPrefix(s, "status=") || strings.HasPrefix(s, "exited=")
	})
	list, err := e.List(ctx, every, nil)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(c sandbox.Container) bool { return !keep(c) })
	if f.last >= 0 {
		list = list[:min(f.last, len(list))]
	}
	return list, nil
}

func printPs(env *Env, f psFlags, rows []psRow) error {
	heads := headings{
		"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED", "State": "STATE",
		"Status": "STATUS", "Ports": "PORTS", "Names": "NAMES", "Labels": "LABELS", "Size": "SIZE", "Networks": "NETWORKS", "Mounts": "MOUNTS",
	}
	if f.format != "" {
		list := make([]any, len(rows))
		for i := range rows {
			list[i] = rows[i]
		}
		return printRows(env.Stdout, f.format, heads, list)
	}
	head := []string{"CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"}
	if f.size {
		head = append(head, "SIZE")
	}
	table := [][]string{}
	for _, r := range rows {
		line := []string{r.ID, r.Image, r.Command, r.RunningFor, r.Status, r.Ports, r.Names}
		if f.size {
			line = append(line, r.Size)
		}
		table = append(table, line)
	}
	return printTable(env.Stdout, head, table)
}

// sizeOf is what a container has written and, with the image, what it shows.
func sizeOf(e *sandbox.Engine, c sandbox.Container) (string, error) {
	written, err := e.Written(c.ID)
	if err != nil {
		return "", err
	}
	whole := written
	if img, err := e.Images().Get(c.ImageID); err == nil {
		whole += img.Size
	}
	return humanSize(written) + " (virtual " + humanSize(whole) + ")", nil
}

// psRow has the names that Docker's --format knows.
type psRow struct {
	ID, Image, Command, CreatedAt, RunningFor, State, Status, Ports, Names, Labels, Size, Networks, Mounts string

	labels map[string]string
}

// Label is the value of one label, for templates.
func (r psRow) Label(key string) string { return r.labels[key] }

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
	mounts := []string{}
	for _, m := range c.Config.Mounts {
		mounts = append(mounts, cmp.Or(m.Source, m.Target))
	}
	return psRow{
		Networks: c.Config.Network, Mounts: strings.Join(mounts, ","), labels: c.Labels,
		ID: cut(c.ID, noTrunc), Image: image, Command: strconv.Quote(command), CreatedAt: c.Created.Local().Format(time.DateTime),
		RunningFor: ago(time.Since(c.Created)) + " ago", State: state, Status: status(c), Ports: portsColumn(c), Names: c.Name, Labels: strings.Join(labels, ","),
	}
}

// status is Docker's sentence about a container's state.
func status(c sandbox.Container) string {
	switch c.State {
	case "running":
		return "Up " + ago(time.Since(c.Started)) + healthText(c)
	case sandbox.StateRestarting:
		return "Restarting (" + strconv.Itoa(c.ExitCode) + ") " + ago(time.Since(c.Finished)) + " ago"
	case "paused":
		return "Up " + ago(time.Since(c.Started)) + " (Paused)"
	case "created":
		return "Created"
	case "dead":
		return "Dead"
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
