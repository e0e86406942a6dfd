package cgroup

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The descriptor wakes a reader, and the count tells why.
func TestOutOfMemoryIsNoticed(t *testing.T) {
	limit := int64(16 << 20)
	g := group(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}})
	f, err := g.NotifyOOM()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	run(t, g, "x=$(head -c 40000000 /dev/zero | tr '\\0' x)")
	if err := f.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(make([]byte, 4096)); err != nil {
		t.Fatal("no notification:", err)
	}
	within(t, "a kill is counted", func() bool { n, err := g.OOMKills(); return err == nil && n > 0 })
	if s, err := g.Stats(); err != nil || s.Memory.OOMKills == 0 || s.Memory.Limit != uint64(limit) {
		t.Errorf("%+v, %v", s, err)
	}
}

// Each kind of freezer that the machine has stops what runs and what forks.
func TestFreezeAndThaw(t *testing.T) {
	real := host(t)
	for name, h := range map[string]Host{"unified": {Unified: real.Unified, Controllers: real.Controllers}, "v1": {V1: real.V1}} {
		if h.Unified == "" && h.V1["freezer"] == "" {
			continue
		}
		g, err := h.Create("naru-test-freeze-"+strconv.Itoa(os.Getpid())+"/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(g.Kill(context.Background()), g.Remove()); err != nil {
				t.Error(err)
			}
		})
		out := filepath.Join(t.TempDir(), "out")
		run(t, g, "while :; do /bin/echo x >> "+out+"; done")
		size := func() int { b, _ := os.ReadFile(out); return len(b) }
		within(t, "it writes", func() bool { return size() > 0 })
		if err := g.Freeze(t.Context(), true); err != nil {
			t.Fatal(name, err)
		}
		if !g.Frozen() {
			t.Errorf("%s: not frozen", name)
		}
		before := size()
		time.Sleep(30 * time.Millisecond) // nothing can be waited for: nothing shall happen
		if size() != before {
			t.Errorf("%s: it writes while it is frozen", name)
		}
		if _, err := h.Create(g.path, nil); err == nil {
			t.Errorf("%s: a frozen group was joined", name)
		}
		if err := g.Thaw(t.Context()); err != nil {
			t.Fatal(name, err)
		}
		within(t, "it writes again", func() bool { return size() > before })
		if err := errors.Join(g.Freeze(t.Context(), true), g.Kill(t.Context()), g.Remove()); err != nil {
			t.Errorf("%s: a frozen group: %v", name, err)
		}
	}
}

func TestStatsCount(t *testing.T) {
	limit, quota, period := int64(40), int64(10000), uint64(50000)
	g := group(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}})
	file := filepath.Join(t.TempDir(), "f")
	run(t, g, "dd if=/dev/zero of="+file+" bs=1M count=2 oflag=direct 2>/dev/null || cat /dev/zero | head -c 2000000 > "+file+"; x=$(head -c 5000000 /dev/zero | tr '\\0' x); while :; do :; done")
	var s *Stats
	within(t, "counters grow", func() (ok bool) {
		var err error
		if s, err = g.Stats(); err != nil {
			t.Fatal(err)
		}
		return s.CPU.Usage > 20*time.Millisecond && s.CPU.User > 0 && s.CPU.System > 0 && s.CPU.ThrottledPeriods > 0 && s.CPU.ThrottledTime > 0 && s.Memory.Usage > 3<<20 && s.Pids.Current == 1
	})
	m := s.Memory
	if s.Pids != (PidsStats{Current: 1, Limit: 40}) || m.Total < m.Usage || m.Max < m.Total/2 || m.Limit != 1<<64-1 || len(m.Detail) == 0 {
		t.Errorf("%+v", s)
	}
	if g.host.V1["cpuacct"] != "" && len(s.CPU.PerCPU) == 0 {
		t.Error("no time by processor")
	}
	if _, err := os.Stat(filepath.Join(g.UnifiedDir(), "cpu.pressure")); g.UnifiedDir() != "" && err == nil {
		if s.CPU.Pressure == nil || s.Memory.Pressure == nil || s.IO.Pressure == nil {
			t.Errorf("no pressure: %+v", s.CPU)
		}
	}
	if g.host.Has("hugetlb") {
		group := group2(t, g, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2 << 20}}})
		if s, err := group.Stats(); err != nil || s.Hugetlb["2MB"].Limit != 2<<20 {
			t.Errorf("%+v, %v", s, err)
		}
	}
	if _, err := g.host.Open("naru-test-nothing").Stats(); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// group2 makes one beside g.
func group2(t *testing.T, g *Group, r *specs.LinuxResources) *Group {
	t.Helper()
	other, err := g.host.Create(g.path+"-2", r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := other.Remove(); err != nil {
			t.Error(err)
		}
	})
	return other
}

func TestParseStats(t *testing.T) {
	var io IOStats
	io.v1Line([]string{"8:0", "Read", "10"}, true)
	io.v1Line([]string{"8:0", "Write", "3"}, false)
	io.v1Line([]string{"Total", "13"}, true)
	io.v2Line([]string{"253:1", "rbytes=5", "wbytes=6", "rios=7", "wios=8", "dbytes=9"})
	io.v2Line([]string{"nonsense"})
	want := []DeviceIO{{Major: 8, ReadBytes: 10, Writes: 3}, {Major: 253, Minor: 1, ReadBytes: 5, WriteBytes: 6, Reads: 7, Writes: 8}}
	if !slices.Equal(io.Devices, want) {
		t.Errorf("%+v", io.Devices)
	}
	p, err := parsePressure("some avg10=1.50 avg60=0.00 avg300=20.01 total=5300\nfull avg10=0.00 avg60=2.00 avg300=0.00 total=7\n")
	if err != nil || *p != (Pressure{Some: Stall{1.5, 0, 20.01, 5300 * time.Microsecond}, Full: Stall{0, 2, 0, 7 * time.Microsecond}}) {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := parsePressure("some nonsense\n"); err == nil {
		t.Error("nonsense was accepted")
	}
}

// Processes of groups below are the group's too, and die with it.
func TestPidsAndKillReachBelow(t *testing.T) {
	real := host(t)
	for name, h := range map[string]Host{"unified": {Unified: real.Unified, Controllers: real.Controllers}, "v1": {V1: real.V1}} {
		if h.Unified == "" && len(h.V1) == 0 {
			continue
		}
		g, err := h.Create("naru-test-below-"+strconv.Itoa(os.Getpid())+"/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(g.Kill(context.Background()), g.Remove()); err != nil {
				t.Error(err)
			}
		})
		cmd := run(t, g, "exec sleep 100")
		dirs := mapValues(g.V1Dirs())
		if h.Unified != "" {
			dirs = []string{g.UnifiedDir()}
		}
		for _, dir := range dirs {
			if err := os.Mkdir(filepath.Join(dir, "below"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		within(t, "a process", func() bool { p, err := g.Pids(); return err == nil && len(p) == 1 })
		for _, dir := range dirs {
			if err := write(filepath.Join(dir, "below"), "cgroup.procs", strconv.Itoa(cmd.Process.Pid)); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := g.Pids(); err != nil || !slices.Equal(p, []int{cmd.Process.Pid}) {
			t.Errorf("%s: %v, %v", name, p, err)
		}
		go func() { _ = cmd.Wait() }() // a zombie stays in the list of v1
		if err := errors.Join(g.Kill(t.Context()), g.Remove()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The kernel here has no memory controller on v2, or none on v1: these files are
// made up, to see what is written where. What they mean is proven by the tests above
// on machines that have them.
func TestNamesOfV2(t *testing.T) {
	root := t.TempDir()
	h := Host{Unified: root, Controllers: []string{"memory", "cpu", "cpuset", "io", "pids", "hugetlb", "rdma"}}
	g := h.Open("box")
	files := map[string]string{"memory.max": "max", "memory.low": "0", "memory.swap.max": "max", "cpu.max": "max 100000", "cpu.weight": "100", "cpu.max.burst": "0",
		"cpu.idle": "0", "cpuset.cpus": "", "io.max": "", "io.weight": "default 100", "pids.max": "max", "hugetlb.2MB.max": "max", "hugetlb.2MB.rsvd.max": "max",
		"rdma.max": "", "memory.high": "max", "cgroup.subtree_control": "memory cpu cpuset io pids hugetlb rdma"}
	if err := os.Mkdir(g.UnifiedDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		for _, dir := range []string{root, g.UnifiedDir()} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	dev := specs.LinuxBlockIODevice{Major: 8}
	p := planner{g: g}
	r := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20)), Swap: ptr(int64(3 << 20)), Reservation: ptr(int64(-1)), UseHierarchy: ptr(true), DisableOOMKiller: ptr(false)},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Period: ptr(uint64(5000)), Burst: ptr(uint64(7)), Idle: ptr(int64(1)), Cpus: "0-1"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(0))},
		BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000)), WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: dev, Weight: ptr(uint16(10))}},
			ThrottleReadIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev, Rate: 9}}, ThrottleWriteBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev}}},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}},
		Rdma:           map[string]specs.LinuxRdma{"mlx": {HcaHandles: ptr(uint32(3)), HcaObjects: ptr(uint32(4))}},
		Unified:        map[string]string{"memory.high": "99", "io.max": "9:0 rbps=1\n9:1 rbps=2\n"},
	}
	p.memory(r.Memory)
	p.cpu(r.CPU)
	p.pids(r.Pids)
	p.io(r.BlockIO)
	p.hugetlb(r.HugepageLimits)
	p.rdma(r.Rdma)
	p.unified(r.Unified)
	var got bytes.Buffer
	for _, s := range p.list {
		got.WriteString(s.file + "=" + s.text + "\n")
	}
	const want = "memory.max=1048576\nmemory.swap.max=2097152\nmemory.low=max\ncpu.weight=59\ncpu.idle=1\ncpu.max=max 5000\ncpu.max.burst=7\ncpuset.cpus=0-1\n" +
		"pids.max=max\nio.weight=10000\nio.weight=8:0 1\nio.max=8:0 wbps=max\nio.max=8:0 riops=9\nhugetlb.2MB.max=4\nhugetlb.2MB.rsvd.max=4\n" +
		"rdma.max=mlx hca_handle=3 hca_object=4\nio.max=9:0 rbps=1\nio.max=9:1 rbps=2\nmemory.high=99\n"
	if p.err != nil || got.String() != want {
		t.Errorf("%v\n%s", p.err, got.String())
	}
	for field, r := range map[string]*specs.LinuxResources{
		"resources.memory.swappiness: 5: ":         {Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(5))}},
		"resources.memory.disableOOMKiller: true:": {Memory: &specs.LinuxMemory{DisableOOMKiller: ptr(true)}},
		"resources.memory.useHierarchy: false:":    {Memory: &specs.LinuxMemory{UseHierarchy: ptr(false)}},
		"resources.memory.kernelTCP: 5: ":          {Memory: &specs.LinuxMemory{KernelTCP: ptr(int64(5))}},
		"resources.memory.swap: 5: ":               {Memory: &specs.LinuxMemory{Swap: ptr(int64(5))}},
		"resources.cpu.realtimePeriod: 5: ":        {CPU: &specs.LinuxCPU{RealtimePeriod: ptr(uint64(5))}},
		"resources.blockIO.leafWeight: 5: ":        {BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr(uint16(5))}},
		"resources.network.classID: 5: ":           {Network: &specs.LinuxNetwork{ClassID: ptr(uint32(5))}},
		`resources.unified[memory.max]: "7": `:     {Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20))}, Unified: map[string]string{"memory.max": "7"}},
	} {
		if err := g.limit(r, false); err == nil || !bytes.Contains([]byte(err.Error()), []byte(field)) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
