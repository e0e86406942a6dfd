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
	switch name, arg := arguments(); name {
	case monitor.ArgMonitor, monitor.ArgResume, monitor.ArgExec:
		runtime.LockOSThread()
		monitor.Main(name, arg)
	}
}

// arguments are the first two. They are read from procfs: package os would double the
// start-up time.
func arguments() (name, arg string) {
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", ""
	}
	defer syscall.Close(fd)
	var buf [32]byte
	n, err := syscall.Read(fd, buf[:])
	if err != nil {
		return "", ""
	}
	name, rest := cut(string(buf[:n]))
	arg, _ = cut(rest)
	return name, arg
}

// cut splits at the first NUL; without one there is no argument.
func cut(s string) (before, after string) {
	for i := range len(s) {
		if s[i] == 0 {
			return s[:i], s[i+1:]
		}
	}
	return "", ""
}
