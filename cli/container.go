package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
)

// Exit codes of run and exec beside the command's own, as Docker has them.
// 126 (cannot be executed) and 127 (not found) come from the runtime.
const exitEngine = 125

// containerCommands are the commands that work on the data directory without
// an agent: containers, images, networks, volumes, and doctor.
func containerCommands(env *Env) []*cobra.Command {
	return append(imageShortcuts(env),
		runCommand(env), createCommand(env), execCommand(env), psCommand(env), logsCommand(env), inspectCommand(env), portCommand(env),
		startCommand(env), stopCommand(env), killCommand(env), rmCommand(env), waitCommand(env),
		copyCommand(env), diffCommand(env), exportCommand(env), commitCommand(env), renameCommand(env), updateCommand(env),
		topCommand(env), statsCommand(env), eventsCommand(env), containerCommand(env),
		imageCommand(env), buildCommand(env), builderCommand(env), networkCommand(env), volumeCommand(env), systemCommand(env),
		attachCommand(env), restartCommand(env), pauseCommand(env), unpauseCommand(env), calledCommand(env),
		doctorCommand(env), ociCommand(env),
	)
}

// openEngine opens the container engine of the data directory.
func openEngine(env *Env) (*sandbox.Engine, error) {
	e, err := openWithoutRegistries(env)
	if err != nil {
		return nil, err
	}
	hosts, err := readRegistries(env)
	if err != nil {
		return nil, err
	}
	e.Images().UseRegistries(hosts)
	return e, nil
}

// openWithoutRegistries is for what monitors ask for, with nobody there to see an
// error: a mistake in registries.yaml must not keep a container from its restart.
func openWithoutRegistries(env *Env) (*sandbox.Engine, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	callback, err := callbackCommand(env)
	if err != nil {
		return nil, err
	}
	return sandbox.Open(sandbox.Options{Root: env.Root, Run: env.Run, Callback: callback})
}

// needRoot says at once what would else show as one permission that is missing.
func needRoot() error {
	if id := os.Geteuid(); id != 0 {
		return fmt.Errorf("this is user %d: containers and images need root", id)
	}
	return nil
}

// withEngine turns a function of an engine into a command's RunE.
func withEngine(env *Env, f func(ctx context.Context, e *sandbox.Engine, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		e, err := openEngine(env)
		if err != nil {
			return err
		}
		return f(c.Context(), e, args)
	}
}

// forEach does one thing to every argument and echoes it, as Docker does. An
// argument that fails does not keep the others from being done.
func forEach(env *Env, args []string, do func(arg string) error) error {
	var errs []error
	for _, arg := range args {
		if err := do(arg); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(env.Stdout, arg)
	}
	return errors.Join(errs...)
}

// usage is an error of the person who typed.
func usage(format string, args ...any) error {
	return &ExitError{Code: exitUsage, Err: fmt.Errorf(format, args...)}
}

// printTable writes rows in columns that are three blanks apart.
func printTable(w io.Writer, head []string, rows [][]string) error {
	table := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	return table.Flush()
}

// shortID is the part of an id that people read: 12 digits, no algorithm.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// ago says how long something is past, in one unit.
func ago(d time.Duration) string {
	switch {
	case d < time.Second:
		return "Less than a second"
	case d < time.Minute:
		return count(int(d.Seconds()), "second")
	case d < time.Hour:
		return count(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return count(int(d.Hours()), "hour")
	case d < 14*24*time.Hour:
		return count(int(d.Hours()/24), "day")
	case d < 60*24*time.Hour:
		return count(int(d.Hours()/24/7), "week")
	case d < 2*365*24*time.Hour:
		return count(int(d.Hours()/24/30), "month")
	}
	return count(int(d.Hours()/24/365), "year")
}

// humanSize writes bytes with three digits in powers of 1000, as Docker does.
func humanSize(n int64) string {
	size, units := float64(n), []string{"B", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for size >= 1000 && i < len(units)-1 {
		size /= 1000
		i++
	}
	return strconv.FormatFloat(size, 'g', 3, 64) + units[i]
}

// parseSize reads bytes with an optional unit, in powers of 1024: 512m, 1.5g.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	text := strings.ToLower(s)
	number := strings.TrimRight(text, "bkmgti")
	unit := strings.TrimSuffix(strings.TrimSuffix(text[len(number):], "b"), "i")
	shift, ok := map[string]uint{"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[unit]
	value, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || value < 0 || value > 1<<40 {
		return 0, usage("size %q: want a number with b, k, m, g or t", s)
	}
	return int64(value * float64(int64(1)<<shift)), nil
}

// parseLabels reads key=value; a key alone has the empty value.
func parseLabels(list []string) map[string]string {
	labels := map[string]string{}
	for _, kv := range list {
		key, value, _ := strings.Cut(kv, "=")
		labels[key] = value
	}
	return labels
}
