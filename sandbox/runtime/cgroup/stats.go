package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Stats is one reading of a group. Counters only grow while the group lives. What the
// machine does not count is zero, or nil where it is a pointer, a slice or a map.
type Stats struct {
	Read    time.Time               `json:"read"`
	CPU     CPUStats                `json:"cpu"`
	Memory  MemoryStats             `json:"memory"`
	IO      IOStats                 `json:"io"`
	Pids    PidsStats               `json:"pids"`
	Hugetlb map[string]HugetlbStats `json:"hugetlb,omitempty"` // by page size ("2MB")
}

// CPUStats are times that the group has run.
type CPUStats struct {
	Usage            time.Duration   `json:"usage"`
	User             time.Duration   `json:"user"`
	System           time.Duration   `json:"system"`
	PerCPU           []time.Duration `json:"perCPU,omitempty"` // v1 alone counts them
	Periods          uint64          `json:"periods"`          // of cpu.quota in which the group ran
	ThrottledPeriods uint64          `json:"throttledPeriods"` // in which it met the quota
	ThrottledTime    time.Duration   `json:"throttledTime"`
	Pressure         *Pressure       `json:"pressure,omitempty"`
}

// MemoryStats are bytes, but for the two counts.
type MemoryStats struct {
	Usage     uint64            `json:"usage"`     // Total without inactive file pages, as Docker shows it
	Total     uint64            `json:"total"`     // as the kernel counts
	Max       uint64            `json:"max"`       // the highest Total; on v2 since Linux 5.19
	Limit     uint64            `json:"limit"`     // math.MaxUint64 is none
	Swap      uint64            `json:"swap"`      // swap alone
	FailCount uint64            `json:"failCount"` // how often a limit was met
	OOMKills  uint64            `json:"oomKills"`
	Detail    map[string]uint64 `json:"detail,omitempty"` // memory.stat as it is
	Pressure  *Pressure         `json:"pressure,omitempty"`
}

// IOStats are by block device.
type IOStats struct {
	Devices  []DeviceIO `json:"devices,omitempty"`
	Pressure *Pressure  `json:"pressure,omitempty"`
}

// DeviceIO is what the group has read from and written to a block device.
type DeviceIO struct {
	Major      uint32 `json:"major"`
	Minor      uint32 `json:"minor"`
	ReadBytes  uint64 `json:"readBytes"`
	WriteBytes uint64 `json:"writeBytes"`
	Reads      uint64 `json:"reads"`
	Writes     uint64 `json:"writes"`
}

// PidsStats count tasks, threads included.
type PidsStats struct {
	Current uint64 `json:"current"`
	Limit   uint64 `json:"limit"` // math.MaxUint64 is none
}

// HugetlbStats are bytes of one page size, and how often the limit was met.
type HugetlbStats struct {
	Usage     uint64 `json:"usage"`
	Limit     uint64 `json:"limit"` // near math.MaxUint64 is none
	FailCount uint64 `json:"failCount"`
}

// Stats reads the group's counters. One that has just gone is an error that is
// fs.ErrNotExist.
func (g *Group) Stats() (*Stats, error) {
	if err := g.valid(); err != nil {
		return nil, fmt.Errorf("read cgroup: %w", err)
	}
	if !g.exists() {
		return nil, fmt.Errorf("read cgroup %s: %w", g.path, fs.ErrNotExist)
	}
	s := &Stats{Read: time.Now()}
	for _, read := range []func(*Stats) error{g.cpuStats, g.memoryStats, g.ioStats, g.pidsStats, g.hugetlbStats, g.pressures} {
		if err := read(s); err != nil && !gone(err) {
			return nil, fmt.Errorf("read cgroup: %w", err)
		}
	}
	return s, nil
}

func (g *Group) exists() bool {
	if dir := g.UnifiedDir(); dir != "" {
		return exists(dir, "cgroup.procs")
	}
	return len(g.V1Dirs()) > 0
}

// statsDir is the controller's directory, or fs.ErrNotExist: nothing is counted.
func (g *Group) statsDir(controller string) (dir string, v2 bool, err error) {
	dir, v2, err = g.dir(controller)
	if err != nil || !exists(dir, "cgroup.procs") {
		err = fs.ErrNotExist
	}
	return dir, v2, err
}

func (g *Group) cpuStats(s *Stats) error {
	if dir := g.v1Dir("cpuacct"); dir != "" {
		if err := accounting(dir, &s.CPU); err != nil {
			return err
		}
	} else if m, err := keyed(g.UnifiedDir(), "cpu.stat"); err == nil {
		s.CPU.Usage, s.CPU.User, s.CPU.System = micro(m["usage_usec"]), micro(m["user_usec"]), micro(m["system_usec"])
	}
	dir, v2, err := g.statsDir("cpu")
	if err != nil {
		return err
	}
	m, err := keyed(dir, "cpu.stat")
	s.CPU.Periods, s.CPU.ThrottledPeriods = m["nr_periods"], m["nr_throttled"]
	s.CPU.ThrottledTime = time.Duration(m["throttled_time"])
	if v2 {
		s.CPU.ThrottledTime = micro(m["throttled_usec"])
	}
	return err
}

// accounting reads v1's cpuacct, which has nanoseconds.
func accounting(dir string, c *CPUStats) error {
	usage, err := readNumber(dir, "cpuacct.usage")
	if err != nil {
		return err
	}
	user, err := readNumber(dir, "cpuacct.usage_user") // Linux 4.6
	system, err2 := readNumber(dir, "cpuacct.usage_sys")
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	c.Usage, c.User, c.System = time.Duration(usage), time.Duration(user), time.Duration(system)
	b, err := readFile(filepath.Join(dir, "cpuacct.usage_percpu"))
	for _, f := range strings.Fields(string(b)) {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return err
		}
		c.PerCPU = append(c.PerCPU, time.Duration(n))
	}
	return err
}

func micro(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }

func (g *Group) memoryStats(s *Stats) (err error) {
	dir, v2, err := g.statsDir("memory")
	if err != nil {
		return err
	}
	m := &s.Memory
	if m.Detail, err = keyed(dir, "memory.stat"); err != nil {
		return err
	}
	if v2 {
		err = memoryV2(dir, m)
	} else {
		err = memoryV1(dir, m)
	}
	if err != nil {
		return err
	}
	inactive, ok := m.Detail["total_inactive_file"] // v1's sum over groups below
	if !ok {
		inactive = m.Detail["inactive_file"]
	}
	m.Usage = m.Total - min(inactive, m.Total)
	m.OOMKills, err = g.OOMKills()
	return err
}

func memoryV1(dir string, m *MemoryStats) (err error) {
	for file, to := range map[string]*uint64{"memory.usage_in_bytes": &m.Total, "memory.max_usage_in_bytes": &m.Max,
		"memory.limit_in_bytes": &m.Limit, "memory.failcnt": &m.FailCount} {
		if *to, err = readNumber(dir, file); err != nil {
			return err
		}
	}
	if m.Limit >= math.MaxInt64&^0xffff { // v1 has "none" in pages, of up to 64 KiB
		m.Limit = math.MaxUint64
	}
	both, err := readNumber(dir, "memory.memsw.usage_in_bytes")
	if gone(err) {
		return nil // no swap accounting
	}
	m.Swap = both - min(m.Total, both)
	fails, err2 := readNumber(dir, "memory.memsw.failcnt") // the one that counts where both limits are the same
	m.FailCount += fails
	return errors.Join(err, err2)
}

func memoryV2(dir string, m *MemoryStats) (err error) {
	if m.Total, err = readNumber(dir, "memory.current"); err != nil {
		return err
	}
	if m.Limit, err = readNumber(dir, "memory.max"); err != nil {
		return err
	}
	events, err := keyed(dir, "memory.events")
	if err != nil {
		return err
	}
	m.FailCount = events["max"]
	for file, to := range map[string]*uint64{"memory.peak": &m.Max, "memory.swap.current": &m.Swap} {
		if *to, err = readNumber(dir, file); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// PidsRefused counts how often a process or thread was not made because the group, or
// one above it, had as many as it may (pids.events; Linux Documentation
// cgroup-v1/pids, cgroup-v2 "pids.events").
func (g *Group) PidsRefused() (uint64, error) {
	dir, _, err := g.statsDir("pids")
	if err != nil {
		return 0, fmt.Errorf("count refused processes: %w", err)
	}
	m, err := keyed(dir, "pids.events")
	if err != nil {
		return 0, fmt.Errorf("count refused processes: %w", err)
	}
	return m["max"], nil
}

func (g *Group) pidsStats(s *Stats) error {
	dir, _, err := g.statsDir("pids")
	if err != nil {
		return err
	}
	if s.Pids.Current, err = readNumber(dir, "pids.current"); err != nil {
		return err
	}
	s.Pids.Limit, err = readNumber(dir, "pids.max")
	return err
}

// readNumber reads one number; v2's "max" is math.MaxUint64.
func readNumber(dir, name string) (uint64, error) {
	b, err := readFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(b))
	if text == "max" {
		return math.MaxUint64, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
