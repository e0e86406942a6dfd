package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"naru/sandbox"
	"naru/sandbox/runtime/cgroup"
)

// statsFlags are the flags of stats.
type statsFlags struct {
	noStream, json, noTrunc bool
	format                  string
}

func statsCommand(env *Env) *cobra.Command {
	f := statsFlags{}
	c := &cobra.Command{
		Use:   "stats [CONTAINER...]",
		Short: "Show what running containers use, again every second",
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			err := showStats(ctx, env, e, args, f)
			if ctx.Err() != nil {
				return nil // the person has seen enough
			}
			return err
		}),
	}
	c.Flags().BoolVar(&f.noStream, "no-stream", false, "once")
	c.Flags().BoolVar(&f.json, "json", false, "as JSON: the counters themselves; without --no-stream one array in a line")
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "whole ids")
	c.Flags().StringVar(&f.format, "format", "", "Go template for each container, or json")
	return c
}

// statsPause lies between two readings, from which the load is computed.
const statsPause = time.Second

func showStats(ctx context.Context, env *Env, e *sandbox.Engine, refs []string, f statsFlags) error {
	before, err := readStats(ctx, e, refs)
	if err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statsPause):
		}
		now, err := readStats(ctx, e, refs)
		if err != nil {
			return err
		}
		if err := printStats(env, before, now, f); err != nil || f.noStream {
			return err
		}
		before = now
	}
}

// readStats reads all running containers, or those that are named. One that
// ends meanwhile is left out, one that never ran is an error.
func readStats(ctx context.Context, e *sandbox.Engine, refs []string) ([]sandbox.Stats, error) {
	named := len(refs) > 0
	if !named {
		list, err := e.List(ctx, false, nil)
		if err != nil {
			return nil, err
		}
		for _, c := range list {
			refs = append(refs, c.ID)
		}
	}
	all := []sandbox.Stats{}
	for _, ref := range refs {
		s, err := e.Stats(ctx, ref)
		if !named && (errors.Is(err, sandbox.ErrNotFound) || errors.Is(err, sandbox.ErrNotRunning)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// statsRow has the names that Docker's --format knows, and Pressure: the share of the
// last ten seconds in which something waited for processors, memory and io.
type statsRow struct {
	Container, ID, Name, CPUPerc, MemUsage, MemPerc, NetIO, BlockIO, PIDs, Pressure string
}

func printStats(env *Env, before, now []sandbox.Stats, f statsFlags) error {
	if f.json {
		return printJSON(env, now)
	}
	rows := []statsRow{}
	for _, s := range now {
		i := slices.IndexFunc(before, func(b sandbox.Stats) bool { return b.ID == s.ID })
		old := s
		if i >= 0 {
			old = before[i]
		}
		rows = append(rows, newStatsRow(old, s, f.noTrunc))
	}
	if f.format != "" {
		list := make([]any, len(rows))
		for i := range rows {
			list[i] = rows[i]
		}
		return printFormat(env.Stdout, f.format, list)
	}
	table := [][]string{}
	for _, r := range rows {
		table = append(table, []string{r.ID, r.Name, r.CPUPerc, r.MemUsage, r.MemPerc, r.NetIO, r.BlockIO, r.PIDs, r.Pressure})
	}
	clearScreen(env.Stdout, f)
	head := []string{"CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS", "PRESSURE CPU/MEM/IO"}
	return printTable(env.Stdout, head, table)
}

// clearScreen makes the next table stand where the last one was.
func clearScreen(w io.Writer, f statsFlags) {
	if out, ok := w.(*os.File); ok && !f.noStream && term.IsTerminal(int(out.Fd())) {
		fmt.Fprint(w, "\x1b[H\x1b[2J")
	}
}

func newStatsRow(before, now sandbox.Stats, noTrunc bool) statsRow {
	percent := func(part, whole float64) string {
		if whole <= 0 {
			return "0.00%"
		}
		return strconv.FormatFloat(100*part/whole, 'f', 2, 64) + "%"
	}
	limit := min(now.Memory.Limit, machineMemory())
	r := statsRow{
		Container: now.Name, ID: cut(now.ID, noTrunc), Name: now.Name,
		CPUPerc:  percent(float64(now.CPU.Usage-before.CPU.Usage), float64(now.Read.Sub(before.Read))),
		MemUsage: binarySize(now.Memory.Usage) + " / " + binarySize(limit),
		MemPerc:  percent(float64(now.Memory.Usage), float64(limit)),
		PIDs:     strconv.FormatUint(now.Pids.Current, 10),
	}
	var in, out, read, write uint64
	for _, n := range now.Network {
		in, out = in+n.RxBytes, out+n.TxBytes
	}
	for _, d := range now.IO.Devices {
		read, write = read+d.ReadBytes, write+d.WriteBytes
	}
	r.NetIO = humanSize(int64(in)) + " / " + humanSize(int64(out))
	r.BlockIO = humanSize(int64(read)) + " / " + humanSize(int64(write))
	r.Pressure = stalled(now.CPU.Pressure) + "/" + stalled(now.Memory.Pressure) + "/" + stalled(now.IO.Pressure)
	return r
}

// stalled is "-" where the kernel does not count pressure.
func stalled(p *cgroup.Pressure) string {
	if p == nil {
		return "-"
	}
	return strconv.FormatFloat(p.Some.Avg10, 'f', 1, 64)
}

// machineMemory bounds what a container without a limit may use.
func machineMemory() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return math.MaxUint64
	}
	return info.Totalram * uint64(info.Unit)
}

// binarySize writes bytes in powers of 1024, as Docker does for memory.
func binarySize(n uint64) string {
	size, units, i := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB"}, 0
	for size >= 1024 && i < len(units)-1 {
		size /= 1024
		i++
	}
	return strconv.FormatFloat(size, 'g', 4, 64) + units[i]
}
