package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"naru/sandbox"
)

func renameCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "rename CONTAINER NAME",
		Short: "Give a container another name",
		Args:  cobra.ExactArgs(2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return e.Rename(ctx, args[0], args[1])
		}),
	}
}

// updateFlags are the limits that update can change.
type updateFlags struct {
	config                                sandbox.ContainerConfig
	memory, memorySwap, memoryReservation string
	restart                               string
}

func updateCommand(env *Env) *cobra.Command {
	f := updateFlags{}
	c := &cobra.Command{
		Use:   "update [flags] CONTAINER...",
		Short: "Change limits and restart policy of containers, running or not",
		Args:  cobra.MinimumNArgs(1),
	}
	flags, r := c.Flags(), &f.config.Resources
	flags.StringVarP(&f.memory, "memory", "m", "", "memory limit, such as 512m")
	flags.StringVar(&f.memorySwap, "memory-swap", "", "limit of memory and swap together; -1 for no limit")
	flags.StringVar(&f.memoryReservation, "memory-reservation", "", "memory that is reclaimed last")
	flags.Float64Var(&f.config.CPUs, "cpus", 0, "processors they may use, such as 1.5")
	flags.Int64Var(&f.config.Pids, "pids-limit", 0, "processes they may have; -1 for no limit")
	flags.Uint64VarP(&r.CPUShares, "cpu-shares", "c", 0, "weight among containers; 1024 is the default")
	flags.Int64Var(&r.CPUQuota, "cpu-quota", 0, "microseconds of a processor per period")
	flags.Uint64Var(&r.CPUPeriod, "cpu-period", 0, "microseconds of a period")
	flags.StringVar(&r.CpusetCPUs, "cpuset-cpus", "", "processors they may use, such as 0-2,5")
	flags.StringVar(&r.CpusetMems, "cpuset-mems", "", "memory nodes they may use")
	flags.Uint16Var(&r.BlkioWeight, "blkio-weight", 0, "weight of block io, 10 to 1000")
	flags.StringVar(&f.restart, "restart", "", "when they are started again: no, always, unless-stopped, on-failure[:count]")
	c.RunE = withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
		if err := f.complete(); err != nil {
			return err
		}
		return forEach(env, args, func(ref string) error {
			warning, err := e.Update(ctx, ref, func(config *sandbox.ContainerConfig) { f.apply(c, config) })
			if warning != "" {
				fmt.Fprintln(env.Stderr, "warning: "+warning)
			}
			return err
		})
	})
	return c
}

func (f *updateFlags) complete() error {
	sizes := isolationFlags{memorySwap: f.memorySwap, memoryReservation: f.memoryReservation}
	if err := sizes.sizes(&f.config); err != nil {
		return err
	}
	var err error
	if f.config.Restart, err = sandbox.ParseRestart(f.restart); err != nil {
		return usage("--restart: %w", err)
	}
	if f.config.Memory, err = parseSize(f.memory); err != nil {
		return fmt.Errorf("--memory: %w", err)
	}
	return nil
}

// apply changes what was given, and nothing else.
func (f *updateFlags) apply(c *cobra.Command, to *sandbox.ContainerConfig) {
	from := &f.config
	for flag, set := range map[string]func(){
		"memory": func() { to.Memory = from.Memory }, "memory-swap": func() { to.Resources.MemorySwap = from.Resources.MemorySwap },
		"memory-reservation": func() { to.Resources.MemoryReservation = from.Resources.MemoryReservation },
		"cpus":               func() { to.CPUs = from.CPUs }, "pids-limit": func() { to.Pids = from.Pids },
		"cpu-shares":   func() { to.Resources.CPUShares = from.Resources.CPUShares },
		"cpu-quota":    func() { to.Resources.CPUQuota = from.Resources.CPUQuota },
		"cpu-period":   func() { to.Resources.CPUPeriod = from.Resources.CPUPeriod },
		"cpuset-cpus":  func() { to.Resources.CpusetCPUs = from.Resources.CpusetCPUs },
		"cpuset-mems":  func() { to.Resources.CpusetMems = from.Resources.CpusetMems },
		"restart":      func() { to.Restart = from.Restart },
		"blkio-weight": func() { to.Resources.BlkioWeight = from.Resources.BlkioWeight },
	} {
		if c.Flags().Changed(flag) {
			set()
		}
	}
}

func topCommand(env *Env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "top CONTAINER",
		Short: "List the processes of a container",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			list, err := e.Top(ctx, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(env, list)
			}
			rows := [][]string{}
			for _, p := range list {
				rows = append(rows, []string{
					strconv.Itoa(p.UID), strconv.Itoa(p.Pid), strconv.Itoa(p.Inside), strconv.Itoa(p.Parent), p.State,
					p.Started.Local().Format("15:04"), clock(p.CPU), binarySize(uint64(p.Memory)), printable(p.Command),
				})
			}
			return printTable(env.Stdout, []string{"UID", "PID", "INSIDE", "PPID", "STATE", "STIME", "TIME", "RSS", "CMD"}, rows)
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

// printable takes out what would command the terminal: the text is a container's.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// clock writes hours, minutes and seconds as ps(1) does.
func clock(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}
