package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
)

func inspectCommand(env *Env) *cobra.Command {
	format := ""
	c := &cobra.Command{
		Use:   "inspect CONTAINER...",
		Short: "Show all that is known of containers, as a JSON array",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return inspectAll(env, args, format, func(ref string) (any, error) {
				c, err := e.Get(ctx, ref)
				if err != nil {
					return nil, err
				}
				return inspectContainer(e, c), nil
			})
		}),
	}
	c.Flags().StringVarP(&format, "format", "f", "", "Go template for each container")
	c.Flags().Bool("json", true, "as JSON, which it always is")
	return c
}

// inspectAll prints what get finds as a JSON array or by a template. What is
// missing is reported after what is there.
func inspectAll(env *Env, refs []string, format string, get func(ref string) (any, error)) error {
	found, errs := []any{}, []error{}
	for _, ref := range refs {
		v, err := get(ref)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, v)
	}
	if format != "" {
		return errors.Join(append(errs, printFormat(env.Stdout, format, found))...)
	}
	return errors.Join(append(errs, printJSON(env, found))...)
}

// printFormat writes each row by a Go template with Docker's functions json, join,
// lower, upper, split and truncate. As there, \t and \n mean what
// they mean in Go.
func printFormat(w io.Writer, format string, rows []any) error {
	t, err := parseFormat(format)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if err := t.Execute(w, row); err != nil {
			return usage("--format: %w", err)
		}
		fmt.Fprintln(w)
	}
	return nil
}

func parseFormat(format string) (*template.Template, error) {
	if format == "json" {
		format = "{{json .}}"
	}
	asJSON := func(v any) (string, error) {
		data, err := json.Marshal(v)
		return string(data), err
	}
	truncate := func(s string, n int) string { return s[:max(0, min(n, len(s)))] }
	functions := template.FuncMap{
		"json": asJSON, "join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper, "split": strings.Split, "truncate": truncate,
	}
	t, err := template.New("format").Funcs(functions).Parse(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format))
	if err != nil {
		return nil, usage("--format: %w", err)
	}
	return t, nil
}

// headings are those of columns, by field.
type headings map[string]string

// Label is the heading of a column with one label.
func (h headings) Label(key string) string { return key }

// printRows is printFormat for a list, where a format may begin with the word
// table: it has a line of headings then, which heads names by field.
func printRows(w io.Writer, format string, heads headings, rows []any) error {
	columns, isTable := strings.CutPrefix(format, "table ")
	if !isTable {
		return printFormat(w, format, rows)
	}
	table := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	if err := printFormat(table, columns, append([]any{heads}, rows...)); err != nil {
		return err
	}
	return table.Flush()
}

// The shapes below have Docker's names, so that scripts written for docker
// inspect find what they look for. What naru does not have is left out.
type inspected struct {
	Id, Created, Path string
	Args              []string
	State             inspectedState
	Image, Name       string
	HostConfig        inspectedHost
	Mounts            []inspectedMount
	Config            inspectedConfig
	NetworkSettings   inspectedNetwork
	RestartCount      int
	Warnings          []string
}

type inspectedState struct {
	Status                     string
	Running, Paused, OOMKilled bool
	Pid, ExitCode              int
	ExitKnown                  bool
	StartedAt, FinishedAt      string
	Restarting                 bool
	Error                      string
	Health                     *inspectedHealth `json:",omitempty"`
	OOMKills                   int
	LogLost                    int64
}

type inspectedMount struct {
	Type, Name, Source, Destination string
	RW                              bool
	Propagation                     string `json:",omitempty"`
}

type inspectedConfig struct {
	Hostname, Domainname, User, WorkingDir, Image, StopSignal string
	Env, Cmd, Entrypoint                                      []string
	Labels                                                    map[string]string
	StopTimeout                                               int
	Tty, OpenStdin                                            bool
	Healthcheck                                               *image.Healthcheck `json:",omitempty"`
}

func inspectContainer(e *sandbox.Engine, c sandbox.Container) inspected {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	state := inspectedState{
		Status: c.State, Running: c.State == "running" || c.State == "paused", Paused: c.State == "paused", OOMKilled: c.OOM,
		Pid: c.Pid, ExitCode: c.ExitCode, ExitKnown: c.ExitKnown, StartedAt: stamp(c.Started), FinishedAt: stamp(c.Finished),
	}
	state.Restarting, state.Error, state.Health = c.State == sandbox.StateRestarting, c.RestartError, inspectHealth(c.Health)
	state.OOMKills, state.LogLost = c.OOMKills, c.LogLost
	if state.Status == "stopped" {
		state.Status = "exited"
	}
	return inspected{
		Id: c.ID, Created: stamp(c.Created), Path: c.Command[0], Args: c.Command[1:], State: state, Image: c.ImageID, Name: "/" + c.Name,
		HostConfig: inspectHost(c.Config),
		Mounts:     inspectMounts(e, c.Config.Mounts),
		Config: inspectedConfig{
			Hostname: c.Config.Hostname, Domainname: c.Config.Domainname, User: c.Config.User, WorkingDir: c.Config.Workdir, Image: c.Image, StopSignal: c.Config.StopSignal,
			Env: c.Config.Env, Cmd: c.Config.Args, Entrypoint: c.Config.Entrypoint, Labels: c.Labels, StopTimeout: int(c.Config.StopGrace.Seconds()),
			Tty: c.Config.Terminal, OpenStdin: c.Config.Stdin, Healthcheck: c.Config.Health,
		},
		NetworkSettings: inspectNetwork(c),
		RestartCount:    c.Restarts,
		Warnings:        c.Warnings,
	}
}

func inspectMounts(e *sandbox.Engine, mounts []sandbox.Mount) []inspectedMount {
	list := []inspectedMount{}
	for _, m := range mounts {
		shown := inspectedMount{Type: "bind", Source: m.Source, Destination: m.Target, RW: !m.ReadOnly, Propagation: m.Propagation}
		if m.Tmpfs {
			shown.Type = "tmpfs"
		}
		if m.Volume {
			shown.Type, shown.Name = "volume", m.Source
			if v, err := e.Volumes().Get(m.Source); err == nil {
				shown.Source = v.Path
			}
		}
		list = append(list, shown)
	}
	return list
}
