package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/cgroup"
)

// Update changes the limits that res names; all others stay. Device rules cannot be
// changed.
func (r Runtime) Update(id string, res *specs.LinuxResources) error {
	if len(res.Devices) > 0 {
		return errors.New("devices: the rules of a running container cannot be changed")
	}
	c, unlock, err := r.openLocked(id)
	if err != nil {
		return err
	}
	defer unlock()
	if c.Status == specs.StateStopped {
		return fmt.Errorf("%w: container %s is not running", ErrState, id)
	}
	group, err := c.group()
	if err != nil {
		return err
	}
	return group.Update(res)
}

// Event is one line of the events command, in runc's form.
type Event struct {
	Type string `json:"type"` // "stats" or "oom"
	ID   string `json:"id"`
	Data *Stats `json:"data,omitempty"`
}

// Events calls to with a reading every interval, and with each time that a process
// was killed for memory, until the container has ended or ctx is done. Without an
// interval it reads once.
func (r Runtime) Events(ctx context.Context, id string, interval time.Duration, to func(Event) error) error {
	c, err := r.Open(id)
	if err != nil {
		return err
	}
	defer c.Close()
	if c.Status == specs.StateStopped {
		return fmt.Errorf("%w: container %s is not running", ErrState, id)
	}
	group, err := c.group()
	if err != nil {
		return err
	}
	if interval == 0 {
		return c.stats(group, to)
	}
	kills, err := group.OOMKills()
	if err != nil {
		return err
	}
	next := time.Now().Add(interval)
	for ctx.Err() == nil {
		poll := []unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(poll, 100); n > 0 {
			return nil
		}
		now, err := group.OOMKills()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && now > kills {
			kills = now
			err = to(Event{Type: "oom", ID: id})
		}
		if err == nil && !time.Now().Before(next) {
			next = time.Now().Add(interval)
			err = c.stats(group, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Container) stats(g *cgroup.Group, to func(Event) error) error {
	s, err := g.Stats()
	if err != nil {
		return err
	}
	return to(Event{Type: "stats", ID: c.ID, Data: statsOf(s)})
}

// Stats are the counters of a container with runc's names.
type Stats struct {
	CPU struct {
		Usage struct {
			Total  uint64   `json:"total"` // nanoseconds, as all here
			PerCPU []uint64 `json:"percpu,omitempty"`
			Kernel uint64   `json:"kernel"`
			User   uint64   `json:"user"`
		} `json:"usage"`
		Throttling struct {
			Periods          uint64 `json:"periods,omitempty"`
			ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
			ThrottledTime    uint64 `json:"throttledTime,omitempty"`
		} `json:"throttling"`
	} `json:"cpu"`
	Memory struct {
		Usage MemoryEntry       `json:"usage"`
		Swap  MemoryEntry       `json:"swap"`
		Raw   map[string]uint64 `json:"raw,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids"`
	Blkio struct {
		Bytes []BlkioEntry `json:"ioServiceBytesRecursive,omitempty"`
		Ops   []BlkioEntry `json:"ioServicedRecursive,omitempty"`
	} `json:"blkio"`
	Hugetlb map[string]MemoryEntry `json:"hugetlb"`
}

// MemoryEntry is one counter of bytes.
type MemoryEntry struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

// BlkioEntry is what was read from or written to one block device.
type BlkioEntry struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"`
	Value uint64 `json:"value"`
}

func statsOf(s *cgroup.Stats) *Stats {
	out := &Stats{Hugetlb: map[string]MemoryEntry{}}
	out.CPU.Usage.Total, out.CPU.Usage.Kernel, out.CPU.Usage.User = uint64(s.CPU.Usage), uint64(s.CPU.System), uint64(s.CPU.User)
	for _, t := range s.CPU.PerCPU {
		out.CPU.Usage.PerCPU = append(out.CPU.Usage.PerCPU, uint64(t))
	}
	out.CPU.Throttling.Periods, out.CPU.Throttling.ThrottledPeriods = s.CPU.Periods, s.CPU.ThrottledPeriods
	out.CPU.Throttling.ThrottledTime = uint64(s.CPU.ThrottledTime)
	out.Memory.Usage = MemoryEntry{Limit: s.Memory.Limit, Usage: s.Memory.Total, Max: s.Memory.Max, Failcnt: s.Memory.FailCount}
	out.Memory.Swap.Usage, out.Memory.Raw = s.Memory.Swap, s.Memory.Detail
	out.Pids.Current, out.Pids.Limit = s.Pids.Current, s.Pids.Limit
	for _, d := range s.IO.Devices {
		entry := func(op string, v uint64) BlkioEntry { return BlkioEntry{uint64(d.Major), uint64(d.Minor), op, v} }
		out.Blkio.Bytes = append(out.Blkio.Bytes, entry("Read", d.ReadBytes), entry("Write", d.WriteBytes))
		out.Blkio.Ops = append(out.Blkio.Ops, entry("Read", d.Reads), entry("Write", d.Writes))
	}
	for size, h := range s.Hugetlb {
		out.Hugetlb[size] = MemoryEntry{Limit: h.Limit, Usage: h.Usage, Failcnt: h.FailCount}
	}
	return out
}
