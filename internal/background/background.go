// Package background runs work that may wait while apps serve: packing, hashing and
// copying of builds. It runs on a thread of its own, of low priority for processors and
// disks, so that the rest of the process, which answers people, keeps its own.
package background

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
)

const (
	niceness = 10 // about a tenth of the weight of others, sched(7)

	ioBestEffort = 2 // IOPRIO_CLASS_BE, ioprio_set(2)
	ioLowest     = 7
	ioClassShift = 13
	ioProcess    = 1 // IOPRIO_WHO_PROCESS; it means the thread
)

// Do runs work in the background and waits for it. It costs a thread, some tens of
// microseconds: work should be longer than that. Processes that work starts inherit
// the low priority.
func Do(work func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its priority with it.
		runtime.LockOSThread()
		lower(0)
		done <- work()
	}()
	return <-done
}

// lower is of one thread; 0 is the caller's. Where it is not allowed, or the thread
// has gone, nothing is lower.
func lower(tid int) {
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, tid, niceness)
	_, _, _ = syscall.Syscall(syscall.SYS_IOPRIO_SET, ioProcess, uintptr(tid), ioBestEffort<<ioClassShift|ioLowest)
}

// Process makes the whole process one of the background, and what it starts: for a
// program that does nothing but build. Threads that begin later inherit it.
func Process() {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			lower(tid)
		}
	}
}
