package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/volume"
)

func volumeCommand(env *Env) *cobra.Command {
	return group("volume", "Manage volumes", volumeCreate(env), volumeList(env), volumeInspect(env), volumeRemove(env),
		volumePrune(env), volumeExport(env), volumeImport(env))
}

func volumeCreate(env *Env) *cobra.Command {
	var labels []string
	driver := ""
	c := &cobra.Command{
		Use:   "create [VOLUME]",
		Short: "Create a volume; without a name it gets one",
		Args:  cobra.MaximumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			if driver != "local" {
				return usage("--driver %q: only local volumes exist", driver)
			}
			marks := parseLabels(labels)
			name := ""
			if len(args) == 1 {
				name = args[0]
			} else {
				name, marks[volume.AnonymousLabel] = sandbox.NewVolumeName(), ""
			}
			v, err := e.Volumes().Create(name, marks, nil)
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, v.Name)
			return nil
		}),
	}
	c.Flags().StringArrayVarP(&labels, "label", "l", nil, "label KEY=value")
	c.Flags().StringVarP(&driver, "driver", "d", "local", "accepted for Docker's sake: local")
	return c
}

func volumeList(env *Env) *cobra.Command {
	f, format := listFlags{}, ""
	var filters []string
	c := f.define(&cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List volumes",
		Args:    cobra.NoArgs,
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, _ []string) error {
			list, err := e.Volumes().List()
			if err != nil {
				return err
			}
			keep, err := volumeFilter(e, filters)
			if err != nil {
				return err
			}
			return printVolumes(env, slices.DeleteFunc(list, func(v volume.Volume) bool { return !keep(v) }), f, format)
		}),
	})
	c.Flags().StringVar(&format, "format", "", "Go template for each line, or json")
	c.Flags().StringArrayVarP(&filters, "filter", "f", nil, "label=KEY[=VALUE], name=PART or dangling=true|false")
	return c
}

// volumeFilter reads --filter; all must hold.
func volumeFilter(e *sandbox.Engine, filters []string) (func(volume.Volume) bool, error) {
	used, err := e.UsedVolumes()
	if err != nil {
		return nil, err
	}
	var all []func(volume.Volume) bool
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		switch {
		case key == "label":
			name, want, exact := strings.Cut(value, "=")
			all = append(all, func(v volume.Volume) bool {
				got, ok := v.Labels[name]
				return ok && (!exact || got == want)
			})
		case key == "name":
			all = append(all, func(v volume.Volume) bool { return strings.Contains(v.Name, value) })
		case key == "dangling" && (value == "true" || value == "false"):
			all = append(all, func(v volume.Volume) bool { return (used[v.Name] == "") == (value == "true") })
		default:
			return nil, usage("filter %q: want label=KEY[=VALUE], name=PART or dangling=true|false", f)
		}
	}
	return func(v volume.Volume) bool {
		return !slices.ContainsFunc(all, func(ok func(volume.Volume) bool) bool { return !ok(v) })
	}, nil
}

func printVolumes(env *Env, list []volume.Volume, f listFlags, format string) error {
	if f.json {
		return printJSON(env, list)
	}
	rows, values := [][]string{}, []any{}
	for _, v := range list {
		if f.quiet {
			fmt.Fprintln(env.Stdout, v.Name)
		}
		rows = append(rows, []string{v.Name, ago(time.Since(v.Created)) + " ago", v.Path})
		values = append(values, v)
	}
	switch {
	case f.quiet:
		return nil
	case format != "":
		return printFormat(env.Stdout, format, values)
	}
	return printTable(env.Stdout, []string{"VOLUME NAME", "CREATED", "PATH"}, rows)
}

// inspectedVolume is a volume as inspect shows it.
type inspectedVolume struct {
	volume.Volume
	Driver, Scope string
	UsageData     volume.Usage
	UsedBy        string `json:",omitempty"` // a container
}

func volumeInspect(env *Env) *cobra.Command {
	format := ""
	c := &cobra.Command{
		Use:   "inspect VOLUME...",
		Short: "Show volumes with their size, as a JSON array",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			used, err := e.UsedVolumes()
			if err != nil {
				return err
			}
			return inspectAll(env, args, format, func(name string) (any, error) {
				v, err := e.Volumes().Get(name)
				if err != nil {
					return nil, err
				}
				u, err := e.Volumes().Usage(name)
				return inspectedVolume{v, "local", "local", u, used[name]}, err
			})
		}),
	}
	c.Flags().StringVarP(&format, "format", "f", "", "Go template for each volume")
	c.Flags().Bool("json", true, "as JSON, which it always is")
	return c
}

func volumeRemove(env *Env) *cobra.Command {
	force := false
	c := &cobra.Command{
		Use:     "rm VOLUME...",
		Aliases: []string{"remove"},
		Short:   "Remove volumes with their data",
		Args:    cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			return forEach(env, args, func(name string) error {
				err := e.RemoveVolume(name)
				if force && errors.Is(err, volume.ErrNotFound) {
					return nil
				}
				return err
			})
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "a volume that does not exist is no error")
	return c
}

func volumePrune(env *Env) *cobra.Command {
	all, asJSON := false, false
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove volumes that no container, running or not, mounts and that nobody named",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			names, err := e.PruneAnonymous(ctx, all)
			if asJSON {
				return errorsFirst(err, printJSON(env, names))
			}
			if len(names) > 0 {
				fmt.Fprintln(env.Stdout, "Deleted Volumes:\n"+strings.Join(names, "\n"))
			}
			return err
		}),
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "those with a name too")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.Flags().BoolP("force", "f", true, "accepted for Docker's sake: there is no question to skip")
	return c
}

func volumeExport(env *Env) *cobra.Command {
	output := ""
	c := &cobra.Command{
		Use:   "export VOLUME",
		Short: "Write a volume's content as a tar: owners, attributes, links and all",
		Long: "Write a volume's content as a tar, to standard output or a file. A container that writes\n" +
			"into the volume meanwhile gives a tar of no one moment: stop it first.",
		Args: cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) (err error) {
			to := env.Stdout
			if output != "" {
				f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
				if err != nil {
					return err
				}
				err = errors.Join(e.Volumes().Export(ctx, args[0], f), f.Sync(), f.Close())
				if err != nil {
					err = errors.Join(err, os.Remove(output)) // half a backup is none
				}
				return err
			}
			if isTerminal(to) {
				return usage("a tar is nothing for a terminal: name a file with --output, or redirect")
			}
			return e.Volumes().Export(ctx, args[0], to)
		}),
	}
	c.Flags().StringVarP(&output, "output", "o", "", "file to write; it is created with mode 600")
	return c
}

func volumeImport(env *Env) *cobra.Command {
	replace := false
	c := &cobra.Command{
		Use:   "import VOLUME [FILE|-]",
		Short: "Create a volume from a tar, plain or compressed, or give one its content",
		Args:  cobra.RangeArgs(1, 2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			from := os.Stdin
			if len(args) == 2 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return err
				}
				defer f.Close() // read only: nothing can be lost
				from = f
			}
			err := e.ImportVolume(ctx, args[0], from, replace)
			if errors.Is(err, volume.ErrExists) {
				return fmt.Errorf("%w: --replace gives it the content of the tar", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, args[0])
			return nil
		}),
	}
	c.Flags().BoolVar(&replace, "replace", false, "the volume may exist: its content is replaced")
	return c
}
