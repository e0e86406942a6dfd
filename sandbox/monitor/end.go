package monitor

import "syscall"

// pump moves one read's worth of output to the log and the live copy.
func (s *stream) pump(id byte, log *logFile) {
	if len(s.pending) > 0 {
		s.flush()
		return
	}
	n, err := syscall.Read(s.in, s.buf)
	if err == syscall.EINTR || err == syscall.EAGAIN {
		return
	}
	if err != nil || n == 0 {
		syscall.Close(s.in)
		s.in = None
		return
	}
	log.write(id, s.buf[:n])
	if s.copy >= 0 {
		s.pending = s.buf[:n]
		s.flush()
	}
}

// flush writes to the live copy what it takes without blocking.
func (s *stream) flush() {
	n, err := syscall.Write(s.copy, s.pending)
	switch {
	case err == syscall.EINTR || err == syscall.EAGAIN:
	case err != nil:
		syscall.Close(s.copy)
		s.copy, s.pending = None, nil
	default:
		s.pending = s.pending[n:]
	}
}

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
		m.out[i].drain(byte(i+1), m.log)
	}
	m.log.sync()
	if m.committed {
		m.record(ws, known)
	}
	for i := range m.out {
		m.out[i].finish()
	}
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

// drain reads what is left in the pipe; another process may still hold it open.
func (s *stream) drain(id byte, log *logFile) {
	for range 1 << 12 {
		if s.in < 0 {
			return
		}
		for len(s.pending) > 0 && s.copy >= 0 {
			poll([]pollFD{{fd: int32(s.copy), events: pollOut}}, -1)
			s.flush()
		}
		p := []pollFD{{fd: int32(s.in), events: pollIn}}
		poll(p, 0)
		if p[0].revents == 0 {
			return
		}
		s.pump(id, log)
	}
}

// finish hands over the rest of the live copy.
func (s *stream) finish() {
	for s.copy >= 0 && len(s.pending) > 0 {
		poll([]pollFD{{fd: int32(s.copy), events: pollOut}}, -1)
		s.flush()
	}
}

// record writes exit.json: temporary file, fsync, rename, fsync of the directory.
func (m *monitor) record(ws syscall.WaitStatus, known bool) {
	code := 255
	if known {
		code = ExitCode(ws)
	}
	oom := code == 128+int(syscall.SIGKILL) && m.oomKills() > 0
	text := `{"code":` + itoa(code) + `,"oom":` + boolText(oom) + `,"known":` + boolText(known) + `,"nanos":` + itoa(int(now())) + "}\n"
	const tmp = "." + FileExit + ".tmp"
	fd, err := openAt(m.dir, tmp, syscall.O_CREAT|syscall.O_WRONLY|syscall.O_TRUNC, 0o600)
	if err != nil {
		return // the agent then asks the pidfd
	}
	defer syscall.Close(fd)
	if writeAll(fd, text) == nil && syscall.Fsync(fd) == nil && syscall.Renameat(m.dir, tmp, m.dir, FileExit) == nil {
		syscall.Fsync(m.dir)
	}
}

// oomKills reads the counter after "oom_kill " in memory.oom_control (v1) or
// memory.events (v2); the cgroup is younger than the container, so any is ours.
func (m *monitor) oomKills() int {
	if m.oom < 0 {
		return 0
	}
	n, err := syscall.Pread(m.oom, m.msg[:], 0)
	if err != nil {
		return 0
	}
	const key = "oom_kill "
	b, count := m.msg[:n], 0
	for i := 0; i+len(key) < len(b); i++ {
		if string(b[i:i+len(key)]) != key || i > 0 && b[i-1] != '\n' {
			continue
		}
		for _, c := range b[i+len(key):] {
			if c < '0' || c > '9' {
				return count
			}
			count = count*10 + int(c-'0')
		}
	}
	return count
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}
