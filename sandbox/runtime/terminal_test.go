package runtime

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// screen collects what an attachment shows.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	done chan error
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) shows(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(s.String(), want); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the screen never shows %q: %q", want, s.String())
		}
	}
}

func attach(t *testing.T, c *Container, o AttachOptions) (*Attachment, *screen) {
	t.Helper()
	a, err := c.Attach(testContext(t), o)
	must(t, err)
	t.Cleanup(func() { a.Close() })
	s := &screen{done: make(chan error, 1)}
	go func() { s.done <- a.Copy(s, s) }()
	return a, s
}

func say(t *testing.T, a *Attachment, text string) {
	t.Helper()
	_, err := io.WriteString(a, text)
	must(t, err)
}

func TestTerminal(t *testing.T) {
	for _, userns := range []bool{false, true} {
		b := newBox(t, userns, "sh")
		b.Spec.Process.Terminal = true
		b.Spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 99}
		b.Spec.Process.Env = append(b.Spec.Process.Env, "PS1=$ ")
		c := b.create(t)
		a, s := attach(t, c, AttachOptions{})
		must(t, c.Start(testContext(t)))
		_, second := attach(t, c, AttachOptions{})
		say(t, a, "tty; stty size; echo $(ls /dev/pts); echo $(ls /proc/self/fd)\n")
		s.shows(t, "/dev/pts/0\r\n33 99\r\n0 ptmx\r\n0 1 10 2 3\r\n") // 10 is the shell's own /dev/tty
		second.shows(t, "33 99")
		say(t, a, "echo me >/dev/console; sh -c 'trap \"stty size\" WINCH; echo rea\"\"dy; while sleep 0.01; do :; done'\n")
		s.shows(t, "\r\nme\r\nready\r\n")
		must(t, a.Resize(20, 70))
		s.shows(t, "20 70\r\n")
		must(t, c.Resize(testContext(t), 21, 71))
		s.shows(t, "21 71\r\n")
		say(t, a, "\x03")
		say(t, a, "sh -c 'echo slee\"\"ping; exec sleep 100'\n")
		s.shows(t, "\r\nsleeping\r\n") // its echo alone would be there before the shell has read it
		say(t, a, "\x03")              // the terminal is the controlling one: ^C ends the sleep
		say(t, a, "echo still $((40+2))\nexit 5\n")
		e, err := c.Wait(testContext(t))
		if err != nil || e.Code != 5 || !strings.Contains(s.String(), "still 42") {
			t.Errorf("%+v %v %q", e, err, s)
		}
		if err := <-s.done; err != nil {
			t.Error(err)
		}
		if log := b.log(t); !strings.Contains(log, "33 99") || !strings.Contains(log, "still 42") {
			t.Errorf("log: %q", log)
		}
	}
}

func TestTerminalBelongsToTheUser(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "stat -c %u:%g:%a $(tty); echo x >$(tty) && echo mine")
	b.Spec.Process.Terminal = true
	b.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
	if out, _, e := b.run(t); e.Code != 0 || !strings.Contains(out, "1000:5:620") || !strings.Contains(out, "mine") {
		t.Errorf("%+v %q", e, out)
	}
}

func TestExecWithTerminal(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "exec sleep 100")
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	p := *b.Spec.Process
	p.Args, p.Terminal = []string{"sh", "-c", "tty; stty size; id -u; exit 3"}, true
	p.ConsoleSize, p.User.UID = &specs.Box{Height: 10, Width: 40}, 1000
	got := make(chan string, 1)
	e, err := c.Exec(testContext(t), ExecConfig{Process: &p, Terminal: func(m *os.File) {
		go func() {
			out, _ := io.ReadAll(m) // EIO at the end of a terminal
			got <- string(out)
			m.Close()
		}()
	}})
	if out := <-got; err != nil || e.Code != 3 || out != "/dev/pts/0\r\n10 40\r\n1000\r\n" {
		t.Errorf("%+v %v %q", e, err, out)
	}
	p.Args, p.Terminal, p.User.UID = []string{"sh", "-c", "sleep 0.1; touch /done"}, false, 0
	if _, err := c.Exec(testContext(t), ExecConfig{Process: &p, Detach: true}); err != nil {
		t.Error(err)
	}
	eventually(t, "a detached exec goes on", func() bool { _, err := os.Stat(filepath.Join(b.Root.Upper, "done")); return err == nil })
	must(t, c.Kill(testContext(t)))
}

func TestStandardInputEnds(t *testing.T) {
	for _, once := range []bool{false, true} {
		b := newBox(t, true, "sh", "-c", "cat; echo end")
		b.OpenStdin = true
		c := b.create(t)
		must(t, c.Start(testContext(t)))
		a, s := attach(t, c, AttachOptions{Once: once})
		big := strings.Repeat("0123456789abcde\n", 20000)
		say(t, a, big)
		if once {
			eventually(t, "all is read", func() bool { return len(s.String()) == len(big) })
			must(t, a.Close()) // a client that dies
		} else {
			must(t, a.CloseInput())
		}
		e, err := c.Wait(testContext(t))
		if log := b.log(t); err != nil || e.Code != 0 || log != big+"end\n" {
			t.Errorf("once %v: %+v %v, %d bytes of log", once, e, err, len(log))
		}
		if err := <-s.done; err != nil || !once && s.String() != big+"end\n" {
			t.Errorf("once %v: %v, %d bytes seen", once, err, len(s.String()))
		}
	}
}

// A client that reads nothing slows the container, and is dropped; the other one and
// the log get everything.
func TestStalledClientIsDropped(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "seq 1 600000")
	c := b.create(t)
	stalled, err := c.Attach(testContext(t), AttachOptions{Patience: 300 * time.Millisecond})
	must(t, err)
	defer stalled.Close()
	_, s := attach(t, c, AttachOptions{})
	must(t, c.Start(testContext(t)))
	e, err := c.Wait(testContext(t))
	must(t, err)
	if err := <-s.done; err != nil || e.Code != 0 {
		t.Error(err, e)
	}
	want := b.log(t)
	if !strings.HasSuffix(want, "\n600000\n") || strings.Count(want, "\n") != 600000 || s.String() != want {
		t.Errorf("log has %d bytes, the client %d", len(want), len(s.String()))
	}
	if err := stalled.Copy(io.Discard, io.Discard); !errors.Is(err, ErrDropped) {
		t.Errorf("got %v, want ErrDropped", err)
	}
}

func TestInitReapsAndForwards(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		b := newBox(t, true, "sh", "-c", "trap 'echo got it; exit 7' TERM; (sleep 0.05 & sleep 0.01); echo $$ ready; while :; do sleep 0.02; done")
		b.Init, b.Spec.Process.Terminal = true, terminal
		c := b.create(t)
		must(t, c.Start(testContext(t)))
		eventually(t, "ready", func() bool { return strings.Contains(b.log(t), "2 ready") })
		eventually(t, "the orphan is reaped", func() bool {
			p := *b.Spec.Process
			p.Args, p.Terminal = []string{"sh", "-c", "! grep -q Z /proc/[0-9]*/stat && grep -q naru-init /proc/1/comm && ! ls /proc/1/fd && ! cat /proc/1/environ"}, false
			e, err := c.Exec(testContext(t), ExecConfig{Process: &p})
			return err == nil && e.Code == 0
		})
		must(t, c.Signal(unix.SIGTERM))
		if e, err := c.Wait(testContext(t)); err != nil || e.Code != 7 || !strings.Contains(b.log(t), "got it") {
			t.Errorf("%+v %v %q", e, err, b.log(t))
		}
	}
	for script, want := range map[string]int{"kill -9 $$": 137, "exit 9": 9, "true": 0} {
		b := newBox(t, true, "sh", "-c", script)
		b.Init = true
		if _, _, e := b.run(t); e.Code != want {
			t.Errorf("%q: %+v", script, e)
		}
	}
	b := newBox(t, true, "nope")
	b.Init = true
	err := b.create(t).Start(testContext(t))
	if refused := new(StartError); !errors.As(err, &refused) || refused.Code() != 127 {
		t.Error(err)
	}
}

// A terminal hangs up with its monitor and keeper. The first process of a container ignores that
// unless it wants to know, and is adopted without its terminal.
func TestTerminalHangsUpWithItsMonitor(t *testing.T) {
	b := newBox(t, true, "sh", "-c", "while [ ! -e /stop ]; do sleep 0.02; done; exit 5")
	b.Spec.Process.Terminal = true
	c := b.create(t)
	must(t, c.Start(testContext(t)))
	b.killBoth(t)
	c, err := Open(b.StateDir, b.Dir)
	must(t, err)
	defer c.Close()
	if err := c.Resize(testContext(t), 1, 1); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("resize: %v", err)
	}
	b.stop(t, c)
	if e, err := c.Wait(testContext(t)); err != nil || e.Known && e.Code != 5 {
		t.Errorf("%+v %v", e, err)
	}
}
