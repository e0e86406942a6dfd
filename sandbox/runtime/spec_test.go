package runtime

import (
	"os"
	"slices"
	"testing"
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
