// Package launch is the tiny program beside a container: it starts the monitor
// or the exec helper of naru/sandbox/monitor. It is built alone as
// cmd/naru-init and embedded; where that was not done, the agent re-executes a
// sealed copy of itself, which comes here first.
package launch

import (
	"runtime"
	"syscall"

	"naru/sandbox/monitor"
)

// Main returns at once unless this process is a re-executed child of
// naru/sandbox/runtime, told by argv[0]; then it never returns. It must be the
// first call in main and in TestMain.
func Main() {
	switch name := arg0(); name {
	case monitor.ArgMonitor, monitor.ArgExec:
		runtime.LockOSThread()
		monitor.Main(name)
	}
}

// arg0 reads the name from procfs: package os would double the start-up time.
func arg0() string {
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer syscall.Close(fd)
	var buf [32]byte
	n, err := syscall.Read(fd, buf[:])
	if err != nil {
		return ""
	}
	for i, c := range buf[:n] {
		if c == 0 {
			return string(buf[:i])
		}
	}
	return ""
}
