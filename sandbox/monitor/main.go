package monitor

import (
	"syscall"
)

// Main is the whole life of the process; personality is argv[0]. It does not return.
func Main(personality string) {
	syscall.CloseOnExec(Control)
	syscall.Umask(0o022)
	b := boot{}
	for {
		n, fds, err := receive(Control, b.buf[:], 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			syscall.Exit(0) // the creator is gone and nothing exists yet
		}
		b.request(personality, b.buf[:n], fds)
	}
}

// boot is the time before a container exists.
type boot struct{ buf [4096]byte }

func (b *boot) request(personality string, msg []byte, fds []int) {
	if msg[0] == OpUserNS {
		makeUserNS(Control, msg[1:])
		return
	}
	l, fds, ok := launchFrom(fds)
	if !ok {
		reply32(Control, ReplyFailed, uint32(syscall.EBADMSG), "read launch record")
		syscall.Exit(1)
	}
	setName(l.Name)
	switch {
	case personality == ArgExec && msg[0] == OpLaunch:
		execute(l, fds)
	case msg[0] == OpLaunch:
		m := newMonitor(l, fds)
		m.launch(l, fds)
		m.run()
	case msg[0] == OpAdopt:
		m := newMonitor(l, fds)
		m.adopt(l, fds)
		m.run()
	}
	syscall.Exit(0)
}

// setName makes the process findable in ps(1), where it would have a descriptor's
// number. By prctl(2) it would name this thread, which the Go runtime may have made.
func setName(name string) { _ = writeFile("/proc/self/comm", name) }

// closeOthers drops the descriptors that were only for the child.
func closeOthers(fds []int, keep ...int) {
	for _, fd := range fds {
		kept := false
		for _, k := range keep {
			kept = kept || k == fd
		}
		if !kept {
			syscall.Close(fd)
		}
	}
}
