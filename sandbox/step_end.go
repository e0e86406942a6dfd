package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"

	"naru/sandbox/build"
	"naru/sandbox/runtime"
)

// reasonOf says what ended a step. The cgroup's own counters decide, while it is there:
// an exit code of 137 can be anybody's.
func (e *Engine) reasonOf(r *record, exit runtime.Exit) build.StepExit {
	end := build.StepExit{Code: exit.Code}
	if exit.Code == 0 {
		return end
	}
	switch {
	case exit.OOM || exit.OOMKills > 0:
		end.Reason = build.ReasonMemory
		end.Detail = fmt.Sprintf("out of memory: the kernel killed %s at the limit of %s (exit code %d)", counted(max(1, exit.OOMKills), "process"), mebibytes(r.Config.Memory), exit.Code)
	case r.full():
		end.Reason = build.ReasonDisk
		end.Detail = fmt.Sprintf("no space left on the disk (exit code %d)", exit.Code)
	case e.forksRefused(r.ID) > 0:
		end.Reason = build.ReasonPids
		end.Detail = fmt.Sprintf("out of processes: the kernel refused to make more than the limit of %d (exit code %d)", r.Config.Pids, exit.Code)
	case exit.Code > 128 && unix.SignalName(unix.Signal(exit.Code-128)) != "":
		end.Reason = build.ReasonSignal
		end.Detail = fmt.Sprintf("ended by signal %s (exit code %d)", unix.SignalName(unix.Signal(exit.Code-128)), exit.Code)
	default:
		end.Reason = build.ReasonExit
		end.Detail = fmt.Sprintf("exit code %d", exit.Code)
	}
	return end
}

// full says that the file system of the step's layer has hardly anything left.
func (r *record) full() bool {
	now, err := roomOf(r.Lower[0])
	return err == nil && (now.bytes < now.reserve() || now.inodes == 0)
}

// forksRefused counts how often a process limit was met.
func (e *Engine) forksRefused(id string) uint64 {
	group, err := e.group(id)
	if err != nil {
		return 0
	}
	n, err := group.PidsRefused()
	if err != nil {
		return 0 // the exit code is then all that is known
	}
	return n
}

func counted(n int, what string) string {
	if n == 1 {
		return "a " + what
	}
	return fmt.Sprintf("%d %ses", n, what)
}

func mebibytes(n int64) string {
	if n <= 0 {
		return "the machine"
	}
	return fmt.Sprintf("%.4g MiB", float64(n)/(1<<20))
}
