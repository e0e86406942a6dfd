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
	told := false
	if w.event >= 0 {
		var count [8]byte
		_, err := syscall.Read(w.event, count[:])
		told = err == nil
	}
	n, there := w.count()
	if told && there { // else it tells that the group has been removed
		w.mem.oomLast, w.mem.oomMet = monotonic(), 1
	}
	if int64(n) > w.mem.oomKnown {
		w.mem.oomKnown = int64(n)
		if w.event < 0 { // v1 tells before it kills: the count may follow long after the moment
			w.mem.oomLast = monotonic()
		}
	}
}

// justNow says whether a kill for memory was so short ago that it is the reason.
func (w *oomWatch) justNow() bool {
	w.seen()
	return w.kills() > 0 && w.mem.oomLast > 0 && monotonic()-w.mem.oomLast < oomMoment
}

// kills is how many are known. Where another OCI runtime has removed the cgroup before
// the count could be read, v1's word for the last one is all there is.
func (w *oomWatch) kills() int {
	n, there := w.count()
	if !there && w.mem.oomMet != 0 {
		n = 1
	}
	return max(n, int(w.mem.oomKnown))
}

// count reads the counter; the cgroup is younger than the container, so any is ours.
// there is false when the cgroup is not.
func (w *oomWatch) count() (count int, there bool) {
	if w.counter < 0 {
		return 0, false
	}
	var buf [512]byte
	n, err := syscall.Pread(w.counter, buf[:], 0)
	if err != nil {
		return 0, false
	}
	const key = "oom_kill "
	b := buf[:n]
	for i := 0; i+len(key) < len(b); i++ {
		if string(b[i:i+len(key)]) != key || i > 0 && b[i-1] != '\n' {
			continue
		}
		for _, c := range b[i+len(key):] {
			if c < '0' || c > '9' {
				return count, true
			}
			count = count*10 + int(c-'0')
		}
	}
	return count, true
}
