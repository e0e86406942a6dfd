package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"naru/sandbox"
)

// keyboard is the terminal of a person at this test: what is typed on master a
// command reads from slave.
type keyboard struct {
	master, slave *os.File
	before        unix.Termios
}

func newKeyboard(t *testing.T) *keyboard {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("needs a terminal: ", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close(); slave.Close() })
	k := &keyboard{master: master, slave: slave}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 31, Col: 93}); err != nil {
		t.Fatal(err)
	}
	k.before = k.mode(t)
	return k
}

func (k *keyboard) mode(t *testing.T) unix.Termios {
	t.Helper()
	mode, err := unix.IoctlGetTermios(int(k.slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *mode
}

func (k *keyboard) types(t *testing.T, text string) {
	t.Helper()
	if _, err := k.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// person is a command that runs at a keyboard.
type person struct {
	mu     sync.Mutex
	out    bytes.Buffer
	done   chan error
	screen *keyboard
}

func (p *person) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *person) sees(t *testing.T, text string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		p.mu.Lock()
		got := p.out.String()
		p.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never sees %q in %q", text, got)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// ends checks the exit code and that the keyboard is as it was.
func (p *person) ends(t *testing.T, code int) {
	t.Helper()
	select {
	case err := <-p.done:
		got, exit := 0, new(ExitError)
		if errors.As(err, &exit) {
			got = exit.Code
		}
		if got != code || err != nil && exit == nil {
			t.Errorf("ends with %v, want code %d", err, code)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("never ends")
	}
	if p.screen.mode(t) != p.screen.before {
		t.Error("the terminal is not as it was")
	}
}

func (c console) at(k *keyboard, args ...string) *person {
	p := &person{done: make(chan error, 1), screen: k}
	env := &Env{Stdin: k.slave, Stdout: p, Stderr: p}
	go func() { p.done <- Run(c.t.Context(), append([]string{"--root", c.root, "--run", c.run}, args...), env) }()
	return p
}

const shell = "while read line; do echo \"got $line\"; done; exit 5"

func TestInteractiveTerminal(t *testing.T) {
	c := newConsole(t)
	k := newKeyboard(t)
	p := c.at(k, "run", "-it", "--name", "box", "--network", "none", "busybox", "sh", "-c", shell)
	eventuallyRaw(t, k)
	k.types(t, "one\r")
	p.sees(t, "got one")
	second := newKeyboard(t)
	p2 := c.at(second, "attach", "box")
	eventuallyRaw(t, second)
	second.types(t, "two\r")
	p.sees(t, "got two")
	p2.sees(t, "got two")
	second.types(t, "\x10x\x10\x10\x11") // a ctrl-p that is no begin, then one that is
	p2.ends(t, 0)
	p.sees(t, "x")
	k.types(t, "\x10\x11")
	p.ends(t, 0)
	p = c.at(k, "attach", "box")
	eventuallyRaw(t, k)
	k.types(t, "\rthree\r")
	p.sees(t, "got three")
	k.types(t, "\x04") // the end of input, by the container's terminal
	p.ends(t, 5)
	if out := c.ok("logs", "box"); !strings.Contains(out, "got one") || !strings.Contains(out, "got three") {
		t.Errorf("log: %q", out)
	}
	k = newKeyboard(t) // a read of the other one is still under way, which ends with its process
	p = c.at(k, "start", "-ai", "box")
	eventuallyRaw(t, k)
	k.types(t, "again\r")
	p.sees(t, "got again")
	k.types(t, "\x04")
	p.ends(t, 5)
}

func eventuallyRaw(t *testing.T, k *keyboard) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for k.mode(t).Lflag&unix.ICANON != 0 {
		if time.Now().After(deadline) {
			t.Fatal("the terminal never becomes raw")
		}
		<-time.After(5 * time.Millisecond)
	}
	if !term.IsTerminal(int(k.slave.Fd())) {
		t.Fatal("no terminal")
	}
}

func TestExecTerminal(t *testing.T) {
	c := newConsole(t)
	c.ok("run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000")
	k := newKeyboard(t)
	p := c.at(k, "exec", "-it", "box", "sh", "-c", shell)
	eventuallyRaw(t, k)
	k.types(t, "one\r")
	p.sees(t, "got one")
	k.types(t, "\x04")
	p.ends(t, 5)
	k = newKeyboard(t)
	p = c.at(k, "exec", "-it", "box", "nope")
	p.ends(t, 127)
	p = c.at(k, "exec", "-t", "box", "sh", "-c", "exit 3")
	p.ends(t, 3)
	if code := c.code("exec", "-it", "box", "true"); code != exitEngine {
		t.Errorf("exec -it without a terminal: code %d", code)
	}
	if out := c.ok("exec", "-d", "box", "sh", "-c", "echo x >/made"); out != "" {
		t.Errorf("exec -d printed %q", out)
	}
	if out := c.ok("exec", "box", "sh", "-c", "while ! cat /made 2>/dev/null; do :; done"); out != "x\n" {
		t.Errorf("%q", out)
	}
}

func TestDetachKeys(t *testing.T) {
	keys, err := parseKeys("ctrl-p,ctrl-q")
	if err != nil || !slices.Equal(keys, []byte{16, 17}) {
		t.Fatal(keys, err)
	}
	for in, want := range map[string]string{
		"abc": "abc", "a\x10b": "a\x10b", "\x10\x10": "\x10\x10", "a\x10": "a\x10", "x\x10\x11y": "x!", "\x10\x10\x11": "\x10!", "\x11\x10z": "\x11\x10z",
	} {
		var out bytes.Buffer
		if err := copyKeys(&out, strings.NewReader(in), keys); errors.Is(err, errDetached) {
			out.WriteByte('!')
		}
		if out.String() != want {
			t.Errorf("%q: got %q, want %q", in, out.String(), want)
		}
	}
	for _, bad := range []string{"ctrl-", "ab", "ctrl-1", "a,,b"} {
		if _, err := parseKeys(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestLifeFlagsAreChecked(t *testing.T) {
	c := newConsole(t)
	for _, args := range [][]string{
		{"--restart", "sometimes"}, {"--restart", "always", "--rm"}, {"--log-opt", "max-size=x"}, {"--log-opt", "max-file=0"},
		{"--log-opt", "a=b"}, {"--log-driver", "syslog"}, {"--no-healthcheck", "--health-cmd", "true"}, {"--health-interval", "-1s"}, {"--detach-keys", "ctrl-"},
	} {
		if code := c.code(append(append([]string{"run"}, args...), "busybox", "true")...); code != exitEngine {
			t.Errorf("%v: code %d", args, code)
		}
	}
}

func TestStatusShowsHealthAndRestarts(t *testing.T) {
	now := time.Now()
	for want, c := range map[string]sandbox.Container{
		"Up 5 seconds (healthy)":          {State: "running", Started: now.Add(-5 * time.Second), Health: &sandbox.Health{Status: "healthy"}},
		"Up 5 seconds (health: starting)": {State: "running", Started: now.Add(-5 * time.Second), Health: &sandbox.Health{Status: "starting"}},
		"Restarting (3) 2 seconds ago":    {State: "restarting", ExitCode: 3, Finished: now.Add(-2 * time.Second)},
	} {
		if got := status(c); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestDetachedIsRemovedByItsMonitor(t *testing.T) {
	c := newConsole(t)
	c.ok("run", "-d", "--rm", "--name", "gone", "--network", "none", "busybox", "true")
	c.ok("run", "-d", "--restart", "on-failure:1", "--name", "again", "--network", "none", "busybox", "sh", "-c", "exit 4")
	deadline := time.Now().Add(10 * time.Second)
	for c.code("inspect", "gone") == 0 || c.ok("inspect", "-f", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "again") != "1 exited 4\n" {
		if time.Now().After(deadline) {
			t.Fatal(c.ok("ps", "-a"))
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestMonitorsNeedNoRegistries(t *testing.T) {
	c := newConsole(t)
	c.ok("run", "-d", "--restart", "on-failure:1", "--name", "again", "--network", "none", "busybox", "sh", "-c", "until [ -e /go ]; do sleep 0.02; done; exit 4")
	registries := filepath.Join(c.root, "registries.yaml")
	if err := os.WriteFile(registries, []byte("nonsense: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(registries)
	if code := c.code("ps"); code == 0 {
		t.Error("nobody has read registries.yaml")
	}
	e, err := sandbox.Open(sandbox.Options{Root: c.root, Run: c.run})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Exec(t.Context(), "again", sandbox.ExecOptions{Args: []string{"sh", "-c", ": >/go"}}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		got, err := e.Get(t.Context(), "again")
		if err != nil {
			t.Fatal(err)
		}
		if got.Restarts == 1 && got.State == "stopped" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("it is not started again: %+v", got)
		}
		<-time.After(20 * time.Millisecond)
	}
}
