package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Resources are the limits of a container beside memory, processors and
// processes. The zero value of a field sets no limit.
type Resources struct {
	MemorySwap        int64  `json:"memory_swap,omitempty"`        // bytes of memory and swap together; 0: no swap, -1: no limit
	MemoryReservation int64  `json:"memory_reservation,omitempty"` // bytes that are reclaimed last
	CPUShares         uint64 `json:"cpu_shares,omitempty"`         // weight among containers, 2 to 262144; the default is 1024
	CPUQuota          int64  `json:"cpu_quota,omitempty"`          // microseconds per period; excludes CPUs
	CPUPeriod         uint64 `json:"cpu_period,omitempty"`         // microseconds, 1000 to 1000000; the default is 100000
	CpusetCPUs        string `json:"cpuset_cpus,omitempty"`        // such as 0-2,5 (cpuset(7), list format)
	CpusetMems        string `json:"cpuset_mems,omitempty"`        // NUMA nodes, likewise
	BlkioWeight       uint16 `json:"blkio_weight,omitempty"`       // 10 to 1000
	ShmSize           int64  `json:"shm_size,omitempty"`           // bytes of /dev/shm; the default is 64 MiB
	OOMScoreAdj       *int   `json:"oom_score_adj,omitempty"`      // -1000 to 1000 (proc_pid_oom_score_adj(5))

	Ulimits []specs.POSIXRlimit `json:"ulimits,omitempty"` // getrlimit(2)
}

// check refuses values that the kernel would refuse in the middle of a start.
func (r *Resources) check(c *ContainerConfig) error {
	switch {
	case r.MemorySwap < -1 || r.MemorySwap > 0 && r.MemorySwap < c.Memory:
		return fmt.Errorf("memory and swap limit of %d bytes: it includes the memory limit of %d, and -1 is none", r.MemorySwap, c.Memory)
	case r.MemorySwap != 0 && c.Memory == 0:
		return fmt.Errorf("memory and swap limit of %d bytes: it needs a memory limit", r.MemorySwap)
	case r.MemoryReservation < 0 || c.Memory > 0 && r.MemoryReservation > c.Memory:
		return fmt.Errorf("memory reservation of %d bytes is above the limit of %d", r.MemoryReservation, c.Memory)
	case r.CPUShares == 1 || r.CPUShares > 262144:
		return fmt.Errorf("cpu shares %d: want 2 to 262144", r.CPUShares)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return fmt.Errorf("cpu period %d: want 1000 to 1000000 microseconds", r.CPUPeriod)
	case r.CPUQuota < 0 || r.CPUQuota > 0 && r.CPUQuota < 1000:
		return fmt.Errorf("cpu quota %d: at least 1000 microseconds are needed", r.CPUQuota)
	case c.CPUs > 0 && (r.CPUQuota > 0 || r.CPUPeriod > 0):
		return errors.New("a number of cpus and a cpu quota or period exclude each other")
	case r.BlkioWeight != 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return fmt.Errorf("block io weight %d: want 10 to 1000", r.BlkioWeight)
	case r.ShmSize < 0:
		return fmt.Errorf("size %d of /dev/shm is negative", r.ShmSize)
	case r.OOMScoreAdj != nil && (*r.OOMScoreAdj < -1000 || *r.OOMScoreAdj > 1000):
		return fmt.Errorf("oom score adjustment %d: want -1000 to 1000", *r.OOMScoreAdj)
	}
	return errors.Join(checkSet("cpus", r.CpusetCPUs), checkSet("memory nodes", r.CpusetMems), checkUlimits(r.Ulimits))
}

// checkSet reads a list such as 0-2,5.
func checkSet(what, set string) error {
	if set == "" {
		return nil
	}
	for part := range strings.SplitSeq(set, ",") {
		first, last, ranged := strings.Cut(part, "-")
		from, err := strconv.ParseUint(first, 10, 16)
		to := from
		if ranged && err == nil {
			to, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || to < from {
			return fmt.Errorf("set of %s %q: want numbers and ranges, such as 0-2,5", what, set)
		}
	}
	return nil
}

func checkUlimits(list []specs.POSIXRlimit) error {
	for _, l := range list {
		if l.Soft > l.Hard {
			return fmt.Errorf("ulimit %s: the soft limit %d is above the hard limit %d", l.Type, l.Soft, l.Hard)
		}
	}
	return nil
}

// ParseUlimit reads Docker's NAME=SOFT[:HARD]; -1 is no limit.
func ParseUlimit(s string) (specs.POSIXRlimit, error) {
	wrong := fmt.Errorf("ulimit %q: want NAME=SOFT[:HARD]", s)
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		return specs.POSIXRlimit{}, wrong
	}
	names := []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}
	if !slices.Contains(names, name) {
		return specs.POSIXRlimit{}, fmt.Errorf("ulimit %q: unknown name %q, want one of %s", s, name, strings.Join(names, " "))
	}
	l := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name)}
	soft, hard, two := strings.Cut(value, ":")
	if !two {
		hard = soft
	}
	for i, text := range []string{soft, hard} {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < -1 {
			return l, wrong
		}
		*[]*uint64{&l.Soft, &l.Hard}[i] = uint64(n) // -1 is RLIM_INFINITY
	}
	return l, checkUlimits([]specs.POSIXRlimit{l})
}

// apply writes the limits into the spec, over those of setLimits.
func (r *Resources) apply(s *specs.Spec) {
	res := s.Linux.Resources
	if r.MemorySwap != 0 && res.Memory != nil {
		res.Memory.Swap = &r.MemorySwap
	}
	if r.MemoryReservation > 0 {
		if res.Memory == nil {
			res.Memory = &specs.LinuxMemory{}
		}
		res.Memory.Reservation = &r.MemoryReservation
	}
	r.applyCPU(res)
	if r.BlkioWeight > 0 {
		res.BlockIO = &specs.LinuxBlockIO{Weight: &r.BlkioWeight}
	}
	for i, m := range s.Mounts {
		if m.Destination == "/dev/shm" && r.ShmSize > 0 {
			options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool {
				return strings.HasPrefix(o, "size=") || strings.HasPrefix(o, "nr_inodes=")
			})
			s.Mounts[i].Options = append(options, "size="+strconv.FormatInt(r.ShmSize, 10), "nr_inodes="+strconv.FormatInt(max(minShmFiles, r.ShmSize/4096), 10))
		}
	}
}

// minShmFiles are as many as the default /dev/shm can have: one for each of its pages.
const minShmFiles = 16384

func (r *Resources) applyCPU(res *specs.LinuxResources) {
	if r.CPUShares == 0 && r.CPUQuota == 0 && r.CPUPeriod == 0 && r.CpusetCPUs == "" && r.CpusetMems == "" {
		return
	}
	if res.CPU == nil {
		res.CPU = &specs.LinuxCPU{}
	}
	if r.CPUShares > 0 {
		res.CPU.Shares = &r.CPUShares
	}
	if r.CPUQuota > 0 {
		res.CPU.Quota = &r.CPUQuota
	}
	if r.CPUPeriod > 0 {
		res.CPU.Period = &r.CPUPeriod
	}
	res.CPU.Cpus, res.CPU.Mems = r.CpusetCPUs, r.CpusetMems
}
