package runtime

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A killed monitor is back without anybody's help: the end is seen, and whoever was
// attached sees all of the output, once.
func TestKeeperTakesTheMonitorsPlace(t *testing.T) {
	b := newBox(t, true, "sh", "-c", ticker)
	b.OpenStdin = true
	c := b.create(t)
	_, s := attach(t, c, AttachOptions{})
	must(t, c.Start(testContext(t)))
	for range 3 {
		seen := len(s.String())
		s.shows(t, "tick")
		b.killMonitor(t)
		eventually(t, "the output goes on", func() bool { return len(s.String()) > seen+20 })
	}
	if status, err := c.MonitorStatus(testContext(t)); err != nil || status.Protocol != 3 {
		t.Errorf("%+v %v", status, err)
	}
	b.stop(t, c)
	e, err := c.Wait(testContext(t))
	if err != nil || e.Known && e.Code != 5 || !e.Known && Features().Has("exit codes by pidfd") {
		t.Errorf("%+v %v", e, err)
	}
	if err := <-s.done; err != nil || s.String() != b.log(t) {
		t.Errorf("%v: %d bytes were shown, the log has %d", err, len(s.String()), len(b.log(t)))
	}
	ticksAreWhole(t, b.log(t))
}

// A killed keeper is replaced, and ends with the monitor.
func TestMonitorMakesAnotherKeeper(t *testing.T) {
	b := newBox(t, true, "sh", "-c", ticker)
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	before, m := b.keeperPid(t), b.monitorPid(t)
	killAll(t, before)
	if after := b.keeperPid(t); after == before || b.monitorPid(t) != m {
		t.Errorf("keeper %d after %d, monitor %d after %d", after, before, b.monitorPid(t), m)
	}
	keeper := b.keeperPid(t)
	must(t, c.Kill(testContext(t)))
	if e, err := c.Wait(testContext(t)); err != nil || e.Code != 137 || !e.Known {
		t.Errorf("%+v %v", e, err)
	}
	eventually(t, "the keeper ends", func() bool {
		name, err := os.ReadFile("/proc/" + strconv.Itoa(keeper) + "/comm")
		return err != nil || !strings.HasPrefix(string(name), "naru-keep:")
	})
}

// A start that is asked for while the monitor is being replaced is made.
func TestCreatedContainerOutlivesItsMonitor(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "echo hello; exit 6")
	c := b.create(t)
	a, err := c.Attach(testContext(t), AttachOptions{}) // it answers when it knows that all is recorded
	must(t, err)
	must(t, a.Close())
	b.killMonitor(t)
	must(t, c.Start(testContext(t)))
	e, err := c.Wait(testContext(t))
	if err != nil || e.Known && e.Code != 6 || !e.Known && Features().Has("exit codes by pidfd") || b.log(t) != "hello\n" {
		t.Errorf("%+v %v %q", e, err, b.log(t))
	}
}

// The helper of an exec is killed: its creator holds a pidfd, and the kernel tells.
func TestExecOutlivesItsHelper(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "exec sleep 100")
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	type result struct {
		e   Exit
		err error
	}
	done := make(chan result, 1)
	p := &specs.Process{Args: []string{"sh", "-c", "touch /up; while [ ! -e /go ]; do usleep 10000; done; exit 9"}, Cwd: "/", Capabilities: b.Spec.Process.Capabilities}
	go func() {
		e, err := c.Exec(testContext(t), ExecConfig{Process: p})
		done <- result{e, err}
	}()
	eventually(t, "it runs", func() bool { _, err := os.Stat(filepath.Join(b.Root.Upper, "up")); return err == nil })
	killAll(t, helperPid(t))
	if e, err := c.Exec(testContext(t), ExecConfig{Process: &specs.Process{Args: []string{"touch", "/go"}, Cwd: "/", Capabilities: p.Capabilities}}); err != nil || e.Code != 0 {
		t.Fatal(e, err)
	}
	r := <-done
	if known := Features().Has("exit codes by pidfd"); known && (r.err != nil || r.e.Code != 9 || !r.e.Known) || !known && r.err == nil && r.e.Code != 9 {
		t.Errorf("%+v %v", r.e, r.err)
	}
	must(t, c.Kill(testContext(t)))
}

// helperPid finds the exec helper among our children.
func helperPid(t *testing.T) int {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	for _, path := range found {
		stat, _ := os.ReadFile(path) // it may just have ended
		if name, rest, ok := strings.Cut(string(stat), ") "); ok && strings.HasSuffix(name, "(naru-exec") {
			if f := strings.Fields(rest); f[1] == strconv.Itoa(os.Getpid()) {
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				must(t, err)
				return pid
			}
		}
	}
	t.Fatal("no helper")
	return 0
}
