package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The BPF program of pure v2 works on any cgroup2 mount, so it is proven here too.
func TestDeviceProgramDecides(t *testing.T) {
	h, err := Detect()
	if err != nil || h.Unified == "" || os.Geteuid() != 0 {
		t.Skip("needs root and a cgroup2 mount:", err)
	}
	g := Host{Unified: h.Unified}.Open("naru-test-dev-" + strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(g.UnifiedDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	defer g.Remove()
	n := func(i int64) *int64 { return &i }
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rwm"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(5), Access: "r"},
		{Allow: true, Type: "c", Major: n(1), Access: "rwm"},
		{Allow: false, Type: "c", Major: n(1), Minor: n(9), Access: "w"},
		{Allow: false, Type: "c", Major: n(1), Minor: n(7)},
	}
	if err := attachDevices(g.UnifiedDir(), rules); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(g.UnifiedDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for script, want := range map[string]bool{
		"echo > /dev/null": true, "head -c1 < /dev/zero": true, "head -c1 < /dev/urandom": true, "echo > /dev/urandom": false,
		"head -c1 < /dev/full": false, "head -c0 < /dev/tty": false, "head -c0 < /dev/kmsg": true,
		"mknod " + filepath.Join(t.TempDir(), "sda") + " b 8 0": false,
	} {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		var exit *exec.ExitError
		if err := cmd.Run(); (err == nil) != want || err != nil && !errors.As(err, &exit) {
			t.Errorf("%q: %v, want success %v", script, err, want)
		}
	}
}

// TestLoadUnderSignals: the verifier gives up when a signal is pending, and the Go
// runtime sends many.
func TestLoadUnderSignals(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	var rules []specs.LinuxDeviceCgroup
	for i := range int64(300) { // long enough for the verifier to look for signals
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: i%2 == 0, Type: "c", Major: &i, Access: "rw"})
	}
	code := deviceProgram(rules)
	stop := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = syscall.Kill(os.Getpid(), syscall.SIGURG) // what preemption uses; ignored by everybody
			}
		}
	})
	for range 40 {
		fd, err := loadBPF(code)
		if err != nil {
			t.Error(err)
			break
		}
		_ = syscall.Close(fd)
	}
	close(stop)
	sender.Wait()
}
