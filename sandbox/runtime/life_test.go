package runtime

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/cgroup"
)

// envCreator makes the test binary create the container of a file, start it if
// told so, say "ready" and wait to be killed.
const envCreator = "NARU_TEST_CREATOR"

type creatorJob struct {
	Config Config
	Start  bool
}

func actAsCreator() {
	var job creatorJob
	b, err := os.ReadFile(os.Getenv(envCreator))
	if err == nil {
		err = json.Unmarshal(b, &job)
	}
	var c *Container
	if err == nil {
		c, err = Create(context.Background(), job.Config)
	}
	if err == nil && job.Start {
		err = c.Start(context.Background())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	select {}
}

// createElsewhere lets another process create b's container and kills it.
func createElsewhere(t *testing.T, b *box, start bool) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "job")
	job, err := json.Marshal(creatorJob{b.Config, start})
	must(t, err)
	must(t, os.WriteFile(file, job, 0o600))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envCreator+"="+file)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, _ := bufio.NewReader(out).ReadString('\n')
	must(t, cmd.Process.Kill())
	cmd.Wait()
	if line != "ready\n" {
		t.Fatal(line)
	}
}

// eventually polls a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never:", what)
		}
	}
}

// monitorPid finds the monitor in its own cgroup.
func (b *box) monitorPid(t *testing.T) int {
	t.Helper()
	return b.beside(t, "naru:")
}

// keeperPid finds the keeper of the monitor.
func (b *box) keeperPid(t *testing.T) int {
	t.Helper()
	return b.beside(t, "naru-keep:")
}

// beside finds the process with such a name, when there are two: a monitor and its keeper.
func (b *box) beside(t *testing.T, want string) (found int) {
	t.Helper()
	host, err := cgroup.Detect()
	must(t, err)
	if host.Unified == "" {
		t.Skip("needs the monitor's cgroup: no cgroup2 is mounted")
	}
	eventually(t, "a monitor and its keeper", func() bool {
		data, err := os.ReadFile(filepath.Join(host.Unified, b.Cgroup+".monitor", "cgroup.procs"))
		must(t, err)
		pids, names := strings.Fields(string(data)), ""
		for _, p := range pids {
			name, _ := os.ReadFile("/proc/" + p + "/comm") // it may just have ended
			names += string(name)
			if strings.HasPrefix(string(name), want) {
				found, err = strconv.Atoi(p)
				must(t, err)
			}
		}
		return len(pids) == 2 && strings.Contains(names, "naru:") && strings.Contains(names, "naru-keep:")
	})
	return found
}

// killMonitor kills the monitor alone: its keeper takes its place.
func (b *box) killMonitor(t *testing.T) {
	t.Helper()
	killAll(t, b.monitorPid(t))
}

// killBoth leaves a container without a monitor.
func (b *box) killBoth(t *testing.T) {
	t.Helper()
	keeper, m := b.keeperPid(t), b.monitorPid(t)
	stop(t, m) // or it would make another keeper
	killAll(t, keeper, m)
}

func stop(t *testing.T, pid int) {
	t.Helper()
	must(t, unix.Kill(pid, unix.SIGSTOP))
}

func killAll(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		must(t, err)
		must(t, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
		eventually(t, "it ends", func() bool { return ended(fd) })
		must(t, unix.Close(fd))
	}
}

const ticker = `i=0; while [ ! -e /stop ]; do i=$((i+1)); echo tick $i; usleep 20000; done; exit 5`

func (b *box) log(t testing.TB) string {
	t.Helper()
	var out bytes.Buffer
	must(t, ReadLog(testContext(t), b.Dir, LogOptions{}, &out, io.Discard))
	return out.String()
}

func (b *box) stop(t *testing.T, c *Container) {
	t.Helper()
	e, err := c.Exec(testContext(t), ExecConfig{Process: &specs.Process{Args: []string{"touch", "/stop"}, Cwd: "/", Capabilities: b.Spec.Process.Capabilities}})
	if err != nil || e.Code != 0 {
		t.Fatal("exec touch:", e, err)
	}
}

func TestContainerOutlivesItsCreator(t *testing.T) {
	b := newBox(t, true, "sh", "-c", ticker)
	createElsewhere(t, b, true)
	c, err := Open(b.StateDir, b.Dir)
	must(t, err)
	defer c.Close()
	if c.State() != Running {
		t.Fatal(c.State())
	}
	before := len(b.log(t))
	eventually(t, "the log grows", func() bool { return len(b.log(t)) > before })
	b.stop(t, c)
	if e, err := c.Wait(testContext(t)); err != nil || e.Code != 5 || !e.Known {
		t.Errorf("%+v %v", e, err)
	}
}

func TestCreatedContainerDiesWithItsCreator(t *testing.T) {
	b := newBox(t, true, "true")
	createElsewhere(t, b, false)
	eventually(t, "exit record", func() bool { _, ok, _ := loadExit(b.Dir); return ok })
	c, err := Open(b.StateDir, b.Dir)
	must(t, err)
	defer c.Close()
	if e, err := c.Wait(testContext(t)); err != nil || e.Code != 137 {
		t.Errorf("%+v %v", e, err)
	}
}

func TestDetachedContainerWaitsForStart(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "echo hello")
	b.Detached = true
	createElsewhere(t, b, false)
	c, err := Open(b.StateDir, b.Dir)
	must(t, err)
	defer c.Close()
	if c.State() != Created {
		t.Fatal(c.State())
	}
	must(t, c.Start(testContext(t)))
	if e, err := c.Wait(testContext(t)); err != nil || e.Code != 0 || b.log(t) != "hello\n" {
		t.Errorf("%+v %v %q", e, err, b.log(t))
	}
}

func TestContainerOutlivesItsMonitor(t *testing.T) {
	for _, adopt := range []bool{true, false} {
		b := newBox(t, true, "sh", "-c", ticker)
		c := b.create(t)
		must(t, c.Start(testContext(t)))
		eventually(t, "first tick", func() bool { return b.log(t) != "" })
		b.killBoth(t)
		if c.State() != Running {
			t.Fatal(c.State())
		}
		if adopt {
			before := len(b.log(t))
			again, err := Open(b.StateDir, b.Dir)
			must(t, err)
			defer again.Close()
			eventually(t, "the log grows again", func() bool { return len(b.log(t)) > before+100 })
		}
		b.stop(t, c)
		e, err := c.Wait(testContext(t))
		if err != nil || e.Known && e.Code != 5 || !e.Known && Features().Has("exit codes by pidfd") {
			t.Errorf("adopt %v: %+v %v", adopt, e, err)
		}
		ticksAreWhole(t, b.log(t))
	}
}

// ticksAreWhole checks that no line was lost or torn.
func ticksAreWhole(t *testing.T, log string) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSpace(log), "\n") {
		if line != fmt.Sprint("tick ", i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
}

func TestNobodySawTheEnd(t *testing.T) {
	must(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) // orphans come to us, to be reaped
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	b := newBox(t, true, "sleep", "100")
	createElsewhere(t, b, true)
	rec, err := loadRecord(b.StateDir)
	must(t, err)
	fd, err := rec.Find()
	must(t, err)
	b.killBoth(t)
	must(t, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	must(t, unix.Close(fd))
	_, err = unix.Wait4(rec.Pid, nil, 0, nil)
	must(t, err)
	if _, err := Open(b.StateDir, b.Dir); !errors.Is(err, ErrGone) {
		t.Errorf("got %v, want ErrGone", err)
	}
}

func TestAnotherProcessIsNotTakenForTheContainer(t *testing.T) {
	b := newBox(t, true, "sleep", "100")
	c := b.create(t)
	rec := c.rec
	must(t, c.Start(testContext(t)))
	for name, change := range map[string]func(*record){
		"pid":   func(r *record) { r.Pid = os.Getpid() },
		"boot":  func(r *record) { r.BootID = "other" },
		"start": func(r *record) { r.StartTime += "0" },
		"inode": func(r *record) { r.PidfdInode++ },
	} {
		wrong := rec
		change(&wrong)
		if _, err := wrong.Find(); !errors.Is(err, ErrGone) {
			t.Errorf("%s: got %v, want ErrGone", name, err)
		}
	}
	if err := Destroy(b.StateDir, b.Dir, b.Cgroup); !errors.Is(err, ErrRunning) {
		t.Errorf("destroy of a running container: %v", err)
	}
	must(t, c.Kill(testContext(t)))
}

func TestStoppedContainerIsNotKilledAgain(t *testing.T) {
	b := newBox(t, true, "true")
	b.run(t)
	must(t, Destroy(b.StateDir, b.Dir, b.Cgroup))
	c, err := Open(b.StateDir, b.Dir) // only exit.json is left
	must(t, err)
	must(t, c.Kill(testContext(t))) // must not touch anybody else
	if e, err := c.Wait(testContext(t)); err != nil || e.Code != 0 || c.State() != Stopped {
		t.Error(e, err, c.State())
	}
}

func TestExec(t *testing.T) {
	for _, userns := range []bool{false, true} {
		b := newBox(t, userns, "sh", "-c", "exec sleep 100")
		c := b.create(t)
		must(t, c.Start(testContext(t)))
		run := func(script string) (string, Exit, error) {
			r, w, err := os.Pipe()
			must(t, err)
			defer r.Close()
			p := *b.Spec.Process
			p.Args = []string{"sh", "-c", script}
			e, err := c.Exec(testContext(t), ExecConfig{Process: &p, Stdout: w})
			w.Close()
			out, _ := io.ReadAll(r)
			return string(out), e, err
		}
		for script, want := range map[string]string{
			"id -u": "0\n", "hostname; cat /proc/1/cmdline | tr '\\0' ' '": "", "ls /proc/self/fd; exit 0": "0\n1\n2\n3\n",
			"grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status":             "NoNewPrivs:\t1\nSeccomp:\t2\n",
			"grep -E ':(memory|pids|cpu|devices|cpuacct|):/.' /proc/self/cgroup": "",
		} {
			out, e, err := run(script)
			if err != nil || !strings.HasSuffix(out, want) {
				t.Errorf("%q: got %q %+v %v", script, out, e, err)
			}
		}
		if _, e, err := run("exit 9"); err != nil || e.Code != 9 {
			t.Error(e, err)
		}
		var start *StartError
		if _, err := c.Exec(testContext(t), ExecConfig{Process: &specs.Process{Args: []string{"nope"}}}); !errors.As(err, &start) || start.Code() != 127 {
			t.Error(err)
		}
		short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if e, err := c.Exec(short, ExecConfig{Process: &specs.Process{Args: []string{"sleep", "50"}}}); err == nil || e.Code != 137 {
			t.Error(e, err)
		}
		must(t, c.Pause(testContext(t)))
		if _, err := c.Exec(testContext(t), ExecConfig{Process: b.Spec.Process}); !errors.Is(err, ErrNotRunning) || c.State() != Paused {
			t.Error(err, c.State())
		}
		must(t, c.Kill(testContext(t))) // also while frozen
		if e, err := c.Wait(testContext(t)); err != nil || e.Code != 137 || e.OOM {
			t.Error(e, err)
		}
	}
}

func TestLogIsBounded(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; echo err $i >&2; done")
	b.LogMax = 32 << 10
	out, errs, _ := b.run(t)
	var size int64
	for _, name := range []string{"log", "log.1"} {
		st, err := os.Stat(filepath.Join(b.Dir, name))
		must(t, err)
		size += st.Size()
	}
	if size > b.LogMax || size < b.LogMax/3 {
		t.Errorf("the log has %d bytes, the bound is %d", size, b.LogMax)
	}
	if !strings.HasSuffix(out, "line 3000\n") || !strings.HasSuffix(errs, "err 3000\n") {
		t.Errorf("the end is missing: %q", out[max(0, len(out)-30):])
	}
	var tail bytes.Buffer
	must(t, ReadLog(testContext(t), b.Dir, LogOptions{Tail: 2, Timestamps: true}, &tail, &tail))
	if lines := strings.Split(strings.TrimSpace(tail.String()), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], time.Now().UTC().Format("2006-")) {
		t.Errorf("tail: %q", tail.String())
	}
}

func TestLiveCopiesAreComplete(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "seq 1 20000; echo done >&2")
	r, w, err := os.Pipe()
	must(t, err)
	b.Stdout = w
	got := make(chan string)
	go func() { out, _ := io.ReadAll(r); got <- string(out) }()
	if _, errs, _ := b.run(t); errs != "done\n" {
		t.Errorf("stderr %q", errs)
	}
	w.Close()
	if out := <-got; !strings.HasSuffix(out, "\n20000\n") || strings.Count(out, "\n") != 20000 {
		t.Errorf("%d bytes arrived", len(out))
	}
}

func TestFollowEndsWithTheContainer(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "for i in 1 2 3; do echo $i; usleep 50000; done")
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	var out bytes.Buffer
	must(t, ReadLog(testContext(t), b.Dir, LogOptions{Follow: true}, &out, io.Discard))
	if out.String() != "1\n2\n3\n" {
		t.Errorf("got %q", out.String())
	}
}

// Nothing may stay behind: descriptors, processes; mounts and cgroups are
// checked by every box.
func TestNothingLeaks(t *testing.T) {
	newBox(t, true, "true").run(t) // opens what is opened once
	before, mounts := descriptors(t), mountCount(t)
	for range 5 {
		b := newBox(t, true, "true")
		c := b.create(t)
		must(t, c.Start(testContext(t)))
		_, err := c.Wait(testContext(t))
		must(t, err)
		must(t, c.Close())
		b.Spec.Process.Cwd = "/etc/passwd"
		must(t, Destroy(b.StateDir, b.Dir, b.Cgroup))
		if _, err := Create(testContext(t), b.Config); err == nil {
			t.Error("a file was accepted as working directory")
		}
	}
	eventually(t, "descriptors are closed", func() bool { return descriptors(t) <= before })
	eventually(t, "mounts are gone", func() bool { return mountCount(t) <= mounts })
}

func descriptors(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

func mountCount(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return bytes.Count(b, []byte("\n"))
}

func TestFeaturesAreProbedWithoutTrace(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	r := FeaturesAt(dir)
	for _, f := range r {
		t.Logf("%-45s %v %s", f.Name, f.OK, f.Detail)
	}
	if !r.Has("overlay") || !r.Has("kernel") {
		t.Error("a basic feature is missing")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
