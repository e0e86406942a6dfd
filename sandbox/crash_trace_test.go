package sandbox

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The tracer is a process of its own, as wait4(2) then tells it of what it traces and
// of nothing else. It reads orders, one per line: "pid k follow halt", and answers "ready"
// when it has hold of the process, then "killed <number of the call>" when that was
// killed before its k-th system call, or "gone <calls>" when it ended before. With
// follow, the calls that count are those of the program that the process starts, or
// becomes. Process halt, if not 0, is stopped before the kill.

const tracerVariable = "NARU_TEST_TRACER"

func tracerIfAsked() {
	if os.Getenv(tracerVariable) == "" {
		return
	}
	runtime.LockOSThread() // a tracer is a thread, ptrace(2)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var pid, k, halt int
		var follow bool
		if _, err := fmt.Sscan(in.Text(), &pid, &k, &follow, &halt); err != nil {
			fmt.Println("error", err)
			continue
		}
		t := tracer{leader: pid, k: k, follow: follow, halt: halt, counted: map[int]bool{}}
		if err := t.run(); err != nil {
			fmt.Println("error", err)
		}
		if follow {
			os.Exit(0) // which lets go of all others that it has hold of
		}
	}
	os.Exit(0)
}

type tracer struct {
	leader  int // whose calls count; with follow not known before execve
	k       int
	follow  bool
	halt    int
	counted map[int]bool // by thread
	waits   int          // for threads to stop
	calls   int
	killed  int // the number of the call, +1
}

func ptrace(request, pid int, addr, data uintptr) error {
	if _, _, e := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0); e != 0 {
		return e
	}
	return nil
}

func (t *tracer) run() error {
	if err := t.seize(); err != nil {
		return err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			return t.end()
		case err != nil:
			return err
		case ws.Stopped():
			t.stopped(pid, ws)
		case pid == t.leader:
			return t.end() // of its last thread
		}
	}
}

// seize takes hold of every thread, and of those that come.
func (t *tracer) seize() error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", t.leader))
	if err != nil {
		return err
	}
	options := unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE
	if t.follow {
		options |= unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC
	}
	for _, d := range tasks {
		tid, err := strconv.Atoi(d.Name())
		if err == nil {
			err = ptrace(unix.PTRACE_SEIZE, tid, 0, uintptr(options))
		}
		if err == nil {
			err = ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)
		}
		if err != nil {
			return fmt.Errorf("thread %s of %d: %w", d.Name(), t.leader, err)
		}
		t.waits++
	}
	if t.follow {
		t.leader = 0
	}
	return nil
}

// stopped lets a thread go on, unless this was its last call.
func (t *tracer) stopped(tid int, ws unix.WaitStatus) {
	signal := uintptr(0)
	switch event := int(ws) >> 16; {
	case ws.StopSignal() == unix.SIGTRAP|0x80:
		t.call(tid)
	case event == unix.PTRACE_EVENT_EXEC && t.follow && t.leader == 0:
		t.leader = tid
	case event != 0:
		if t.waits > 0 && event == unix.PTRACE_EVENT_STOP {
			if t.waits--; t.waits == 0 {
				fmt.Println("ready")
			}
		}
	default:
		signal = uintptr(ws.StopSignal())
	}
	how := unix.PTRACE_SYSCALL
	if t.follow && !t.counts(tid) {
		how = unix.PTRACE_CONT
	}
	_ = ptrace(how, tid, 0, signal) // ESRCH: it was killed meanwhile
}

// counts says whether a thread belongs to the process whose calls count.
func (t *tracer) counts(tid int) bool {
	if !t.follow {
		return true
	}
	if t.leader == 0 {
		return false
	}
	yes, known := t.counted[tid]
	if !known {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
		yes = err == nil && strings.Contains(string(status), fmt.Sprintf("\nTgid:\t%d\n", t.leader))
		t.counted[tid] = yes
	}
	return yes
}

// call counts a system call that is about to be made, and kills at the k-th.
func (t *tracer) call(tid int) {
	if t.waits > 0 || !t.counts(tid) { // not before we have hold of all threads, and have said so
		return
	}
	var info [88]byte // struct ptrace_syscall_info
	if ptrace(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info))) != nil || info[0] != unix.PTRACE_SYSCALL_INFO_ENTRY {
		return
	}
	nr := int(binary.NativeEndian.Uint64(info[24:]))
	if ofGo(nr) || t.killed > 0 {
		return
	}
	if t.calls++; t.calls == t.k {
		t.killed = nr + 1
		if t.halt > 0 {
			_ = unix.Kill(t.halt, unix.SIGSTOP) // ESRCH: it has ended
		}
		_ = unix.Kill(t.leader, unix.SIGKILL) // it is traced: the pid is its own
	}
}

// ofGo says whether a call is one that Go's own threads make now and then.
func ofGo(nr int) bool {
	switch nr {
	case unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_RESTART_SYSCALL,
		unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_MADVISE, unix.SYS_GETPID, unix.SYS_TGKILL:
		return true
	}
	return false
}

func (t *tracer) end() error {
	if t.killed > 0 {
		fmt.Println("killed", t.killed-1)
	} else {
		fmt.Println("gone", t.calls)
	}
	return nil
}
