package runtime

import (
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestThermalPathsAreFound(t *testing.T) {
	sys := t.TempDir()
	for _, dir := range []string{"cpu0/thermal_throttle", "cpu1", "cpu11/thermal_throttle", "cpufreq/thermal_throttle"} {
		if err := os.MkdirAll(sys+"/devices/system/cpu/"+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{sys + "/devices/system/cpu/cpu0/thermal_throttle", sys + "/devices/system/cpu/cpu11/thermal_throttle"}
	if got := thermalPaths(sys); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestStartWhileOthersRename starts containers with a mount whose place is full of "..",
// while files of the machine are renamed all the time: openat2(2) then gives up with EAGAIN.
func TestStartWhileOthersRename(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/a", nil, 0o600))
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				stopped <- n
				return
			default:
				_ = os.Rename(dir+"/a", dir+"/b")
				_ = os.Rename(dir+"/b", dir+"/a")
			}
		}
	}()
	for range 10 {
		b := newBox(t, false, "true")
		b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: strings.Repeat("/..", 100) + "/tmp", Type: "tmpfs", Source: "tmpfs"})
		if out, text, exit := b.run(t); exit.Code != 0 {
			t.Errorf("exit %d: %s%s", exit.Code, out, text)
		}
	}
	close(stop)
	if <-stopped == 0 {
		t.Error("nothing was renamed: that shows nothing")
	}
}
