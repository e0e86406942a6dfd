package monitor

import "syscall"

// Main is the whole life of the process; personality is argv[0], and arg what follows,
// if anything does: the number of the record of ArgResume. It does not return.
func Main(personality, arg string) {
	syscall.Umask(0o022)
	if personality == ArgResume {
		resume(atoi(arg))
	}
	syscall.CloseOnExec(Control)
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
	var l *Launch
	ok := len(fds) > 0
	if ok {
		l, ok = readLaunch(fds[0])
	}
	if !ok {
		reply32(Control, ReplyFailed, uint32(syscall.EBADMSG), "read launch record")
		syscall.Exit(1)
	}
	fds = fds[1:]
	setName(l.Name)
	switch {
	case personality == ArgExec && msg[0] == OpLaunch:
		syscall.Close(l.file)
		execute(l, fds)
	case msg[0] == OpLaunch:
		newMonitor(l, fds).launch(l, fds)
	case msg[0] == OpAdopt:
		newMonitor(l, fds).adopt(l, fds)
	}
	syscall.Exit(0)
}

// setName makes the process findable in ps(1), where it would have a descriptor's number.
// Go may have us in another thread than its first, whose name that is: prctl(2) would
// not do.
func setName(name string) { writeFile("/proc/self/comm", name) }

func atoi(s string) (n int) {
	for _, c := range s {
		n = 10*n + int(c-'0')
	}
	return n
}

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
