package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// createUnified makes the cgroup2 directory and turns the wanted controllers on
// in every directory above it.
func (g *Group) createUnified(r *specs.LinuxResources) error {
	if err := makeDir(g.UnifiedDir(), false); err != nil {
		return err
	}
	dir := g.host.Unified
	for _, name := range strings.Split(filepath.ToSlash(g.path), "/") {
		for _, c := range wantedUnified(r) {
			if !slices.Contains(g.host.Controllers, c) {
				continue
			}
			if err := write(dir, "cgroup.subtree_control", "+"+c); err != nil {
				return fmt.Errorf("turn on controller %s: %w", c, err)
			}
		}
		dir = filepath.Join(dir, name)
	}
	return nil
}

func wantedUnified(r *specs.LinuxResources) []string {
	wanted := []string{"memory", "pids", "cpu"}
	if r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != "") {
		wanted = append(wanted, "cpuset")
	}
	if r.BlockIO != nil {
		wanted = append(wanted, "io")
	}
	return wanted
}

// limit writes every limit of r; one that no hierarchy can hold is an error.
func (g *Group) limit(r *specs.LinuxResources) error {
	for _, step := range []func(*specs.LinuxResources) error{g.limitMemory, g.limitPids, g.limitCPU, g.limitIO, g.limitDevices} {
		if err := step(r); err != nil {
			return err
		}
	}
	for name, value := range r.Unified {
		if g.host.Unified == "" || !filepath.IsLocal(name) || strings.Contains(name, "/") {
			return fmt.Errorf("limit %s: not a file of cgroup v2 here", name)
		}
		if err := write(g.UnifiedDir(), name, value); err != nil {
			return err
		}
	}
	return nil
}

// dir is where a controller's files are; v2 says which names they have.
func (g *Group) dir(controller string) (dir string, v2 bool, err error) {
	if m := g.host.V1[controller]; m != "" {
		return filepath.Join(m, g.path), false, nil
	}
	if g.host.Has(controller) {
		return g.UnifiedDir(), true, nil
	}
	return "", false, fmt.Errorf("limit %s: the machine has no such cgroup controller", controller)
}

func (g *Group) limitMemory(r *specs.LinuxResources) error {
	m := r.Memory
	if m == nil || m.Limit == nil && m.Reservation == nil && m.Swap == nil {
		return nil
	}
	dir, v2, err := g.dir("memory")
	if err != nil {
		return err
	}
	if v2 {
		return g.limitMemoryV2(dir, m)
	}
	if m.Limit != nil {
		err = write(dir, "memory.limit_in_bytes", strconv.FormatInt(*m.Limit, 10))
	}
	if err == nil && m.Swap != nil {
		err = write(dir, "memory.memsw.limit_in_bytes", strconv.FormatInt(*m.Swap, 10))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil // a kernel without swap accounting has no swap limit to break
		}
	}
	if err == nil && m.Reservation != nil {
		err = write(dir, "memory.soft_limit_in_bytes", strconv.FormatInt(*m.Reservation, 10))
	}
	return err
}

func (g *Group) limitMemoryV2(dir string, m *specs.LinuxMemory) error {
	if m.Limit != nil {
		if err := write(dir, "memory.max", orMax(*m.Limit)); err != nil {
			return err
		}
	}
	if m.Swap != nil {
		// runtime-spec counts memory+swap, v2 swap alone.
		swap := *m.Swap
		if m.Limit != nil && swap >= *m.Limit && *m.Limit > 0 {
			swap -= *m.Limit
		}
		if err := write(dir, "memory.swap.max", orMax(swap)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if m.Reservation != nil {
		return write(dir, "memory.low", orMax(*m.Reservation))
	}
	return nil
}

func (g *Group) limitPids(r *specs.LinuxResources) error {
	if r.Pids == nil || r.Pids.Limit == nil {
		return nil
	}
	dir, _, err := g.dir("pids")
	if err != nil {
		return err
	}
	limit := *r.Pids.Limit
	if limit == 0 {
		limit = -1 // as Docker and runc read it
	}
	return write(dir, "pids.max", orMax(limit))
}

func (g *Group) limitCPU(r *specs.LinuxResources) error {
	c := r.CPU
	if c == nil {
		return nil
	}
	if c.Shares != nil || c.Quota != nil || c.Period != nil {
		dir, v2, err := g.dir("cpu")
		if err == nil && v2 {
			err = limitCPUV2(dir, c)
		} else if err == nil {
			err = limitCPUV1(dir, c)
		}
		if err != nil {
			return err
		}
	}
	for name, value := range map[string]string{"cpuset.cpus": c.Cpus, "cpuset.mems": c.Mems} {
		if value == "" {
			continue
		}
		dir, _, err := g.dir("cpuset")
		if err == nil {
			err = write(dir, name, value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func limitCPUV1(dir string, c *specs.LinuxCPU) error {
	if c.Period != nil {
		if err := write(dir, "cpu.cfs_period_us", strconv.FormatUint(*c.Period, 10)); err != nil {
			return err
		}
	}
	if c.Quota != nil {
		if err := write(dir, "cpu.cfs_quota_us", strconv.FormatInt(*c.Quota, 10)); err != nil {
			return err
		}
	}
	if c.Shares != nil {
		return write(dir, "cpu.shares", strconv.FormatUint(*c.Shares, 10))
	}
	return nil
}

func limitCPUV2(dir string, c *specs.LinuxCPU) error {
	if c.Quota != nil || c.Period != nil {
		quota, period := "max", uint64(100000)
		if c.Quota != nil {
			quota = orMax(*c.Quota)
		}
		if c.Period != nil {
			period = *c.Period
		}
		if err := write(dir, "cpu.max", quota+" "+strconv.FormatUint(period, 10)); err != nil {
			return err
		}
	}
	if c.Shares == nil || *c.Shares == 0 {
		return nil
	}
	// 2..262144 shares onto 1..10000, the conversion that runtime-spec names.
	weight := 1 + (max(*c.Shares, 2)-2)*9999/262142
	return write(dir, "cpu.weight", strconv.FormatUint(min(weight, 10000), 10))
}

func (g *Group) limitIO(r *specs.LinuxResources) error {
	if r.BlockIO == nil {
		return nil
	}
	dir, v2, err := g.dir("blkio")
	if err != nil {
		return err
	}
	b := r.BlockIO
	rates := []struct {
		v1, v2  string
		devices []specs.LinuxThrottleDevice
	}{
		{"blkio.throttle.read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	}
	for _, rate := range rates {
		for _, d := range rate.devices {
			file, text := rate.v1, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)
			if v2 {
				file, text = "io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, rate.v2, d.Rate)
			}
			if err := write(dir, file, text); err != nil {
				return err
			}
		}
	}
	if b.Weight == nil {
		return nil
	}
	if v2 {
		return write(dir, "io.weight", strconv.Itoa(int(*b.Weight)))
	}
	return write(dir, "blkio.bfq.weight", strconv.Itoa(int(*b.Weight)))
}

// orMax is v2's word for "no limit".
func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// write puts a value into a cgroup file; it never creates one.
func write(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(value); err != nil {
		f.Close()
		return fmt.Errorf("write %q: %w", value, err)
	}
	return f.Close()
}
