package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/network"
	"naru/sandbox/runtime/cgroup"
)

// job is one operation of an engine that is going to be killed.
type job struct {
	Do, Name string
	Step     int // die at this call of Engine.step, counted from 1; 0: do not
	Barrier  int // wait before this step of the list, on descriptor 3; -1: not
	Hold     bool
}

const (
	jobVariable  = "NARU_TEST_JOB"
	rootVariable = "NARU_TEST_ROOT"
	runVariable  = "NARU_TEST_RUN"
)

// victim is the container of most kills: what it writes and how it ends tell whether
// it was let live.
func victim(name string) ContainerConfig {
	c := sh("trap 'echo bye; exit 5' TERM; echo ready; sleep 1000 & wait")
	c.Name, c.Network = name, yardNetwork
	c.Net.Ports = []network.Port{{Host: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, Port: 80, Proto: "tcp"}}
	return c
}

const (
	lifeLog = "ready\nbye\n" // of one life, from start to stop
	lifeEnd = 5
)

// do makes an engine do a job.
func (y *yard) do(ctx context.Context, j job) error { return perform(ctx, y.e, j) }

func perform(ctx context.Context, e *Engine, j job) error {
	switch j.Do {
	case "run":
		_, err := e.Run(ctx, victim(j.Name), Stdio{})
		return err
	case "create, start":
		c, err := e.Create(ctx, victim(j.Name), Stdio{})
		if err != nil {
			return err
		}
		return e.Start(ctx, c.ID)
	case "define":
		_, err := e.Define(ctx, victim(j.Name))
		return err
	case "start":
		return e.Start(ctx, j.Name)
	case "restart":
		return e.Restart(ctx, j.Name, 0)
	case "stop":
		return e.Stop(ctx, j.Name, 0)
	case "kill":
		return e.Kill(ctx, j.Name, unix.SIGKILL)
	case "remove":
		return e.Remove(ctx, j.Name, true)
	case "exec":
		code, err := e.Exec(ctx, j.Name, ExecOptions{Args: []string{"sh", "-c", "exit 3"}})
		if err == nil && code != 3 {
			err = fmt.Errorf("exit code %d", code)
		}
		return err
	case "recover":
		return e.Recover(ctx)
	}
	return errors.New("unknown job " + j.Do)
}

// jobIfAsked makes this process a child of the test that does a job and dies.
func jobIfAsked() {
	text := os.Getenv(jobVariable)
	if text == "" {
		return
	}
	if err := doJob(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func doJob(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	e, err := Open(Options{Root: os.Getenv(rootVariable), Run: os.Getenv(runVariable)})
	if err != nil {
		return err
	}
	if j.Hold { // until the tracer has hold of us
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
			return err
		}
	}
	n := 0
	e.step = func(string) {
		if n++; n == j.Step {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way to this thread's process
		}
	}
	ctx := context.Background()
	if j.Barrier >= 0 {
		syscall.CloseOnExec(3)
		ctx = withBarrier(ctx, os.NewFile(3, "barrier"), j.Barrier)
	}
	return perform(ctx, e, j)
}

// child is a process that does a job.
func (y *yard) child(j job) *exec.Cmd {
	text, err := json.Marshal(j)
	y.must(err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killsVariable+"=", jobVariable+"="+string(text), rootVariable+"="+y.e.root, runVariable+"="+y.e.run)
	return cmd
}

// scene is an operation to be killed: what is there before, and what may come of it.
type scene struct {
	do     string
	before string // "", "running" or "stopped": a container that was made before
	absent bool   // it may be gone afterwards, or never have been there
	fate   int    // exit code that the operation itself brings; 0: none but that of a stop
}

func scenes() []scene {
	return []scene{
		{do: "run", absent: true},
		{do: "create, start", absent: true},
		{do: "define", absent: true},
		{do: "start", before: "defined"},
		{do: "start", before: "stopped"},
		{do: "restart", before: "running"},
		{do: "stop", before: "running"},
		{do: "kill", before: "running", fate: 137},
		{do: "remove", before: "running", absent: true, fate: 137},
		{do: "remove", before: "stopped", absent: true},
	}
}

func killAtEngineSteps(y *yard) {
	for _, s := range scenes() {
		group := "engine: " + strings.TrimSpace(s.do+" "+s.before)
		var names []string
		y.setUp(s)
		y.e.step = func(name string) { names = append(names, name) }
		y.must(y.do(y.t.Context(), job{Do: s.do, Name: "victim"}))
		y.e.step = func(string) {}
		y.prove(group, s)
		steps := make([]int, len(names))
		for i := range steps {
			steps[i] = i + 1
		}
		for _, n := range sample(y, steps, 2) {
			place := fmt.Sprintf("%s: %d %s", group, n, names[n-1])
			y.setUp(s)
			cmd := y.child(job{Do: s.do, Name: "victim", Step: n, Barrier: -1})
			y.must(cmd.Start())
			mustDie(y.t, cmd)
			y.count(group, "creator", names[n-1], y.prove(place, s))

			y.setUp(s)
			if y.monitorDiesAt(n, s) {
				y.count(group, "monitor", names[n-1], y.prove(place+", monitor", s))
			} else {
				y.prove(place, s)
			}
		}
	}
}

// monitorDiesAt kills the container's monitor at a step of the operation, if there is one.
func (y *yard) monitorDiesAt(n int, s scene) (died bool) {
	e := y.fresh()
	at := 0
	e.step = func(string) {
		if at++; at != n {
			return
		}
		if pid := y.monitorPid(); pid > 0 {
			y.kill(pid)
			died = true
		}
	}
	// The operation may fail, or not: what counts is what is left.
	_ = perform(y.t.Context(), e, job{Do: s.do, Name: "victim"})
	return died
}

// monitorPid finds the monitor in its own cgroup; 0: there is none. While only one
// container is there, its id need not be known.
func (y *yard) monitorPid() int { return y.beside(false) }

// keeperPid finds the keeper.
func (y *yard) keeperPid() int { return y.beside(true) }

func (y *yard) beside(keeper bool) int {
	for _, path := range y.monitorGroups() {
		if pid := named(path, keeper); pid > 0 {
			return pid
		}
	}
	return 0
}

// monitorGroups are the lists of processes of the cgroups of monitors.
func (y *yard) monitorGroups() []string {
	host, err := cgroup.Detect()
	y.must(err)
	found, err := filepath.Glob(filepath.Join(host.Unified, "naru-"+y.e.hash, "*.monitor", "cgroup.procs"))
	y.must(err)
	return found
}

// named finds a monitor or a keeper in a cgroup by its name; 0: there is none.
func named(procs string, keeper bool) int {
	data, _ := os.ReadFile(procs) // it may just have gone
	for _, p := range strings.Fields(string(data)) {
		name, err := os.ReadFile("/proc/" + p + "/comm")
		if err == nil && (keeper && strings.HasPrefix(string(name), "naru-keep:") || !keeper && strings.HasPrefix(string(name), "naru:")) {
			pid, _ := strconv.Atoi(p) // it is one
			return pid
		}
	}
	return 0
}

// guarded waits until a monitor other than old has a keeper, and nothing else is there
// (see monitor/keeper.go: for a moment there is).
func (y *yard) guarded(old int) (monitor, keeper int) {
	y.t.Helper()
	eventually(y.t, "a monitor and its keeper", func() bool {
		monitor, keeper = y.monitorPid(), y.keeperPid()
		return monitor > 0 && monitor != old && keeper > 0 && y.besides() == 2
	})
	return monitor, keeper
}

func (y *yard) besides() (n int) {
	for _, path := range y.monitorGroups() {
		data, _ := os.ReadFile(path) // it may just have gone
		n += len(strings.Fields(string(data)))
	}
	return n
}

// killBoth leaves a container without a monitor.
func (y *yard) killBoth() {
	y.t.Helper()
	monitor, keeper := y.guarded(0)
	y.must(unix.Kill(monitor, unix.SIGSTOP)) // or it would make another keeper
	y.kill(keeper)
	y.kill(monitor)
}

// kill kills a process and waits until it is dead.
func (y *yard) kill(pid int) {
	y.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	y.must(err)
	defer unix.Close(fd)
	y.must(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for n := 0; n == 0; {
		if n, err = unix.Poll(p, 10000); err != nil && err != unix.EINTR || n == 0 && err == nil {
			y.t.Fatalf("process %d does not die: %v", pid, err)
		}
	}
}

// setUp makes what is there before.
func (y *yard) setUp(s scene) {
	y.t.Helper()
	if s.before == "" {
		return
	}
	if s.before == "defined" {
		y.must(y.do(y.t.Context(), job{Do: "define", Name: "victim"}))
		return
	}
	y.must(y.do(y.t.Context(), job{Do: "run", Name: "victim"}))
	eventually(y.t, "it is ready", func() bool { return logOf(y.t, y.e, "victim") == "ready\n" })
	if s.before == "stopped" {
		y.must(y.e.Stop(y.t.Context(), "victim", 0))
	}
}

// prove lets an engine that knows nothing recover, checks that the container keeps
// every promise, and removes it. It returns what had become of it.
func (y *yard) prove(place string, s scene) (outcome string) {
	y.t.Helper()
	e := y.fresh()
	var c Container
	eventually(y.t, place+": a state that lasts", func() bool {
		y.must(e.Recover(y.t.Context())) // a monitor may need a moment to see that its creator is gone
		var err error
		c, err = e.Get(y.t.Context(), "victim")
		if errors.Is(err, ErrNotFound) {
			c = Container{State: "absent"}
			return true
		}
		y.must(err)
		return c.State == "running" || c.State == "stopped" || c.State == "created" && c.Pid == 0
	})
	outcome = c.State
	switch c.State {
	case "absent":
		if !s.absent {
			y.t.Fatalf("%s: the container is lost", place)
		}
	case "running":
		outcome += y.proveRunning(place, e, s)
	case "stopped":
		outcome += y.proveStopped(place, e, s, c)
	}
	if c.State != "absent" {
		if err := e.Remove(y.t.Context(), "victim", true); err != nil {
			y.t.Fatalf("%s: remove: %v", place, err)
		}
	}
	y.clean(place)
	return outcome
}

// past is what the log says of the time before the operation.
func (s scene) past() string {
	if s.before == "stopped" {
		return lifeLog
	}
	return ""
}

// gone is what a life says that the operation itself ends.
func (s scene) gone() string {
	if s.do == "restart" {
		return lifeLog
	}
	return ""
}

// proveRunning asks the container for an exec and its end.
func (y *yard) proveRunning(place string, e *Engine, s scene) string {
	y.t.Helper()
	ends := s.do == "stop" || s.do == "kill" || s.do == "remove" || s.do == "restart" // it may end at this moment
	code, err := e.Exec(y.t.Context(), "victim", ExecOptions{Args: []string{"sh", "-c", "exit 3"}})
	if (err != nil || code != 3) && !ends {
		y.t.Fatalf("%s: exec: %d, %v", place, code, err)
	}
	eventually(y.t, place+": ready", func() bool { return strings.Contains(strings.TrimPrefix(logOf(y.t, e, "victim"), s.past()), "ready\n") })
	y.must(e.Stop(y.t.Context(), "victim", 0))
	c, err := e.Get(y.t.Context(), "victim")
	y.must(err)
	log := logOf(y.t, e, "victim")
	right := c.ExitKnown && (c.ExitCode == lifeEnd && (log == s.past()+lifeLog || s.do == "restart" && (log == lifeLog+lifeLog || log == "ready\n"+lifeLog)) ||
		s.fate != 0 && c.ExitCode == s.fate)
	if !right || c.State != "stopped" {
		y.t.Errorf("%s: a running container ended as %s with %d (known: %v), log %q", place, c.State, c.ExitCode, c.ExitKnown, log)
	}
	return ""
}

// proveStopped checks code and log of a container that has ended.
func (y *yard) proveStopped(place string, e *Engine, s scene, c Container) string {
	y.t.Helper()
	log := logOf(y.t, e, "victim")
	life := s.past()
	if s.before == "running" {
		life = "ready\n"
	}
	what := fmt.Sprintf(" with %d", c.ExitCode)
	if !c.ExitKnown {
		what = ", unknown end"
	}
	switch {
	case c.ExitKnown && c.ExitCode == lifeEnd && (log == lifeLog || s.do == "restart" && log == lifeLog+lifeLog):
	case c.ExitKnown && c.ExitCode == 137 && log == life && s.before != "running": // killed before its program did anything
	case c.ExitKnown && c.ExitCode == 137 && log == s.past()+s.gone()+"ready\n": // Recover found it between its gate and execve
	case c.ExitKnown && c.ExitCode == 125 && log == s.past()+s.gone(): // the start failed
	case c.ExitKnown && c.ExitCode == lifeEnd && log == life && s.before == "stopped": // the start was never made
	case c.ExitKnown && c.ExitCode == s.fate && log == life:
	case c.ExitKnown && c.ExitCode == 137 && log == lifeLog && s.do == "restart": // the second life never began
	case !c.ExitKnown && s.before == "running" && strings.HasSuffix(place, ", monitor") && (log == lifeLog || log == life) && !y.tellsExits():
		// Nobody is left who could be told: its parent is gone, and this kernel tells no other.
	default:
		y.t.Errorf("%s: stopped%s, log %q", place, what, log)
	}
	return what
}

// tellsExits says whether the kernel tells how a process ended to who is not its parent
// (PIDFD_INFO_EXIT, Linux 6.15).
func (y *yard) tellsExits() bool {
	y.t.Helper()
	cmd := exec.Command("true")
	y.must(cmd.Start())
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	y.must(err)
	defer unix.Close(fd)
	y.must(cmd.Wait())
	_, ok := monitor.ExitStatus(fd)
	return ok
}

// within waits for a value.
func within[T any](c <-chan T, d time.Duration) (v T, ok bool) {
	select {
	case v, ok = <-c:
		return v, ok
	case <-time.After(d):
		return v, false
	}
}
