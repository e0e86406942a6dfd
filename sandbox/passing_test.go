package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A container that goes with its end is never synced: of one from before a power cut
// the claims may be gone, and its ids another container's.
func TestWhatGoesWithItsEndIsNotStartedAfterABoot(t *testing.T) {
	e := newEngine(t)
	c := sh("exit 3")
	c.Remove = true
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has ended", func() bool { c := get(t, e, made.ID); return c.State == "stopped" && c.ExitCode == 3 })
	path := filepath.Join(e.dir(made.ID), configFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	boot := strings.Replace(string(data), e.boot, "00000000-0000-0000-0000-000000000000", 1)
	if err := os.WriteFile(path, []byte(boot), 0o600); err != nil || boot == string(data) {
		t.Fatal(err, "no boot in", boot)
	}
	if err := e.Start(t.Context(), made.ID); err == nil || !strings.Contains(err.Error(), "removed at its end") {
		t.Fatalf("start: %v", err)
	}
	if err := e.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustBeGone(t, e, made.ID)
}
