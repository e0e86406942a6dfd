package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
	"naru/sandbox/runtime/cgroup"
)

// killKeepers kills keepers, and the monitors that they become. Nobody looks at the
// containers meanwhile: no engine and no agent is needed.
func killKeepers(y *yard) {
	for _, group := range []func(*yard){killInTurn, killResumedWhileLogging, killResumedAtTheEnd, killWhileTerminal, killWhileForeground, killBeforeStart, killInBackOff} {
		group(y)
		if y.t.Failed() {
			return
		}
	}
}

// killInTurn kills monitor and keeper, one after the other, while a program writes.
func killInTurn(y *yard) {
	w := y.startWriter()
	for i := range sample(y, upTo(100), 10) {
		monitor, keeper := y.guarded(0)
		who, pid := "monitor", monitor
		if i%2 == 1 {
			who, pid = "keeper", keeper
		}
		y.must(unix.PidfdSendSignal(w.pidfd, unix.SIGSTOP, nil, 0))
		y.kill(pid)
		if who == "monitor" {
			y.guarded(monitor)
		} else if same, _ := y.guarded(0); same != monitor {
			y.t.Fatalf("the monitor is another one after a kill of its keeper")
		}
		y.numbered(fmt.Sprintf("%s killed in turn, %d", who, i), anyLine)
		y.count("in turn, without an engine", who, who, "the log is exact")
		y.goOn(w)
	}
	y.endWriter(w, anyLine)
}

// killResumedWhileLogging kills a monitor, and the keeper in its place from execve on.
func killResumedWhileLogging(y *yard) {
	w := y.startWriter()
	y.calls(300, 5, func(k int) bool {
		tr := y.tracer()
		defer tr.end()
		monitor, keeper := y.guarded(0)
		tr.seizeHalting(keeper, k, true, w.pid)
		y.kill(monitor)
		call := tr.killed(5 * time.Second)
		if call == "" {
			return false
		}
		y.guarded(keeper)
		y.numbered(fmt.Sprintf("resumed monitor killed before call %d (%s)", k, call), anyLine)
		y.count("calls of a resumed monitor: log", "monitor", fmt.Sprint(k), "the log is exact")
		y.goOn(w)
		return k < 150
	})
	y.endWriter(w, anyLine)
}

// killResumedAtTheEnd lets the program end while no monitor is there, and kills the
// one that comes.
func killResumedAtTheEnd(y *yard) {
	y.calls(300, 5, func(k int) bool {
		tr := y.tracer()
		defer tr.end()
		pid, want := y.lastWords()
		init, err := unix.PidfdOpen(pid, 0)
		y.must(err)
		defer unix.Close(init)
		monitor, keeper := y.guarded(0)
		y.must(unix.Kill(monitor, unix.SIGSTOP))
		y.must(unix.PidfdSendSignal(init, unix.SIGTERM, nil, 0))
		p := []unix.PollFd{{Fd: int32(init), Events: unix.POLLIN}}
		eventually(y.t, "the program ends", func() bool { n, _ := unix.Poll(p, 100); return n > 0 })
		tr.seize(keeper, k, true)
		y.kill(monitor)
		call := tr.killed(5 * time.Second)
		tr.end()
		place := fmt.Sprintf("resumed monitor killed before call %d (%s) around an end", k, call)
		outcome := y.judgeEnd(place, want)
		if call != "" {
			y.count("calls of a resumed monitor: end", "monitor", fmt.Sprint(k), outcome)
		}
		return call != ""
	})
}

// killWhileTerminal kills the monitor of a shell on a terminal: it goes on.
func killWhileTerminal(y *yard) {
	c := sh("i=0; while read line; do i=$((i+1)); echo $i $line; done; exit 7")
	c.Name, c.Terminal, c.Stdin = "victim", true, true
	_, err := y.e.Run(y.t.Context(), c, Stdio{})
	y.must(err)
	a, err := y.e.Attach(y.t.Context(), "victim", runtime.AttachOptions{})
	y.must(err)
	screen := &screen{}
	done := make(chan error, 1)
	go func() { done <- a.Copy(screen, screen) }()
	for i := range sample(y, upTo(40), 6) {
		line := fmt.Sprintf("line%d", i)
		_, err := a.Write([]byte(line + "\n"))
		y.must(err)
		screen.shows(y, fmt.Sprintf("%d %s\r\n", i+1, line))
		monitor, _ := y.guarded(0)
		y.kill(monitor)
		y.guarded(monitor)
		y.count("terminal, without an engine", "monitor", "between two lines", "it goes on")
	}
	_, err = a.Write([]byte{4}) // ^D
	y.must(err)
	if err, ok := within(done, 10*time.Second); err != nil || !ok {
		y.t.Fatalf("attach: %v, %v", err, ok)
	}
	exit, err := y.e.Wait(y.t.Context(), "victim")
	if err != nil || exit.Code != 7 && y.exact {
		y.t.Errorf("terminal: %+v, %v", exit, err)
	}
	if log := logOf(y.t, y.e, "victim"); log != screen.String() {
		y.t.Errorf("the log has %d bytes, the screen showed %d", len(log), len(screen.String()))
	}
	y.must(y.e.Remove(y.t.Context(), "victim", true))
	y.clean("terminal")
}

// killWhileForeground kills the monitors of a container whose output is shown: the
// whole of it is, once.
func killWhileForeground(y *yard) {
	r, out, err := os.Pipe()
	y.must(err)
	shown := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		_, _ = b.ReadFrom(r)
		shown <- b.String()
	}()
	c := sh("i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i and a few words; done; exit 5")
	c.Name, c.LogMax = "victim", 256<<20
	made, err := y.e.Create(y.t.Context(), c, Stdio{Stdout: out})
	y.must(err)
	y.must(y.e.Start(y.t.Context(), made.ID))
	for i := range sample(y, upTo(60), 6) {
		size := len(logOf(y.t, y.e, "victim"))
		eventually(y.t, "the log grows", func() bool { return len(logOf(y.t, y.e, "victim")) > size+2000 })
		monitor, _ := y.guarded(0)
		if i%5 == 4 {
			y.killBoth()
		} else {
			y.kill(monitor)
			y.guarded(monitor)
		}
		y.count("foreground, without another engine", "monitor", "while it writes", "all is shown, once")
	}
	if code, err := y.fresh().Exec(y.t.Context(), "victim", ExecOptions{Args: []string{"touch", "/stop"}}); code != 0 || err != nil {
		y.t.Fatalf("exec: %d, %v", code, err)
	}
	exit, err := y.e.Wait(y.t.Context(), "victim")
	if err != nil || exit.Code != 5 && y.exact {
		y.t.Errorf("foreground: %+v, %v", exit, err)
	}
	y.must(out.Close())
	log := logOf(y.t, y.e, "victim")
	if text := <-shown; text != log || strings.Count(log, "\n") < 100 {
		y.t.Errorf("%d bytes were shown, the log has %d", len(text), len(log))
	}
	y.must(y.e.Remove(y.t.Context(), "victim", true))
	y.clean("foreground")
}

// killBeforeStart kills the monitor of a container that waits for its start.
func killBeforeStart(y *yard) {
	for range sample(y, upTo(20), 2) {
		c := sh("echo hello; exit 7")
		c.Name = "victim"
		made, err := y.e.Create(y.t.Context(), c, Stdio{})
		y.must(err)
		a, err := y.e.Attach(y.t.Context(), "victim", runtime.AttachOptions{}) // it answers when it has heard that all is recorded
		y.must(err)
		y.must(a.Close())
		for range 2 {
			monitor, _ := y.guarded(0)
			y.kill(monitor)
			y.guarded(monitor)
		}
		y.must(y.e.Start(y.t.Context(), made.ID))
		exit, err := y.e.Wait(y.t.Context(), "victim")
		if log := logOf(y.t, y.e, "victim"); err != nil || exit.Code != 7 && y.exact || log != "hello\n" {
			y.t.Errorf("killed before start: %+v, %v, %q", exit, err, log)
		}
		y.must(y.e.Remove(y.t.Context(), "victim", true))
		y.clean("before start")
		y.count("created, not started", "monitor", "at the gate", "it starts")
	}
}

// killInBackOff kills the monitor that waits to start its container again, or does: no
// one else would.
func killInBackOff(y *yard) {
	host, err := cgroup.Detect()
	y.must(err)
	exe := filepath.Join(y.t.TempDir(), "called") // os.Executable is below our /tmp
	y.must(copyFile(exe, "/proc/self/exe"))
	y.e.callback = []string{exe, calledMark, y.e.root, y.e.run}
	defer func() { y.e.callback = nil }()
	for range sample(y, upTo(20), 2) {
		c := sh("[ -e /second ] && exec sleep 1000; touch /second; exit 1")
		c.Name, c.Restart.Policy = "victim", RestartAlways
		_, err := y.e.Run(y.t.Context(), c, Stdio{})
		y.must(err)
		waits := func() int { return named(filepath.Join(host.Unified, y.e.events(), "cgroup.procs"), false) }
		eventually(y.t, "it waits", func() bool { return waits() > 0 })
		y.kill(waits())
		eventually(y.t, "it runs again", func() bool {
			c, err := y.fresh().Get(y.t.Context(), "victim")
			y.must(err)
			return c.State == "running" && c.Restarts == 1
		})
		y.must(y.e.Remove(y.t.Context(), "victim", true))
		eventually(y.t, "whoever was called has gone", func() bool {
			_, err := os.Stat(filepath.Join(host.Unified, y.e.events()))
			return errors.Is(err, os.ErrNotExist)
		})
		y.clean("back-off")
		y.count("restart, without an engine", "monitor", "in its back-off", "it runs again")
	}
}

// screen collects what a terminal shows.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
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

func (s *screen) shows(y *yard, want string) {
	y.t.Helper()
	eventually(y.t, fmt.Sprintf("the screen shows %q", want), func() bool { return strings.Contains(s.String(), want) })
}
