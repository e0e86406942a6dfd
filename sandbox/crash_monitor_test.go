package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// tracing is a tracer process, see crash_trace_test.go.
type tracing struct {
	y     *yard
	cmd   *exec.Cmd
	in    io.Writer
	lines chan string
}

func (y *yard) tracer() *tracing {
	y.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killsVariable+"=", tracerVariable+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	y.must(err)
	out, err := cmd.StdoutPipe()
	y.must(err)
	y.must(cmd.Start())
	tr := &tracing{y, cmd, in, make(chan string, 8)}
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			tr.lines <- s.Text()
		}
	}()
	return tr
}

// end lets go of everything that is traced.
func (tr *tracing) end() {
	_ = tr.cmd.Process.Kill()
	_ = tr.cmd.Wait() // killed
}

// seize asks for a kill before the k-th call.
func (tr *tracing) seize(pid, k int, follow bool) { tr.seizeHalting(pid, k, follow, 0) }

// seizeHalting has another process stopped before.
func (tr *tracing) seizeHalting(pid, k int, follow bool, halt int) {
	tr.y.t.Helper()
	_, err := fmt.Fprintln(tr.in, pid, k, follow, halt)
	tr.y.must(err)
	if line, ok := within(tr.lines, 10*time.Second); line != "ready" {
		tr.y.t.Fatalf("tracer: %q, %v", line, ok)
	}
}

// killed says before which call it killed; "" means that there were fewer.
func (tr *tracing) killed(wait time.Duration) (call string) {
	tr.y.t.Helper()
	line, ok := within(tr.lines, wait)
	word, rest, _ := strings.Cut(line, " ")
	switch {
	case !ok || word == "gone":
		return ""
	case word == "killed":
		return callName(rest)
	}
	tr.y.t.Fatalf("tracer: %q", line)
	return ""
}

// callName names the calls that the monitor makes.
func callName(number string) string {
	names := map[int]string{
		unix.SYS_SPLICE: "splice", unix.SYS_PWRITE64: "pwrite", unix.SYS_PPOLL: "ppoll", unix.SYS_IOCTL: "ioctl", unix.SYS_OPENAT: "openat",
		unix.SYS_CLOSE: "close", unix.SYS_RENAMEAT: "renameat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_FSYNC: "fsync", unix.SYS_FTRUNCATE: "ftruncate",
		unix.SYS_WRITE: "write", unix.SYS_READ: "read", unix.SYS_WAIT4: "wait4", unix.SYS_WAITID: "waitid", unix.SYS_SENDMSG: "sendmsg",
		unix.SYS_RECVMSG: "recvmsg", unix.SYS_RECVFROM: "recvfrom", unix.SYS_ACCEPT4: "accept", unix.SYS_FSTAT: "fstat", unix.SYS_MMAP: "mmap",
		unix.SYS_MUNMAP: "munmap", unix.SYS_PIPE2: "pipe", unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_EXIT_GROUP: "exit_group",
		unix.SYS_FCNTL: "fcntl", unix.SYS_PRCTL: "prctl", unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal", unix.SYS_FACCESSAT: "faccessat",
	}
	n, err := strconv.Atoi(number)
	if name := names[n]; err == nil && name != "" {
		return name
	}
	return "call " + number
}

func killMonitorAtCalls(y *yard) {
	for _, group := range []func(*yard){killMonitorWhileCreating, killMonitorWhileLogging, killMonitorAtTheEnd, killMonitorWhileAdopting} {
		group(y)
		if y.t.Failed() {
			return
		}
	}
}

// calls kills at each call until there are no more, or at a few in a sample.
func (y *yard) calls(most, few int, kill func(k int) bool) {
	for k := 1; k <= most; k++ {
		if !y.all {
			if k > few {
				return
			}
			if !kill(k * k * 3) {
				return
			}
			continue
		}
		if !kill(k) {
			return
		}
	}
}

// killMonitorWhileCreating traces the monitor from its execve on.
func killMonitorWhileCreating(y *yard) {
	y.calls(400, 5, func(k int) bool {
		call, err := y.followed(job{Do: "run", Name: "victim", Barrier: -1, Hold: true}, k)
		s := scene{do: "run", absent: true}
		outcome := y.prove(fmt.Sprintf("monitor killed before call %d (%s) of a creation, which says %v", k, call, err), s)
		if call == "" {
			return false
		}
		if err == nil && outcome == "absent" {
			y.t.Errorf("call %d (%s): a container that Run has told of is lost", k, call)
		}
		y.count("calls of a monitor: create", "monitor", fmt.Sprint(k), outcome)
		return true
	})
}

// followed does a job in a process whose monitor is killed at its k-th call.
func (y *yard) followed(j job, k int) (call string, err error) {
	y.t.Helper()
	cmd := y.child(j)
	in, err := cmd.StdinPipe()
	y.must(err)
	y.must(cmd.Start())
	tr := y.tracer()
	defer tr.end()
	tr.seize(cmd.Process.Pid, k, true)
	_, err = in.Write([]byte("g"))
	y.must(err)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
		return tr.killed(100 * time.Millisecond), err
	case line := <-tr.lines:
		tr.lines <- line
	}
	call = tr.killed(time.Second)
	err, ok := within(done, 20*time.Second)
	if !ok {
		y.t.Fatalf("call %d (%s): %s hangs", k, call, j.Do)
	}
	return call, err
}

// Bounds of the log of the numbered writer: a rotation each seven reads of a pipe of
// one page.
const (
	writerFiles = 6
	writerEach  = 32 << 10
)

// writer is a container that numbers its lines until it has a file /stop.
type writer struct{ pid, pidfd int }

// goOn lets it write again.
func (y *yard) goOn(w writer) {
	y.t.Helper()
	if err := unix.PidfdSendSignal(w.pidfd, unix.SIGCONT, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) { // it may have seen /stop
		y.t.Fatal(err)
	}
}

func (y *yard) startWriter() writer {
	y.t.Helper()
	c := sh("i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i and a few words to fill the line; done; exit 5")
	c.Name, c.LogMax, c.LogFiles = "victim", writerFiles*writerEach, writerFiles
	made, err := y.e.Run(y.t.Context(), c, Stdio{})
	y.must(err)
	pidfd, err := unix.PidfdOpen(made.Pid, 0)
	y.must(err)
	y.shrinkPipe()
	eventually(y.t, "it writes", func() bool { return len(logOf(y.t, y.e, "victim")) > 1000 })
	return writer{made.Pid, pidfd}
}

// shrinkPipe makes the pipe of the writer one page again, as each new monitor makes
// it large: the log then holds all that is written between two looks at it.
func (y *yard) shrinkPipe() {
	y.t.Helper()
	id, err := y.e.resolve("victim")
	y.must(err)
	pipe, err := os.OpenFile(filepath.Join(y.e.stateDir(id), "stdout"), os.O_RDWR|unix.O_NONBLOCK, 0)
	y.must(err)
	defer pipe.Close()
	eventually(y.t, "the pipe is made small", func() bool { // EBUSY while more than that is in it, fcntl(2)
		_, err = unix.FcntlInt(pipe.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize())
		return !errors.Is(err, unix.EBUSY)
	})
	y.must(err)
}

// endWriter ends it, stopped or not, and checks code and log.
func (y *yard) endWriter(w writer, last int) {
	y.t.Helper()
	e := y.fresh()
	if code, err := e.Exec(y.t.Context(), "victim", ExecOptions{Args: []string{"touch", "/stop"}}); code != 0 || err != nil {
		y.t.Fatalf("exec: %d, %v", code, err)
	}
	y.goOn(w)
	exit, err := e.Wait(y.t.Context(), "victim")
	y.must(err)
	if exit.Code != 5 || !exit.Known {
		y.t.Errorf("the writer ended with %+v", exit)
	}
	y.numbered("at the end", last)
	y.must(unix.Close(w.pidfd))
	y.must(e.Remove(y.t.Context(), "victim", true))
	y.clean("writer")
}

// anyLine is for numbered where the log may have been rotated away since.
const anyLine = math.MaxInt - 1

// numbered checks that the log has no gap and nothing twice, also not since the line
// that was its last one when it was checked before.
func (y *yard) numbered(place string, last int) int {
	y.t.Helper()
	id, err := y.e.resolve("victim")
	y.must(err)
	var b bytes.Buffer
	y.must(runtime.ReadLog(y.t.Context(), y.e.dir(id), runtime.LogOptions{}, &b, io.Discard))
	text := b.String()
	if text == "" && last == 0 { // nothing was written yet
		return 0
	}
	head, rest, _ := strings.Cut(text, "\n")
	first, n := 0, 0
	for line := range strings.SplitAfterSeq(rest, "\n") {
		if !strings.HasSuffix(line, "line\n") {
			continue // cut off at the end
		}
		v, err := strconv.Atoi(line[:max(strings.IndexByte(line, ' '), 0)])
		if first == 0 {
			first, n = v, v-1
		}
		if err != nil || v != n+1 {
			y.t.Fatalf("%s: line %d is followed by %q", place, n, line)
		}
		n = v
	}
	// The first line may be cut off in the middle of its number.
	if whole := fmt.Sprintf("%d and a few words to fill the line", first-1); first > 1 && strings.HasSuffix(whole, head) {
		first--
	} else {
		y.t.Fatalf("%s: before line %d stands %q", place, first, head)
	}
	if first > last+1 {
		y.t.Fatalf("%s: the log had line %d as its last one, and begins with %d now", place, last, first)
	}
	if keep := (writerFiles - 2) * writerEach * 3 / 4; first > 2 && len(text) < keep-4096 {
		y.t.Fatalf("%s: the log shows %d bytes, from line %d on: %d should be kept", place, len(text), first, keep)
	}
	return n
}

// killMonitorWhileLogging leaves it to the keeper that there is another one.
func killMonitorWhileLogging(y *yard) {
	tr := y.tracer()
	defer tr.end()
	w := y.startWriter()
	last := 0
	for i, k := range sample(y, upTo(300), 12) {
		monitor, _ := y.guarded(0)
		// All that is written between two looks at the log must still be in it: from
		// the kill on nothing is written until we have looked.
		tr.seizeHalting(monitor, k%75+1, false, w.pid)
		y.goOn(w)
		call := tr.killed(20 * time.Second)
		if call == "" {
			y.t.Fatalf("the monitor has ended before call %d", k)
		}
		y.guarded(monitor)
		last = y.numbered(fmt.Sprintf("kill %d, before %s", i, call), last)
		y.count("calls of a monitor: log, rotate", "monitor", call, "the log is exact")
	}
	y.endWriter(w, last)
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i + 1
	}
	return all
}

// lastWords is a container that says 2000 lines and ends with 7 when it is told to.
func (y *yard) lastWords() (pid int, log string) {
	y.t.Helper()
	c := sh("trap 'seq 1 2000; exit 7' TERM; echo ready; sleep 1000 & wait")
	c.Name = "victim"
	made, err := y.e.Run(y.t.Context(), c, Stdio{})
	y.must(err)
	eventually(y.t, "it is ready", func() bool { return logOf(y.t, y.e, "victim") == "ready\n" })
	var b strings.Builder
	b.WriteString("ready\n")
	for i := range 2000 {
		fmt.Fprintln(&b, i+1)
	}
	return made.Pid, b.String()
}

// killMonitorAtTheEnd kills between the end of the program and that of its monitor.
func killMonitorAtTheEnd(y *yard) {
	tr := y.tracer()
	defer tr.end()
	y.calls(200, 5, func(k int) bool {
		_, want := y.lastWords()
		monitor, _ := y.guarded(0)
		tr.seize(monitor, k, false)
		y.must(y.e.Kill(y.t.Context(), "victim", unix.SIGTERM))
		call := tr.killed(20 * time.Second)
		place := fmt.Sprintf("monitor killed before call %d (%s) around an end", k, call)
		outcome := y.judgeEnd(place, want)
		if call != "" {
			y.count("calls of a monitor: end", "monitor", call, outcome)
		}
		return call != ""
	})
}

// judgeEnd is strict: nobody but the keeper is there to see the end, and neither the
// code nor a byte of the log may be lost.
func (y *yard) judgeEnd(place, want string) (outcome string) {
	y.t.Helper()
	var c Container
	eventually(y.t, place+": it stops", func() bool {
		var err error
		c, err = y.fresh().Get(y.t.Context(), "victim")
		y.must(err)
		return c.State == "stopped"
	})
	exit, err := y.fresh().Wait(y.t.Context(), "victim")
	y.must(err)
	outcome = "stopped with 7, log complete"
	if !exit.Known && !y.exact {
		outcome = "stopped, unknown end, log complete"
	} else if !exit.Known || exit.Code != 7 {
		y.t.Errorf("%s: %+v", place, exit)
	}
	if log := logOf(y.t, y.e, "victim"); log != want {
		y.t.Errorf("%s: the log has %d bytes, want %d", place, len(log), len(want))
	}
	y.must(y.e.Remove(y.t.Context(), "victim", true))
	y.clean(place)
	return outcome
}

// killMonitorWhileAdopting kills both, and the monitor that an engine makes instead from
// its execve on.
func killMonitorWhileAdopting(y *yard) {
	w := y.startWriter()
	y.calls(100, 4, func(k int) bool {
		y.must(unix.PidfdSendSignal(w.pidfd, unix.SIGSTOP, nil, 0))
		y.killBoth()
		last := y.numbered(fmt.Sprintf("before adoption %d", k), anyLine)
		call, err := y.followed(job{Do: "recover", Barrier: -1, Hold: true}, k)
		if call == "" {
			return false
		}
		y.numbered(fmt.Sprintf("second monitor killed before call %d (%s): %v", k, call, err), last)
		if err := y.fresh().Recover(y.t.Context()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			y.t.Fatal(err)
		}
		y.guarded(0)
		y.shrinkPipe()
		y.count("calls of a monitor: adopt", "monitor", fmt.Sprint(k), "the log is exact")
		y.goOn(w)
		return true
	})
	y.must(y.fresh().Recover(y.t.Context()))
	y.endWriter(w, anyLine)
}
