package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"naru/sandbox/oci"
)

func (o *ociEnv) psCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "ps CONTAINER [ps options]", Short: "List the processes of a container", Args: cobra.MinimumNArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			pids, err := r.Processes(args[0])
			if err != nil {
				return err
			}
			if format == "json" {
				return json.NewEncoder(o.Stdout).Encode(pids)
			}
			if format != "table" {
				return usage("--format %q: table or json", format)
			}
			options := args[1:]
			if len(options) == 0 {
				options = []string{"-ef"}
			}
			out, err := exec.CommandContext(c.Context(), "ps", options...).Output()
			if err != nil {
				return fmt.Errorf("ps %s: %w", strings.Join(options, " "), err)
			}
			return o.processTable(out, pids)
		}),
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	return c
}

// processTable prints the head of ps(1) and the lines of the given processes.
func (o *ociEnv) processTable(out []byte, pids []int) error {
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Scan()
	column := slices.Index(strings.Fields(lines.Text()), "PID")
	if column < 0 {
		return fmt.Errorf("ps: its output has no column PID")
	}
	fmt.Fprintln(o.Stdout, lines.Text())
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) <= column {
			continue
		}
		if pid, err := strconv.Atoi(f[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprintln(o.Stdout, lines.Text())
		}
	}
	return lines.Err()
}

func (o *ociEnv) eventsCommand() *cobra.Command {
	var once bool
	var interval time.Duration
	c := &cobra.Command{
		Use: "events CONTAINER", Short: "Print what a container uses, and when it runs out of memory, as JSON lines", Args: cobra.ExactArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			every := interval
			if interval <= 0 {
				return usage("--interval %s: not positive", interval)
			}
			if once {
				every = 0
			}
			e := json.NewEncoder(o.Stdout)
			return r.Events(c.Context(), args[0], every, func(ev oci.Event) error { return e.Encode(ev) })
		}),
	}
	c.Flags().BoolVar(&once, "stats", false, "print the counters once")
	c.Flags().DurationVar(&interval, "interval", 5*time.Second, "time between two readings")
	return c
}

func (o *ociEnv) featuresCommand() *cobra.Command {
	return &cobra.Command{
		Use: "features", Short: "Print what this runtime knows, as JSON", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return o.json(oci.Features()) },
	}
}

func (o *ociEnv) specCommand() *cobra.Command {
	var bundle string
	c := &cobra.Command{
		Use: "spec", Short: "Write a config.json that runs a shell", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			path := filepath.Join(bundle, "config.json")
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			e := json.NewEncoder(f)
			e.SetIndent("", "\t")
			if err := e.Encode(oci.DefaultConfig()); err != nil {
				f.Close()
				return err
			}
			return f.Close()
		},
	}
	c.Flags().StringVarP(&bundle, "bundle", "b", ".", "directory of the bundle")
	return c
}

// ociLimits are the flags of update. Zero changes nothing; -1 is no limit.
type ociLimits struct {
	file                       string
	memory, reservation, swap  string
	cpus, mems                 string
	period, shares, rtPeriod   uint64
	burst                      uint64
	quota, rtRuntime, pids     int64
	idle                       int64
	weight                     uint16
	kernelMemory, kernelTCPMem string
}

func (o *ociEnv) updateCommand() *cobra.Command {
	l := &ociLimits{}
	c := &cobra.Command{
		Use: "update CONTAINER", Short: "Change the limits of a container", Args: cobra.ExactArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			res, err := l.resources(c, o.Stdin)
			if err != nil {
				return err
			}
			return r.Update(args[0], res)
		}),
	}
	f := c.Flags()
	f.StringVarP(&l.file, "resources", "r", "", "file with linux.resources as JSON; - is standard input")
	f.StringVar(&l.memory, "memory", "", "memory limit (512m); -1 is none")
	f.StringVar(&l.reservation, "memory-reservation", "", "memory soft limit")
	f.StringVar(&l.swap, "memory-swap", "", "limit of memory and swap together")
	f.StringVar(&l.kernelMemory, "kernel-memory", "", "ignored: kernels have no such limit any more")
	f.StringVar(&l.kernelTCPMem, "kernel-memory-tcp", "", "kernel memory of TCP buffers")
	f.StringVar(&l.cpus, "cpuset-cpus", "", "processors (0-2,7)")
	f.StringVar(&l.mems, "cpuset-mems", "", "memory nodes")
	f.Uint64Var(&l.period, "cpu-period", 0, "period of the quota, µs")
	f.Int64Var(&l.quota, "cpu-quota", 0, "processor time in a period, µs")
	f.Uint64Var(&l.burst, "cpu-burst", 0, "what may be saved up beyond the quota, µs")
	f.Uint64Var(&l.shares, "cpu-share", 0, "weight among others (1024)")
	f.Uint64Var(&l.rtPeriod, "cpu-rt-period", 0, "period for real time, µs")
	f.Int64Var(&l.rtRuntime, "cpu-rt-runtime", 0, "real time in a period, µs")
	f.Int64Var(&l.idle, "cpu-idle", 0, "1: run only when nothing else does")
	f.Int64Var(&l.pids, "pids-limit", 0, "number of processes")
	f.Uint16Var(&l.weight, "blkio-weight", 0, "weight of block io, 10 to 1000")
	return c
}

// resources are what the file says, or what the flags that were given say.
func (l *ociLimits) resources(c *cobra.Command, stdin io.Reader) (*specs.LinuxResources, error) {
	res := &specs.LinuxResources{}
	if l.file != "" {
		in := stdin
		if l.file != "-" {
			f, err := os.Open(l.file)
			if err != nil {
				return nil, fmt.Errorf("--resources: %w", err)
			}
			defer f.Close()
			in = f
		}
		if err := json.NewDecoder(in).Decode(res); err != nil {
			return nil, fmt.Errorf("--resources %s: %w", l.file, err)
		}
		return res, nil
	}
	if err := l.memoryLimits(c, res); err != nil {
		return nil, err
	}
	given := func(flag string) bool { return c.Flags().Changed(flag) }
	cpu := &specs.LinuxCPU{Cpus: l.cpus, Mems: l.mems}
	for flag, to := range map[string]**uint64{"cpu-period": &cpu.Period, "cpu-share": &cpu.Shares, "cpu-rt-period": &cpu.RealtimePeriod, "cpu-burst": &cpu.Burst} {
		from := map[string]*uint64{"cpu-period": &l.period, "cpu-share": &l.shares, "cpu-rt-period": &l.rtPeriod, "cpu-burst": &l.burst}[flag]
		if given(flag) {
			*to = from
		}
	}
	for flag, to := range map[string]**int64{"cpu-quota": &cpu.Quota, "cpu-rt-runtime": &cpu.RealtimeRuntime, "cpu-idle": &cpu.Idle} {
		from := map[string]*int64{"cpu-quota": &l.quota, "cpu-rt-runtime": &l.rtRuntime, "cpu-idle": &l.idle}[flag]
		if given(flag) {
			*to = from
		}
	}
	res.CPU = cpu
	if given("pids-limit") {
		res.Pids = &specs.LinuxPids{Limit: &l.pids}
	}
	if given("blkio-weight") {
		res.BlockIO = &specs.LinuxBlockIO{Weight: &l.weight}
	}
	return res, nil
}

func (l *ociLimits) memoryLimits(c *cobra.Command, res *specs.LinuxResources) error {
	m := &specs.LinuxMemory{}
	for flag, value := range map[string]struct {
		text string
		to   **int64
	}{"memory": {l.memory, &m.Limit}, "memory-reservation": {l.reservation, &m.Reservation}, "memory-swap": {l.swap, &m.Swap}, "kernel-memory-tcp": {l.kernelTCPMem, &m.KernelTCP}} {
		if !c.Flags().Changed(flag) {
			continue
		}
		n := int64(-1)
		if value.text != "-1" {
			size, err := parseSize(value.text)
			if err != nil {
				return usage("--%s %q: %w", flag, value.text, err)
			}
			n = size
		}
		*value.to, res.Memory = &n, m
	}
	return nil
}
