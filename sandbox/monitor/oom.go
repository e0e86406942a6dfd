package monitor

import "syscall"

// oomWatch knows how many processes of the container the kernel has killed for
// memory, and when the last one was: only then it is the reason of an end by
// SIGKILL. No timer is needed: the kernel tells by an eventfd (v1,
// memory.oom_control) or by POLLPRI on memory.events (v2).
type oomWatch struct {
	counter int // memory.oom_control or memory.events: the line "oom_kill <count>"
	event   int // eventfd, v1 only
	mem     *memory
}

// oomMoment is how many milliseconds may lie between a kill for memory and an end
// that it caused: what lost a child must notice that, and exit.
const oomMoment = 1000

func newOOMWatch(counter, event int, mem *memory) oomWatch {
	return oomWatch{counter: counter, event: event, mem: mem}
}

func (w *oomWatch) fd() int {
	if w.event >= 0 {
		return w.event
	}
	return w.counter
}

func (w *oomWatch) events() int16 {
	if w.event >= 0 {
		return pollIn
	}
	return pollPri
}

// seen is called when the kernel says that something has happened.
func (w *oomWatch) seen() {
	if w.event >= 0 {
		var count [8]byte
		if _, err := syscall.Read(w.event, count[:]); err == nil {
			w.mem.oomLast = monotonic()
		}
	}
	if n := int64(w.kills()); n > w.mem.oomKnown {
		w.mem.oomKnown = n
		if w.event < 0 { // v1 tells before it kills: the count may follow long after the moment
			w.mem.oomLast = monotonic()
		}
	}
}

// justNow says whether a kill for memory was so short ago that it is the reason.
func (w *oomWatch) justNow() bool {
	w.seen()
	return w.mem.oomKnown > 0 && w.mem.oomLast > 0 && monotonic()-w.mem.oomLast < oomMoment
}

// kills reads the counter; the cgroup is younger than the container, so any is ours.
func (w *oomWatch) kills() int {
	if w.counter < 0 {
		return 0
	}
	var buf [512]byte
	n, err := syscall.Pread(w.counter, buf[:], 0)
	if err != nil {
		return 0
	}
	const key = "oom_kill "
	b, count := buf[:n], 0
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
