package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"naru/sandbox"
	"naru/sandbox/runtime/seccomp"
)

// isolationFlags are the flags of run and create about limits, rights, namespaces
// and mounts.
type isolationFlags struct {
	labelFiles, tmpfs, mounts              []string
	capAdd, capDrop, securityOpts          []string
	devices, deviceRules, ulimits, sysctls []string
	shmSize, memorySwap, memoryReservation string
	annotations                            []string
	privileged, oomKillDisable             bool
	oomScoreAdj                            int
	platform                               string
	memorySwappiness                       int64
}

func (f *isolationFlags) define(flags *pflag.FlagSet, c *sandbox.ContainerConfig) {
	f.defineMounts(flags)
	f.defineLimits(flags, c)
	flags.StringArrayVar(&f.labelFiles, "label-file", nil, "file with lines KEY=value")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "annotation KEY=value of the OCI spec")
	flags.StringArrayVar(&f.capAdd, "cap-add", nil, "capability to add, or ALL")
	flags.StringArrayVar(&f.capDrop, "cap-drop", nil, "capability to drop, or ALL")
	flags.StringArrayVar(&f.securityOpts, "security-opt", nil, "no-new-privileges[=false], seccomp=FILE|builtin|unconfined, systempaths=unconfined")
	flags.StringArrayVar(&f.devices, "device", nil, "device of the host: HOST[:CONTAINER[:rwm]]")
	flags.StringArrayVar(&f.deviceRules, "device-cgroup-rule", nil, "devices that may be used: 'c 13:* rw'")
	flags.StringArrayVar(&f.sysctls, "sysctl", nil, "kernel parameter KEY=value of a namespace of the container's own")
	flags.BoolVar(&f.privileged, "privileged", false, "not supported: the error says what to use instead")
	flags.StringArrayVar(&c.GroupAdd, "group-add", nil, "one more group of the process, name or number")
	flags.StringVar(&c.Domainname, "domainname", "", "domain name inside")
	flags.StringVar(&c.Namespaces.IPC, "ipc", "", "private, host or container:NAME")
	flags.StringVar(&c.Namespaces.PID, "pid", "", "private, host or container:NAME")
	flags.StringVar(&c.Namespaces.UTS, "uts", "", "private, host or container:NAME")
	flags.StringVar(&c.Namespaces.Cgroup, "cgroupns", "", "private, host or container:NAME")
	flags.StringVar(&f.platform, "platform", "", "os/arch[/variant] of the image")
}

func (f *isolationFlags) defineMounts(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.tmpfs, "tmpfs", nil, "tmpfs at a path: TARGET[:size=64m,mode=1777,exec,…]")
	flags.StringArrayVar(&f.mounts, "mount", nil, "type=bind|volume|tmpfs,source=…,target=…[,readonly,…]")
	flags.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm, such as 256m")
}

func (f *isolationFlags) defineLimits(flags *pflag.FlagSet, c *sandbox.ContainerConfig) {
	r := &c.Resources
	flags.StringVar(&f.memorySwap, "memory-swap", "", "limit of memory and swap together; -1 for no limit")
	flags.StringVar(&f.memoryReservation, "memory-reservation", "", "memory that is reclaimed last")
	flags.Int64Var(&f.memorySwappiness, "memory-swappiness", -1, "not supported: cgroup v2 has none")
	flags.Uint64VarP(&r.CPUShares, "cpu-shares", "c", 0, "weight among containers; 1024 is the default")
	flags.Int64Var(&r.CPUQuota, "cpu-quota", 0, "microseconds of a processor per period")
	flags.Uint64Var(&r.CPUPeriod, "cpu-period", 0, "microseconds of a period")
	flags.StringVar(&r.CpusetCPUs, "cpuset-cpus", "", "processors it may use, such as 0-2,5")
	flags.StringVar(&r.CpusetMems, "cpuset-mems", "", "memory nodes it may use")
	flags.Uint16Var(&r.BlkioWeight, "blkio-weight", 0, "weight of block io, 10 to 1000")
	flags.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "-1000 to 1000: who is killed first when memory ends")
	flags.BoolVar(&f.oomKillDisable, "oom-kill-disable", false, "not supported: cgroup v2 has none")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "limit of the process: NAME=SOFT[:HARD]")
}

// complete turns the flags into the configuration.
func (f *isolationFlags) complete(flags *pflag.FlagSet, c *sandbox.ContainerConfig) error {
	switch {
	case f.privileged:
		return errors.New("--privileged is not supported: it would give the whole host away. Name what is needed: --cap-add, --device, " +
			"--security-opt seccomp=unconfined, --security-opt systempaths=unconfined, --userns host")
	case f.oomKillDisable:
		return errors.New("--oom-kill-disable is not supported: cgroup v2 has no such switch, and with v1 it stops the container for ever")
	case f.memorySwappiness >= 0:
		return errors.New("--memory-swappiness is not supported: cgroup v2 has no such switch")
	}
	if flags.Changed("oom-score-adj") {
		c.Resources.OOMScoreAdj = &f.oomScoreAdj
	}
	c.Security.CapAdd, c.Security.CapDrop = splitAll(f.capAdd), splitAll(f.capDrop)
	steps := []func(*sandbox.ContainerConfig) error{f.sizes, f.keyValues, f.mountFlags, f.deviceFlags, f.securityFlags}
	for _, step := range steps {
		if err := step(c); err != nil {
			return err
		}
	}
	return nil
}

// splitAll takes lists with commas apart: --cap-drop A,B is two.
func splitAll(list []string) []string {
	var all []string
	for _, s := range list {
		all = append(all, strings.FieldsFunc(s, func(r rune) bool { return r == ',' })...)
	}
	return all
}

func (f *isolationFlags) sizes(c *sandbox.ContainerConfig) (err error) {
	r := &c.Resources
	if r.ShmSize, err = parseSize(f.shmSize); err != nil {
		return fmt.Errorf("--shm-size: %w", err)
	}
	if r.MemoryReservation, err = parseSize(f.memoryReservation); err != nil {
		return fmt.Errorf("--memory-reservation: %w", err)
	}
	if f.memorySwap == "-1" {
		r.MemorySwap = -1
		return nil
	}
	if r.MemorySwap, err = parseSize(f.memorySwap); err != nil {
		return fmt.Errorf("--memory-swap: %w", err)
	}
	return nil
}

func (f *isolationFlags) keyValues(c *sandbox.ContainerConfig) error {
	fromFiles, err := readLines(f.labelFiles)
	if err != nil {
		return fmt.Errorf("--label-file: %w", err)
	}
	for key, value := range parseLabels(fromFiles) {
		if _, given := c.Labels[key]; !given {
			c.Labels[key] = value
		}
	}
	if len(f.annotations) > 0 {
		c.Annotations = parseLabels(f.annotations)
	}
	for _, s := range f.sysctls {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return fmt.Errorf("--sysctl %q: want KEY=value", s)
		}
		if c.Security.Sysctls == nil {
			c.Security.Sysctls = map[string]string{}
		}
		c.Security.Sysctls[key] = value
	}
	for _, s := range f.ulimits {
		l, err := sandbox.ParseUlimit(s)
		if err != nil {
			return fmt.Errorf("--ulimit: %w", err)
		}
		c.Resources.Ulimits = append(c.Resources.Ulimits, l)
	}
	return nil
}

// readLines reads the lines of files that are neither empty nor comments.
func readLines(files []string) ([]string, error) {
	var all []string
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			line = strings.TrimSpace(line)
			if line != "" && !strings.HasPrefix(line, "#") {
				all = append(all, line)
			}
		}
	}
	return all, nil
}

func (f *isolationFlags) deviceFlags(c *sandbox.ContainerConfig) error {
	for _, s := range f.devices {
		d, err := sandbox.ParseDevice(s)
		if err != nil {
			return fmt.Errorf("--device: %w", err)
		}
		c.Security.Devices = append(c.Security.Devices, d)
	}
	for _, s := range f.deviceRules {
		r, err := sandbox.ParseDeviceRule(s)
		if err != nil {
			return fmt.Errorf("--device-cgroup-rule: %w", err)
		}
		c.Security.DeviceRules = append(c.Security.DeviceRules, r)
	}
	return nil
}

func (f *isolationFlags) securityFlags(c *sandbox.ContainerConfig) error {
	for _, s := range f.securityOpts {
		key, value, isSet := strings.Cut(s, "=")
		if !isSet {
			key, value, isSet = strings.Cut(s, ":") // Docker's old form
		}
		switch {
		case key == "no-new-privileges" && (!isSet || value == "true"):
			c.Security.NewPrivileges = false
		case key == "no-new-privileges" && value == "false":
			c.Security.NewPrivileges = true
		case key == "seccomp" && value == "unconfined":
			c.Security.NoSeccomp = true
		case key == "seccomp" && value == "builtin": // Docker's word for the default
			c.Security.Seccomp, c.Security.NoSeccomp = nil, false
		case key == "seccomp" && value != "":
			data, err := os.ReadFile(value)
			if err != nil {
				return fmt.Errorf("--security-opt %s: %w", s, err)
			}
			if c.Security.Seccomp, err = seccomp.ParseProfile(data); err != nil {
				return fmt.Errorf("--security-opt %s: %w", s, err)
			}
		case key == "systempaths" && value == "unconfined":
			c.Security.ShowPaths = true
		case key == "label" || key == "apparmor":
			if value == "disable" || value == "unconfined" {
				continue // as it is: no label is ever set
			}
			return fmt.Errorf("--security-opt %s: labels of SELinux and AppArmor are not supported", s)
		default:
			return fmt.Errorf("--security-opt %q: want no-new-privileges[=false], seccomp=FILE|builtin|unconfined or systempaths=unconfined", s)
		}
	}
	return nil
}

func (f *isolationFlags) mountFlags(c *sandbox.ContainerConfig) error {
	for _, s := range f.tmpfs {
		target, options, _ := strings.Cut(s, ":")
		m := sandbox.Mount{Target: target, Tmpfs: true, Options: strings.FieldsFunc(options, func(r rune) bool { return r == ',' })}
		c.Mounts = append(c.Mounts, m)
	}
	for _, s := range f.mounts {
		m, err := parseMountFlag(s)
		if err != nil {
			return fmt.Errorf("--mount %q: %w", s, err)
		}
		c.Mounts = append(c.Mounts, m)
	}
	return nil
}

// parseMountFlag reads Docker's --mount: fields of CSV, key=value or a key alone.
func parseMountFlag(s string) (sandbox.Mount, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return sandbox.Mount{}, err
	}
	m, kind := sandbox.Mount{}, "volume"
	for _, field := range fields {
		key, value, isSet := strings.Cut(field, "=")
		if key == "type" {
			kind = value
			continue
		}
		if err := mountField(&m, strings.ToLower(key), value, isSet); err != nil {
			return m, err
		}
	}
	switch kind {
	case "bind":
		if m.Source == "" {
			return m, errors.New("a bind needs a source")
		}
		m.Source, err = filepath.Abs(m.Source)
		return m, err
	case "volume":
		m.Volume = true // without a source one that nobody named
		return m, nil
	case "tmpfs":
		m.Tmpfs = true
		return m, nil
	}
	return m, fmt.Errorf("type %q: want bind, volume or tmpfs", kind)
}

func mountField(m *sandbox.Mount, key, value string, isSet bool) error {
	on := !isSet
	if isSet {
		on, _ = strconv.ParseBool(value)
	}
	switch key {
	case "source", "src":
		m.Source = value
	case "target", "dst", "destination":
		m.Target = value
	case "readonly", "ro":
		m.ReadOnly = on
	case "volume-nocopy":
		m.NoCopy = on
	case "bind-nonrecursive":
		m.Flat = on
	case "bind-propagation":
		m.Propagation = value
	case "tmpfs-size":
		n, err := parseSize(value)
		if err != nil {
			return err
		}
		m.Options = append(m.Options, "size="+strconv.FormatInt(n, 10))
	case "tmpfs-mode":
		m.Options = append(m.Options, "mode="+value)
	default:
		return fmt.Errorf("unknown field %q", key)
	}
	return nil
}
