package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"naru/sandbox/network"
	"naru/sandbox/runtime"
)

// The crash test kills every process that takes part in the life of a container, at
// every place where it can be killed, and looks at what is left through an engine
// that knows nothing. It has four kinds of places:
//
//   - the named steps of the engine's operations (Engine.step), where the process that
//     called dies, or the monitor (crash_engine_test.go);
//   - the steps of the lists that create and exec send (package step): a list is
//     data, so a test puts a barrier before step i, and while the process in the
//     container waits there, its creator, its monitor (for exec: the helper) or
//     itself is killed (crash_launch_test.go);
//   - the system calls of a monitor: it has no hooks, so a tracer stops it before its
//     k-th call and kills it there, while it starts, logs, rotates, takes over and
//     writes exit.json (crash_monitor_test.go, crash_trace_test.go); then its keeper,
//     which takes its place, at its calls, and both in turn (crash_keeper_test.go).
//
// After each kill the container must be absent, if nobody was told of it; or run, obey
// a stop, and answer an exec; or have ended with the right exit code. Its log must be
// exact. When it is removed, the machine must be as before.
//
// All of it runs in namespaces of its own, so that everything in them is the test's:
// links, nft tables, mounts and processes are compared as a whole. `make test` kills
// at a sample of the places; NARU_CRASH=all (make crash) at all of them, and a list of
// groups, such as NARU_CRASH=monitor,exec, at all of those.
const (
	killsVariable = "NARU_TEST_KILLS" // "init", or "inside": where in the namespaces a process is
	crashAll      = "NARU_CRASH"
)

func TestKilledAtEveryStep(t *testing.T) {
	needRoot(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKillsInside$", "-test.v", "-test.timeout=30m")
	cmd.Env = append(os.Environ(), killsVariable+"=init")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if os.Getenv(crashAll) != "" { // it takes minutes: show where it is
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Log(out.String())
}

// killsInit makes this process the first of the namespaces: it reaps.
func killsInit() {
	if os.Getenv(killsVariable) != "init" {
		return
	}
	code, err := beFirst()
	if err != nil {
		fmt.Fprintln(os.Stderr, "crash test:", err)
	}
	os.Exit(code)
}

func beFirst() (int, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 1, err
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 1, err
	}
	if err := unmountBelow("/run/", "/tmp/"); err != nil {
		return 1, err
	}
	for _, dir := range []string{"/run", "/tmp"} { // a kill needs no disk, so no fsync has to be waited for
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=1777"); err != nil {
			return 1, err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo) // a port of 127.0.0.1 is published
	}
	if err != nil {
		return 1, err
	}
	if err := errors.Join(os.Setenv(killsVariable, "inside"), os.Setenv("TMPDIR", "/tmp")); err != nil {
		return 1, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		return 1, err
	}
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if got == pid {
			return ws.ExitStatus(), nil
		}
		if err != nil && err != syscall.EINTR {
			return 1, err
		}
	}
}

// unmountBelow drops what others have mounted in places that we are about to cover: it
// would vanish from our table when they remove it. The mount namespace is our own.
func unmountBelow(places ...string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		target := strings.Fields(line)[4]
		if slices.ContainsFunc(places, func(p string) bool { return strings.HasPrefix(target, p) }) {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // it went with another
				return fmt.Errorf("unmount %s: %w", target, err)
			}
		}
	}
	return nil
}

func TestKillsInside(t *testing.T) {
	if os.Getenv(killsVariable) != "inside" {
		t.Skip("TestKilledAtEveryStep runs this in namespaces of its own")
	}
	y := newYard(t)
	for _, group := range []struct {
		name string
		kill func(*yard)
	}{
		{"engine", killAtEngineSteps},
		{"start", killAtStartSteps},
		{"create", killAtCreateSteps},
		{"exec", killAtExecSteps},
		{"monitor", killMonitorAtCalls},
		{"keeper", killKeepers},
	} {
		if only := os.Getenv(crashAll); y.all && only != "all" && !slices.Contains(strings.Split(only, ","), group.name) {
			continue
		}
		began := time.Now()
		ok := t.Run(group.name, func(t *testing.T) {
			in := *y
			in.t = t
			group.kill(&in)
			in.asBefore()
		})
		t.Logf("%s: %v, ok: %v", group.name, time.Since(began).Round(time.Millisecond), ok)
	}
	y.report()
}

// yard is where containers are killed: one engine, whose kills are counted.
type yard struct {
	t      *testing.T
	e      *Engine
	all    bool
	exact  bool   // the kernel keeps exit codes for those who hold a pidfd (Linux 6.15)
	before string // the machine without a container
	tallys map[string]*tally
}

// tally is one row of the table.
type tally struct {
	places   map[string]bool
	kills    int
	outcomes map[string]int
}

// yardNetwork has more addresses than there are kills: one that was used is in quarantine.
const yardNetwork = "yard"

func newYard(t *testing.T) *yard {
	y := &yard{t: t, e: newEngine(t), all: os.Getenv(crashAll) != "", tallys: map[string]*tally{}}
	y.exact = runtime.Features().Has("exit codes by pidfd")
	if !y.all {
		t.Logf("a sample of the places; %s=all kills at each of them", crashAll)
	}
	// What the first container brings and the last one leaves (the bridge, the answer
	// to what the kernel can do) is no leak.
	_, err := y.e.Networks().Create(t.Context(), yardNetwork, network.Options{Subnet: netip.MustParsePrefix("10.99.0.0/16")})
	y.must(err)
	y.must(y.do(context.Background(), job{Do: "run", Name: "first"}))
	y.must(y.e.Remove(t.Context(), "first", true))
	eventually(t, "its link goes with its namespace", func() bool { return !strings.Contains(y.machine(), "@") })
	y.before = y.machine()
	return y
}

func (y *yard) must(err error) {
	y.t.Helper()
	if err != nil {
		y.t.Fatal(err)
	}
}

// sample is every place, or few of them, spread over all.
func sample[T any](y *yard, places []T, few int) []T {
	if y.all || len(places) <= few {
		return places
	}
	var some []T
	for i := range few {
		some = append(some, places[(2*i+1)*len(places)/(2*few)])
	}
	return some
}

// count notes a kill and what came of it.
func (y *yard) count(group, victim, place, outcome string) {
	key := group + " | " + victim
	c := y.tallys[key]
	if c == nil {
		c = &tally{map[string]bool{}, 0, map[string]int{}}
		y.tallys[key] = c
	}
	c.places[place] = true
	c.kills++
	c.outcomes[outcome]++
}

func (y *yard) report() {
	total := 0
	var b strings.Builder
	b.WriteString("\n| where | who is killed | places | kills | what came of it |\n|---|---|---|---|---|\n")
	for _, key := range slices.Sorted(maps.Keys(y.tallys)) {
		c := y.tallys[key]
		total += c.kills
		var outcomes []string
		for _, o := range slices.Sorted(maps.Keys(c.outcomes)) {
			outcomes = append(outcomes, fmt.Sprintf("%s: %d", o, c.outcomes[o]))
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %s |\n", key, len(c.places), c.kills, strings.Join(outcomes, ", "))
	}
	fmt.Fprintf(&b, "%d kills\n", total)
	y.t.Log(b.String())
	if os.Getenv(crashAll) == "all" && total < 1000 {
		y.t.Errorf("only %d kills", total)
	}
}

// fresh is an engine that remembers nothing.
func (y *yard) fresh() *Engine {
	y.t.Helper()
	e, err := Open(Options{Root: y.e.root, Run: y.e.run})
	y.must(err)
	return e
}

// machine is everything that a leak would show in. The namespaces are ours, so it
// need not ask whose a thing is.
func (y *yard) machine() string {
	y.t.Helper()
	var b strings.Builder
	for _, c := range []string{"ip -o -br link", "ip -o -4 addr", "nft list ruleset"} {
		f := strings.Fields(c)
		out, err := exec.Command(f[0], f[1:]...).Output()
		y.must(err)
		for line := range strings.Lines(string(out)) {
			if f[0] == "ip" { // the state of a bridge follows its members
				line = strings.Join(strings.Fields(line)[:1], " ") + "\n"
			}
			b.WriteString(line)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	y.must(err)
	b.Write(mounts)
	b.WriteString(y.processes() + y.files())
	return b.String()
}

// processes are those in the namespace, but for the test and what it runs for itself.
func (y *yard) processes() string {
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	y.must(err)
	var b strings.Builder
	for _, path := range found {
		stat, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			fmt.Fprintf(&b, "process %.40s\n", stat[:bytes.LastIndexByte(stat, ')')+1])
		}
	}
	return b.String()
}

// files of the root and the run directory, and cgroups; images do not change.
func (y *yard) files() string {
	var b strings.Builder
	for _, root := range []string{y.e.root, y.e.run} {
		y.must(filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "images" {
				return filepath.SkipDir
			}
			if !strings.Contains(path, "/events") && !strings.Contains(path, "/addresses/") { // clean looks at their owners
				b.WriteString(path + "\n")
			}
			return err
		}))
	}
	for _, place := range []string{"/sys/fs/cgroup/*/naru-", "/sys/fs/cgroup/naru-"} {
		found, err := filepath.Glob(place + y.e.hash + "*")
		y.must(err)
		for _, path := range found {
			b.WriteString(path + "\n")
			inside, _ := filepath.Glob(path + "/*/cgroup.procs")
			b.WriteString(strings.Join(inside, "\n"))
		}
	}
	return b.String()
}

// asBefore waits until the machine is as it was: what ends needs a moment.
func (y *yard) asBefore() {
	y.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; {
		now := y.machine()
		if now == y.before {
			return
		}
		if time.Now().After(end) {
			y.t.Errorf("the machine is not as before: %s", difference(y.before, now))
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}

func difference(before, after string) string {
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	var b strings.Builder
	for _, line := range old {
		if !slices.Contains(now, line) {
			b.WriteString("\n- " + line)
		}
	}
	for _, line := range now {
		if !slices.Contains(old, line) {
			b.WriteString("\n+ " + line)
		}
	}
	return b.String()
}

// clean is the part of machine that is cheap enough to look at after each kill.
func (y *yard) clean(place string) {
	y.t.Helper()
	for _, dir := range []string{y.e.containersDir(), y.e.namesDir(), y.e.idsDir(), y.e.run + "/c"} {
		entries, err := os.ReadDir(dir)
		y.must(err)
		for _, d := range entries {
			y.t.Fatalf("%s: left: %s/%s", place, dir, d.Name())
		}
	}
	checkNoCgroups(y.t, y.e)
	if n, err := y.e.Networks().Inspect(yardNetwork); err == nil && len(n.Members) > 0 {
		y.t.Fatalf("%s: addresses are left: %v", place, n.Members)
	} else if err != nil {
		y.must(err)
	}
}
