package monitor

import "syscall"

// ended reaps the init, saves what it wrote, records the exit and leaves.
func (m *monitor) ended() {
	for m.init.status >= 0 { // before it is reaped: a failed start, or the end of the pipe
		m.report()
	}
	ws, known, done := m.status()
	if !done {
		return
	}
	if m.kill >= 0 {
		writeAll(m.kill, "1") // what the init left, where it has no pid namespace
	}
	for i := range m.out {
		m.drain(i)
	}
	m.log.notice()
	if !m.passing {
		m.log.sync()
	}
	if m.committed {
		m.record(ws, known)
	}
	for i := range m.out {
		m.settle(i)
	}
	m.sayExit(ws)
	m.leave()
}

// leave lets go of everything that is the container's, so that another start finds
// it free, and ends after the callback. Without the lock a resumed monitor knows that
// only the callback is left to do.
func (m *monitor) leave() {
	if m.committed && m.state == StateRunning {
		if m.call.wanted() {
			m.call.withdraw(m.keeper)
		}
		for _, c := range m.clients {
			syscall.Close(c.fd)
		}
		for _, fd := range []int{m.creator, m.listen, m.out[0].in, m.out[1].in, m.feeder, m.input.fd, m.lock} {
			bury(fd)
		}
		if m.call.wanted() {
			m.call.after(m.keeper)
		}
	}
	m.keeper.dismiss()
	syscall.Exit(0)
}

// status is the init's wait status; done is false while it lives.
func (m *monitor) status() (ws syscall.WaitStatus, known, done bool) {
	if m.ours {
		pid, err := syscall.Wait4(m.init.pid, &ws, syscall.WNOHANG, nil)
		return ws, err == nil, pid == m.init.pid || err == syscall.ECHILD
	}
	for range 200 { // its new parent reaps it any moment
		if ws, known = ExitStatus(m.init.pidfd); known {
			return ws, true, true
		}
		poll(nil, 10)
	}
	return 0, false, true
}

// record writes exit.json: temporary file, fsync, rename, fsync of the directory;
// without fsync where a power cut leaves nothing that the record could tell of.
func (m *monitor) record(ws syscall.WaitStatus, known bool) {
	code := 255
	if known {
		code = ExitCode(ws)
	}
	oom := code == 128+int(syscall.SIGKILL) && m.oom.justNow()
	text := `{"code":` + itoa(code) + `,"oom":` + boolText(oom) + `,"oom_kills":` + itoa(m.oom.kills()) + `,"lost":` + itoa(int(m.mem.lost)) + `,"known":` + boolText(known) + `,"nanos":` + itoa(int(now())) + "}\n"
	const tmp = "." + FileExit + ".tmp"
	fd, err := openAt(m.dir, tmp, syscall.O_CREAT|syscall.O_WRONLY|syscall.O_TRUNC, 0o600)
	if err != nil {
		return // the agent then asks the pidfd
	}
	defer syscall.Close(fd)
	written := writeAll(fd, text) == nil && (m.passing || syscall.Fsync(fd) == nil)
	if written && syscall.Renameat(m.dir, tmp, m.dir, FileExit) == nil && !m.passing {
		syscall.Fsync(m.dir)
	}
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}
