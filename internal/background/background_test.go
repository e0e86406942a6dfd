package background

import (
	"errors"
	"syscall"
	"testing"
)

func TestDo(t *testing.T) {
	nice := func() int {
		n, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0) // 20 - nice, as the kernel returns it
		if err != nil {
			t.Error(err)
		}
		return 20 - n
	}
	before := nice()
	want := errors.New("of the work")
	inside, class := 0, uintptr(0)
	err := Do(func() error {
		inside = nice()
		class, _, _ = syscall.Syscall(syscall.SYS_IOPRIO_GET, ioProcess, 0, 0)
		return want
	})
	if !errors.Is(err, want) || inside != max(before, niceness) || class != ioBestEffort<<ioClassShift|ioLowest {
		t.Errorf("%v, nice %d, io %#x", err, inside, class)
	}
	for range 50 { // whichever threads these are
		done := make(chan int)
		go func() { done <- nice() }()
		if n := <-done; n != before {
			t.Fatalf("nice %d outside, %d before", n, before)
		}
	}
}
