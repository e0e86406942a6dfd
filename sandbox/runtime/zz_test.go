package runtime

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestZZ(t *testing.T) {
	x := newBox(t, true, "true")
	y := newBox(t, false, "true")
	for _, b := range []*box{x, y} {
		dir, _ := os.MkdirTemp("/dev/shm", "zz")
		defer os.RemoveAll(dir)
		b.StateDir = filepath.Join(dir, "run")
	}
	bundle := t.TempDir()
	must(t, os.Rename(busybox(t), filepath.Join(bundle, "rootfs")))
	spec := exec.Command("runc", "spec")
	spec.Dir = bundle
	must(t, spec.Run())
	file := filepath.Join(bundle, "config.json")
	data, _ := os.ReadFile(file)
	var s specs.Spec
	json.Unmarshal(data, &s)
	s.Process.Args, s.Process.Terminal = []string{"true"}, false
	data, _ = json.Marshal(s)
	os.WriteFile(file, data, 0o644)
	var us, host, rc, run []time.Duration
	for range 100 {
		for _, b := range []*box{x, y} {
			t0 := time.Now()
			c, err := Create(t.Context(), b.Config)
			must(t, err)
			must(t, c.Start(t.Context()))
			d := time.Since(t0)
			c.Wait(t.Context())
			if b == x {
				us = append(us, d)
				run = append(run, time.Since(t0))
			} else {
				host = append(host, d)
			}
			c.Close()
			must(t, Destroy(b.StateDir, b.Dir, b.Cgroup))
		}
		t0 := time.Now()
		if out, err := exec.Command("runc", "--root", filepath.Join(bundle, "state"), "run", "-b", bundle, "naru-bench").CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
		rc = append(rc, time.Since(t0))
	}
	for n, d := range map[string][]time.Duration{"userns start": us, "host start": host, "userns run": run, "runc run": rc} {
		slices.Sort(d)
		t.Log(n, "min", d[0], "p25", d[25], "p50", d[50])
	}
}
