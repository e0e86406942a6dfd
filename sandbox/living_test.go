package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/image"
	"naru/sandbox/runtime"
)

const calledMark = "naru-test-called"

// calledIfAsked makes this process what a monitor calls back. It kills itself at the
// step that the file die-at in the root names, once.
func calledIfAsked() {
	if len(os.Args) != 5 || os.Args[1] != calledMark {
		return
	}
	e, err := Open(Options{Root: os.Args[2], Run: os.Args[3], Callback: os.Args[:4]})
	if err != nil {
		os.Exit(1)
	}
	die := filepath.Join(e.root, "die-at")
	e.step = func(name string) {
		if at, err := os.ReadFile(die); err == nil && string(at) == name && os.Remove(die) == nil {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way to this thread's process
		}
	}
	soon, err := e.Called(context.Background(), os.Args[4])
	switch {
	case err != nil:
		_ = os.WriteFile(filepath.Join(e.root, "called-error"), []byte(err.Error()), 0o600)
		os.Exit(1)
	case soon:
		os.Exit(runtime.CallbackSoon)
	}
	os.Exit(0)
}

// livingEngine is an engine whose containers are looked after by this test binary.
func livingEngine(t *testing.T) *Engine {
	t.Helper()
	e := newEngine(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	e.callback = []string{exe, calledMark, e.root, e.run}
	t.Cleanup(func() {
		if why, err := os.ReadFile(filepath.Join(e.root, "called-error")); err == nil {
			t.Errorf("callback: %s", why)
		}
	})
	return e
}

func run(t *testing.T, e *Engine, c ContainerConfig) Container {
	t.Helper()
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func get(t *testing.T, e *Engine, ref string) Container {
	t.Helper()
	c, err := e.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRestartOnFailure(t *testing.T) {
	e := livingEngine(t)
	c := sh("echo run; touch /seen; exit 3")
	c.Restart = Restart{Policy: RestartOnFailure, Max: 2}
	id := run(t, e, c).ID
	eventually(t, "two restarts", func() bool {
		c := get(t, e, id)
		return c.Restarts == 2 && c.State == "stopped" && strings.Count(logOf(t, e, id), "run") == 3
	})
	if got := get(t, e, id); got.ExitCode != 3 || logOf(t, e, id) != "run\nrun\nrun\n" {
		t.Errorf("%+v, log %q", got, logOf(t, e, id))
	}
	if err := e.Start(t.Context(), id); err != nil { // by hand: it counts anew
		t.Fatal(err)
	}
	eventually(t, "two more", func() bool { return strings.Count(logOf(t, e, id), "run") == 6 && get(t, e, id).State == "stopped" })
}

func TestStopEndsRestarts(t *testing.T) {
	e := livingEngine(t)
	c := sh("echo run; sleep 0.05; exit 0")
	c.Restart.Policy = RestartAlways
	id := run(t, e, c).ID
	eventually(t, "it is restarting", func() bool { return get(t, e, id).State == StateRestarting })
	eventually(t, "it is restarted", func() bool { return get(t, e, id).Restarts >= 1 })
	if err := e.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, id, "stopped")
	eventually(t, "nobody is called any more", func() bool {
		_, err := os.Stat("/sys/fs/cgroup/unified/" + e.events())
		return errors.Is(err, os.ErrNotExist)
	})
	before := logOf(t, e, id)
	mustState(t, e, id, "stopped")
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, id, "stopped")
	if after := logOf(t, e, id); after != before {
		t.Errorf("it ran again: %q", after)
	}
}

// A boot starts always again, and unless-stopped if nobody had stopped it.
func TestRecoverAfterBoot(t *testing.T) {
	e := livingEngine(t)
	for _, test := range []struct {
		policy  string
		stopped bool
		want    string
	}{
		{RestartAlways, true, "running"}, {RestartUnlessStopped, true, "stopped"},
		{RestartUnlessStopped, false, "running"}, {"", false, "stopped"},
	} {
		c := sh("exec sleep 1000")
		c.Restart.Policy = test.policy
		id := run(t, e, c).ID
		if err := e.Stop(t.Context(), id, -1); err != nil {
			t.Fatal(err)
		}
		state := life{Restarts: 1, Delay: time.Second, Stopped: test.stopped, Boot: "another"}
		if err := saveJSON(filepath.Join(e.dir(id), lifeFile), state); err != nil {
			t.Fatal(err)
		}
		if err := e.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := get(t, e, id).State; got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
		if err := e.Remove(t.Context(), id, true); err != nil {
			t.Fatal(err)
		}
	}
}

// The callback may be killed at any step: the monitor calls again. NARU_LONG=1 tries
// all steps.
func TestCallbackKilledAnywhere(t *testing.T) {
	e := livingEngine(t)
	die := filepath.Join(e.root, "die-at")
	steps := []string{"counted", "cloned", "started"}
	if os.Getenv("NARU_LONG") != "" {
		steps = []string{"settled", "counted", "cloned", "attached", "created", "starting", "started"}
	}
	for _, step := range steps {
		if err := os.WriteFile(die, []byte(step), 0o600); err != nil {
			t.Fatal(err)
		}
		c := sh("[ -e /second ] && exec sleep 1000; touch /second; exit 1")
		c.Restart.Policy = RestartAlways
		if step == "attached" {
			c.Network = "bridge"
		}
		id := run(t, e, c).ID
		eventually(t, step+": it runs again", func() bool {
			_, err := os.Stat(die)
			c := get(t, e, id)
			return errors.Is(err, os.ErrNotExist) && c.State == "running" && c.Restarts > 0
		})
		if err := e.Remove(t.Context(), id, true); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRemovedWithoutAgent(t *testing.T) {
	e := livingEngine(t)
	c := sh("exit 4")
	c.Remove, c.Detached = true, true
	id := run(t, e, c).ID
	eventually(t, "it is removed", func() bool { _, err := e.Get(t.Context(), id); return errors.Is(err, ErrNotFound) })
}

// The program that is called back may be gone, after an upgrade for instance.
func TestCallbackMovedAway(t *testing.T) {
	e := livingEngine(t)
	exe := filepath.Join(t.TempDir(), "naru")
	if err := copyFile(exe, e.callback[0]); err != nil {
		t.Fatal(err)
	}
	e.callback[0] = exe
	c := sh("while [ ! -e /go ]; do sleep 0.02; done; [ -e /second ] && exec sleep 1000; touch /second")
	c.Restart.Policy = RestartAlways
	id := run(t, e, c).ID
	if err := os.Remove(exe); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Exec(t.Context(), id, ExecOptions{Args: []string{"touch", "/go"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs again", func() bool { c := get(t, e, id); return c.State == "running" && c.Restarts == 1 })
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func TestRestartKeepsWhatIsToBeRemoved(t *testing.T) {
	e := livingEngine(t)
	c := sh("trap 'exit 0' TERM; echo run; while :; do sleep 0.02; done")
	c.Remove, c.Detached = true, true
	id := run(t, e, c).ID
	eventually(t, "it runs", func() bool { return logOf(t, e, id) == "run\n" })
	if err := e.Restart(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, id, "running")
	eventually(t, "it runs again", func() bool { return logOf(t, e, id) == "run\nrun\n" })
	if err := e.Stop(t.Context(), id, -1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is removed", func() bool { _, err := e.Get(t.Context(), id); return errors.Is(err, ErrNotFound) })
}

func TestHealth(t *testing.T) {
	e := livingEngine(t)
	c := sh("exec sleep 1000")
	c.Health = &image.Healthcheck{Test: []string{"CMD-SHELL", "cat /ok; echo $HOSTNAME; [ -e /ok ]"}, Interval: 100 * time.Millisecond, Retries: 2}
	c.Hostname = "probed"
	id := run(t, e, c).ID
	if got := get(t, e, id); got.Health == nil || got.Health.Status != HealthStarting {
		t.Fatalf("%+v", got.Health)
	}
	eventually(t, "unhealthy", func() bool { return get(t, e, id).Health.Status == HealthUnhealthy })
	if h := get(t, e, id).Health; h.FailingStreak < 2 || !strings.Contains(h.Log[0].Output, "probed\n") || h.Log[0].ExitCode != 1 {
		t.Errorf("%+v", h)
	}
	if _, err := e.Exec(t.Context(), id, ExecOptions{Args: []string{"touch", "/ok"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "healthy", func() bool { h := get(t, e, id).Health; return h.Status == HealthHealthy && len(h.Log) == 5 })
	if err := e.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Exec(t.Context(), id, ExecOptions{Args: []string{"true"}}); !errors.Is(err, ErrNotRunning) {
		t.Errorf("exec while paused: %v", err)
	}
	if err := e.Unpause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := e.Unpause(t.Context(), id); err == nil {
		t.Error("a running container was unpaused")
	}
	happened := recorded(t, e, id)
	for _, want := range []string{"health_status: unhealthy", "health_status: healthy", "pause", "unpause"} {
		at := slices.Index(happened, want)
		if at < 0 {
			t.Fatalf("no %s, or not in this order, among the events %v", want, recorded(t, e, id))
		}
		happened = happened[at+1:]
	}
}

// TestUpdateRestart gives policies to what was started without one.
func TestUpdateRestart(t *testing.T) {
	e := livingEngine(t)
	to := func(policy string) func(*ContainerConfig) {
		return func(c *ContainerConfig) { c.Restart = Restart{Policy: policy} }
	}
	id := run(t, e, sh("until rm /end 2>/dev/null; do sleep 0.02; done; exit 4")).ID
	warning, err := e.Update(t.Context(), id, to(RestartAlways))
	if err != nil || !strings.Contains(warning, "policy always") {
		t.Errorf("a container whose monitor does not call back: %q, %v", warning, err)
	}
	if err := e.Restart(t.Context(), id, -1); err != nil {
		t.Fatal(err)
	}
	first := get(t, e, id).Started
	if _, err := e.Exec(t.Context(), id, ExecOptions{Args: []string{"touch", "/end"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a restart", func() bool { c := get(t, e, id); return c.State == "running" && c.Started.After(first) })
	if warning, err = e.Update(t.Context(), id, to(RestartNo)); err != nil || warning != "" {
		t.Errorf("%q, %v", warning, err)
	}
	if err := e.Kill(t.Context(), id, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, id, "stopped")
	if warning, err = e.Update(t.Context(), id, to(RestartAlways)); err != nil || warning != "" {
		t.Errorf("%q, %v", warning, err)
	}
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustState(t, e, id, "stopped") // nobody has started it
	if _, err := e.Update(t.Context(), id, to("sometimes")); err == nil {
		t.Error("no error")
	}
}

func TestHealthCounts(t *testing.T) {
	h := Health{Status: HealthStarting}
	fail, ok := HealthCheck{ExitCode: 1}, HealthCheck{}
	for i, step := range []struct {
		check    HealthCheck
		starting bool
		want     string
		streak   int
	}{
		{fail, true, HealthStarting, 0}, {fail, false, HealthStarting, 1}, {fail, false, HealthUnhealthy, 2},
		{ok, false, HealthHealthy, 0}, {fail, true, HealthHealthy, 1}, {fail, true, HealthUnhealthy, 2},
	} {
		h.add(step.check, step.starting, 2)
		if h.Status != step.want || h.FailingStreak != step.streak {
			t.Errorf("%d: %+v", i, h)
		}
	}
	if len(h.Log) != healthLog {
		t.Errorf("%d checks are kept", len(h.Log))
	}
}

func TestHealthTimesOut(t *testing.T) {
	e := livingEngine(t)
	c := sh("exec sleep 1000")
	c.Health = &image.Healthcheck{Test: []string{"CMD", "sleep", "50"}, Interval: 50 * time.Millisecond, Timeout: 200 * time.Millisecond, Retries: 1}
	id := run(t, e, c).ID
	eventually(t, "unhealthy", func() bool { return get(t, e, id).Health.Status == HealthUnhealthy })
	if h := get(t, e, id).Health; h.Log[0].ExitCode != -1 || !strings.Contains(h.Log[0].Output, "exceeded timeout (200ms)") {
		t.Errorf("%+v", h)
	}
}

func TestMergeHealth(t *testing.T) {
	img := &image.Healthcheck{Test: []string{"CMD-SHELL", "probe"}, Interval: time.Second}
	for _, test := range []struct {
		own  *image.Healthcheck
		want string
	}{
		{nil, `["CMD","/bin/x","-e","probe"] 1s 3`},
		{&image.Healthcheck{Retries: 7}, `["CMD","/bin/x","-e","probe"] 1s 7`},
		{&image.Healthcheck{Test: []string{"NONE"}}, ""},
		{&image.Healthcheck{Test: []string{"CMD", "a"}, Interval: time.Minute}, `["CMD","a"] 1m0s 3`},
	} {
		got := ""
		if h := mergeHealth(test.own, img, []string{"/bin/x", "-e"}); h != nil {
			argv, _ := json.Marshal(h.Test)
			got = fmt.Sprintf("%s %s %d", argv, h.Interval, h.Retries)
		}
		if got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestParseRestart(t *testing.T) {
	for text, want := range map[string]string{
		"": "no", "no": "no", "always": "always", "unless-stopped": "unless-stopped", "on-failure": "on-failure", "on-failure:5": "on-failure:5",
		"sometimes": "", "always:3": "", "on-failure:x": "", "on-failure:-1": "",
	} {
		r, err := ParseRestart(text)
		if (err != nil) != (want == "") || err == nil && r.String() != want {
			t.Errorf("%q: %v %v", text, r, err)
		}
	}
}

func TestPoliciesNeedACallback(t *testing.T) {
	e := newEngine(t)
	c := sh("true")
	c.Restart.Policy = RestartAlways
	if _, err := e.Run(t.Context(), c, Stdio{}); err == nil || !strings.Contains(err.Error(), "call back") {
		t.Errorf("got %v", err)
	}
	c = sh("true")
	c.Restart.Policy, c.Remove = RestartAlways, true
	if _, err := e.Run(t.Context(), c, Stdio{}); err == nil || !strings.Contains(err.Error(), "removed at its end") {
		t.Errorf("got %v", err)
	}
}
