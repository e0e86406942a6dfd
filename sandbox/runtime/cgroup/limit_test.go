package cgroup

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func ptr[T any](v T) *T { return &v }

// host finds the real hierarchies: v1 and hybrid on some machines, v2 on others; each
// test takes whichever road the machine has.
func host(t *testing.T) Host {
	t.Helper()
	h, err := Detect()
	if err != nil || os.Geteuid() != 0 || h.Unified == "" && len(h.V1) == 0 {
		t.Skip("needs root and cgroups:", err)
	}
	return h
}

// group makes a real group, below a parent of its own.
func group(t *testing.T, r *specs.LinuxResources) *Group {
	t.Helper()
	h := host(t)
	path := "naru-test-" + strconv.Itoa(os.Getpid()) + "/" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	g, err := h.Create(path, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Kill(context.Background()), g.Remove()); err != nil {
			t.Error(err)
		}
		for _, m := range h.mounts() {
			if _, err := os.Stat(filepath.Join(m, g.path)); err == nil {
				t.Errorf("%s/%s is left", m, g.path)
			}
		}
	})
	return g
}

// run starts a shell in the group.
func run(t *testing.T, g *Group, script string) *exec.Cmd {
	t.Helper()
	for _, f := range g.Tasks() {
		script = "echo 0 > " + f + "; " + script
	}
	cmd := exec.Command("sh", "-c", script)
	if dir := g.UnifiedDir(); dir != "" {
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// within waits for a condition.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 10 s: " + what)
		}
	}
}

// value reads a limit back.
func value(t *testing.T, g *Group, h home) string {
	t.Helper()
	dir, v2, err := g.dir(h.controller)
	if err != nil {
		t.Fatal(err)
	}
	file := h.v1
	if v2 {
		file = h.v2
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func expect(t *testing.T, g *Group, h home, v1, v2 string) {
	t.Helper()
	want := v1
	if g.host.V1[h.controller] == "" {
		want = v2
	}
	if got := value(t, g, h); got != want {
		t.Errorf("%+v is %q, want %q", h, got, want)
	}
}

var (
	memoryLimit = home{"memory", "memory.limit_in_bytes", "memory.max"}
	memorySwap  = home{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"}
	cpuPeriod   = home{"cpu", "cpu.cfs_period_us", "cpu.max"}
	cpuQuota    = home{"cpu", "cpu.cfs_quota_us", "cpu.max"}
)

func TestCreateWritesWhatTheSpecNames(t *testing.T) {
	const mib = 1 << 20
	r := &specs.LinuxResources{
		//lint:ignore SA1019 shows that it is let pass
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(80 * mib)), Reservation: ptr(int64(32 * mib)), Kernel: ptr(int64(mib))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(50000)), Period: ptr(uint64(200000)), Burst: ptr(uint64(20000)), Cpus: "0", Mems: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(77))},
	}
	v1 := host(t).V1["memory"] != ""
	if v1 {
		r.Memory.Swappiness, r.Memory.DisableOOMKiller, r.Memory.UseHierarchy = ptr(uint64(10)), ptr(true), ptr(true)
		r.Memory.KernelTCP = ptr(int64(8 * mib))
	}
	g := group(t, r)
	expect(t, g, memoryLimit, "67108864", "67108864")
	expect(t, g, memorySwap, "83886080", "16777216")
	expect(t, g, home{"memory", "memory.soft_limit_in_bytes", "memory.low"}, "33554432", "33554432")
	expect(t, g, home{"cpu", "cpu.shares", "cpu.weight"}, "1024", "100")
	expect(t, g, cpuQuota, "50000", "50000 200000")
	expect(t, g, cpuPeriod, "200000", "50000 200000")
	expect(t, g, home{"cpu", "cpu.cfs_burst_us", "cpu.max.burst"}, "20000", "20000")
	expect(t, g, home{"cpuset", "cpuset.cpus", "cpuset.cpus"}, "0", "0")
	expect(t, g, home{"cpuset", "cpuset.mems", "cpuset.mems"}, "0", "0")
	expect(t, g, home{"pids", "pids.max", "pids.max"}, "77", "77")
	if v1 {
		expect(t, g, home{"memory", "memory.swappiness", ""}, "10", "")
		expect(t, g, home{"memory", "memory.kmem.tcp.limit_in_bytes", ""}, "8388608", "")
		if got := value(t, g, home{"memory", "memory.oom_control", ""}); !strings.HasPrefix(got, "oom_kill_disable 1") {
			t.Error(got)
		}
	}
}

// What the machine cannot do names field and value; nothing of the group is left.
func TestImpossibleLimitsAreErrors(t *testing.T) {
	h := host(t)
	nothing := specs.LinuxBlockIODevice{Major: 510, Minor: 3} // no driver's number: 1:3 would be a RAM disk, loaded when asked for
	for field, r := range map[string]*specs.LinuxResources{
		"resources.memory.swap: 1048576: ":                       {Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(1 << 20))}},
		"resources.memory.swappiness: 101: ":                     {Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(101))}},
		"resources.memory.useHierarchy: false: ":                 {Memory: &specs.LinuxMemory{UseHierarchy: ptr(false)}},
		"resources.cpu.shares: 1: ":                              {CPU: &specs.LinuxCPU{Shares: ptr(uint64(1))}},
		"resources.cpu.quota: 5: ":                               {CPU: &specs.LinuxCPU{Quota: ptr(int64(5))}},
		"resources.cpu.cpus: 4095: ":                             {CPU: &specs.LinuxCPU{Cpus: "4095"}},
		"resources.cpu.realtimeRuntime: 999999999: ":             {CPU: &specs.LinuxCPU{RealtimeRuntime: ptr(int64(999999999))}},
		"resources.blockIO.leafWeight: 100: ":                    {BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr(uint16(100))}},
		"resources.blockIO.weight: 20000: ":                      {BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(20000))}},
		"resources.blockIO.throttleReadBpsDevice[0]: 510:3 100:": {BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: nothing, Rate: 100}}}},
		"resources.hugepageLimits[0]: 3MB 1: ":                   {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}},
		"resources.network.classID: 1: ":                         {Network: &specs.LinuxNetwork{ClassID: ptr(uint32(1))}},
		"resources.network.priorities[0]: lo 1: ":                {Network: &specs.LinuxNetwork{Priorities: []specs.LinuxInterfacePriority{{Name: "lo", Priority: 1}}}},
		"resources.rdma: mlx hca_handle=1: ":                     {Rdma: map[string]specs.LinuxRdma{"mlx": {HcaHandles: ptr(uint32(1))}}},
		`resources.unified[cgroup.procs]: "1": `:                 {Unified: map[string]string{"cgroup.procs": "1"}},
		`resources.unified[../x.y]: "1": `:                       {Unified: map[string]string{"../x.y": "1"}},
		`resources.unified[nosuch.max]: "1": `:                   {Unified: map[string]string{"nosuch.max": "1"}},
		`resources.devices[0].type: "x": `:                       {Devices: []specs.LinuxDeviceCgroup{{Type: "x"}}},
		`resources.devices[0].access: "rx": `:                    {Devices: []specs.LinuxDeviceCgroup{{Access: "rx"}}},
	} {
		if h.V1["cpu"] == "" && strings.HasPrefix(field, "resources.cpu.shares") || h.V1["net_cls"] != "" && strings.Contains(field, "network") {
			continue // v2 takes any share; a machine with these controllers can
		}
		path := "naru-test-bad-" + strconv.Itoa(os.Getpid())
		g, err := h.Create(path, r)
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
		if err == nil {
			_ = g.Remove()
		}
		for _, m := range h.mounts() {
			if _, err := os.Stat(filepath.Join(m, path)); err == nil {
				t.Errorf("%s: %s/%s is left", field, m, path)
			}
		}
	}
}

func TestUpdateRaisesAndLowers(t *testing.T) {
	const mib = 1 << 20
	g := group(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 * mib)), Swap: ptr(int64(64 * mib))},
		CPU: &specs.LinuxCPU{Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Burst: ptr(uint64(10000))}})
	run(t, g, "exec sleep 100")
	for _, mb := range []int64{128, 32, 256, 16} {
		r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(mb * mib), Swap: ptr(2 * mb * mib)}}
		if err := g.Update(r); err != nil {
			t.Fatal(mb, err)
		}
		expect(t, g, memoryLimit, strconv.FormatInt(mb*mib, 10), strconv.FormatInt(mb*mib, 10))
		expect(t, g, memorySwap, strconv.FormatInt(2*mb*mib, 10), strconv.FormatInt(mb*mib, 10))
	}
	if err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	if s, err := g.Stats(); err != nil || s.Memory.Limit != 1<<64-1 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, c := range []struct {
		quota  int64
		period uint64
		burst  uint64
	}{{500000, 1000000, 400000}, {20000, 100000, 1000}, {-1, 50000, 0}, {10000, 20000, 10000}} {
		if err := g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &c.quota, Period: &c.period, Burst: &c.burst}}); err != nil {
			t.Fatal(c, err)
		}
		period, quota := strconv.FormatUint(c.period, 10), strconv.FormatInt(c.quota, 10)
		both := quota + " " + period
		if c.quota < 0 {
			both = "max " + period
		}
		expect(t, g, cpuQuota, quota, both)
		expect(t, g, cpuPeriod, period, both)
	}
}

// A refused update leaves what was.
func TestRefusedUpdateTakesBack(t *testing.T) {
	g := group(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(50))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 26))}})
	err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 27))},
		Pids: &specs.LinuxPids{Limit: ptr(int64(60))}, CPU: &specs.LinuxCPU{Cpus: "4095"}})
	if err == nil || !strings.Contains(err.Error(), "resources.cpu.cpus: 4095") {
		t.Fatal(err)
	}
	expect(t, g, memoryLimit, "67108864", "67108864")
	expect(t, g, home{"pids", "pids.max", "pids.max"}, "50", "50")
}

func TestUsageIsCheckedBeforeUpdate(t *testing.T) {
	g := group(t, nil)
	ready := filepath.Join(t.TempDir(), "ready")
	run(t, g, "x=$(head -c 4000000 /dev/zero | tr '\\0' x); echo > "+ready+"; sleep 100")
	within(t, "memory in use", func() bool { _, err := os.Stat(ready); return err == nil })
	err := g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20)), CheckBeforeUpdate: ptr(true)}})
	if err == nil || !strings.Contains(err.Error(), "resources.memory.limit: 1048576: ") {
		t.Error(err)
	}
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Error(n, err)
	}
}

// A controller that Create did not need comes with the update, for all processes.
func TestUpdateJoinsAController(t *testing.T) {
	g := group(t, nil)
	cmd := run(t, g, "sleep 100 & sleep 100 & wait")
	within(t, "three processes", func() bool { p, err := g.Pids(); return err == nil && len(p) == 3 })
	opened := g.host.Open(g.path)
	if err := opened.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}}); err != nil {
		t.Fatal(err)
	}
	expect(t, opened, home{"cpuset", "cpuset.cpus", "cpuset.cpus"}, "0", "0")
	pids, err := g.Pids()
	if err != nil || len(pids) != 3 || !slices.Contains(pids, cmd.Process.Pid) {
		t.Fatal(pids, err)
	}
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil || !bytes.Contains(b, []byte("Cpus_allowed_list:\t0\n")) {
			t.Errorf("process %d may use other processors: %v", pid, err)
		}
	}
}

func TestUnifiedFiles(t *testing.T) {
	h := host(t)
	if h.Unified == "" || !slices.Contains(h.Controllers, "hugetlb") {
		t.Skip("needs the hugetlb controller on cgroup v2")
	}
	g := group(t, &specs.LinuxResources{Unified: map[string]string{"hugetlb.2MB.max": "4194304", "cgroup.max.depth": "3"}})
	expect(t, g, home{"hugetlb", "", "hugetlb.2MB.max"}, "", "4194304")
	if err := g.Update(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2 << 20}}}); err != nil {
		t.Fatal(err)
	}
	expect(t, g, home{"hugetlb", "", "hugetlb.2MB.max"}, "", "2097152")
	expect(t, g, home{"hugetlb", "", "hugetlb.2MB.rsvd.max"}, "", "2097152")
	err := g.Update(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}},
		Unified: map[string]string{"hugetlb.2MB.max": "max"}})
	if err == nil || !strings.Contains(err.Error(), `resources.unified[hugetlb.2MB.max]: "max": resources.hugepageLimits[0]`) {
		t.Error(err)
	}
}

func TestThrottleAndWeight(t *testing.T) {
	disk, err := os.ReadFile("/sys/block/vda/dev")
	if err != nil {
		t.Skip("needs a disk vda:", err)
	}
	var d specs.LinuxBlockIODevice
	major, minor, _ := strings.Cut(strings.TrimSpace(string(disk)), ":")
	d.Major, _ = strconv.ParseInt(major, 10, 64)
	d.Minor, _ = strconv.ParseInt(minor, 10, 64)
	if !host(t).Has("blkio") {
		t.Skip("needs a controller of block i/o")
	}
	g := group(t, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
		ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{{LinuxBlockIODevice: d, Rate: 1 << 20}},
		ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: d, Rate: 50}},
	}})
	name := strings.TrimSpace(string(disk))
	expect(t, g, home{"blkio", "blkio.throttle.read_bps_device", "io.max"}, name+" 1048576", name+" rbps=1048576 wbps=max riops=max wiops=50")
	dir, v2, _ := g.dir("blkio")
	if !v2 && !exists(dir, "blkio.bfq.weight") || v2 && !exists(dir, "io.weight") && !exists(dir, "io.bfq.weight") {
		t.Skip("the kernel has no weights of block i/o")
	}
	if err := g.Update(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500))}}); err != nil {
		t.Fatal(err)
	}
	if !v2 {
		expect(t, g, home{"blkio", "blkio.bfq.weight", ""}, "500", "")
	}
}

func TestWeightOfShares(t *testing.T) {
	for shares, want := range map[uint64]uint64{1: 1, 2: 1, 1024: 100, 512: 59, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestParsePath(t *testing.T) {
	for in, want := range map[string]string{"/a/b": "a/b", "a/b": "a/b", "//a//b/": "a/b", "/kubepods/a:b:c": "kubepods/a:b:c",
		"": "", "/": "", ".": "", "/../a": "", "a/../../b": "", "system.slice:docker:1234": ""} {
		got, err := ParsePath(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("ParsePath(%q) = %q, %v", in, got, err)
		}
	}
}

// Parents are taken away only if they were made for a group, and groups in use are
// refused.
func TestParentsAndUsedGroups(t *testing.T) {
	h := host(t)
	parent := "naru-test-parent-" + strconv.Itoa(os.Getpid())
	for _, m := range h.mounts() {
		if err := os.Mkdir(filepath.Join(m, parent), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Rmdir(filepath.Join(m, parent)) })
	}
	g, err := h.Create(parent+"/made/leaf", nil)
	if err != nil {
		t.Fatal(err)
	}
	run(t, g, "exec sleep 100")
	if _, err := h.Create(parent+"/made", nil); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Error("a group with processes below was accepted:", err)
	}
	if err := errors.Join(g.Kill(t.Context()), g.Remove()); err != nil {
		t.Fatal(err)
	}
	for _, m := range h.mounts() {
		if _, err := os.Stat(filepath.Join(m, parent)); err != nil {
			t.Error("the administrator's group is gone:", err)
		}
		if _, err := os.Stat(filepath.Join(m, parent, "made")); err == nil {
			t.Errorf("%s/%s/made is left", m, parent)
		}
	}
}
