package runtime

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkStart is Create to execve, full hardening, without a network
// attached; the teardown is not counted. Compare with BenchmarkRunc.
func BenchmarkStart(b *testing.B) {
	for _, mode := range []string{"host ids", "user namespace"} {
		b.Run(mode, func(b *testing.B) {
			x := newBox(b, mode != "host ids", "true")
			onTmpfs(b, x)
			ctx := b.Context()
			for b.Loop() {
				c, err := Create(ctx, x.Config)
				must(b, err)
				must(b, c.Start(ctx))
				b.StopTimer()
				_, err = c.Wait(ctx)
				must(b, err)
				must(b, c.Close())
				must(b, Destroy(x.StateDir, x.Dir, x.Cgroup))
				b.StartTimer()
			}
		})
	}
}

// onTmpfs moves the state directory to where it is in life: fsync is free there.
func onTmpfs(b *testing.B, x *box) {
	dir, err := os.MkdirTemp("/dev/shm", "naru-bench-")
	if err != nil {
		b.Skip("needs a tmpfs:", err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	x.StateDir = filepath.Join(dir, "run")
}

// BenchmarkRun is Create to the recorded end of `true`.
func BenchmarkRun(b *testing.B) {
	x := newBox(b, true, "true")
	onTmpfs(b, x)
	ctx := b.Context()
	for b.Loop() {
		c, err := Create(ctx, x.Config)
		must(b, err)
		must(b, c.Start(ctx))
		_, err = c.Wait(ctx)
		must(b, err)
		b.StopTimer()
		must(b, c.Close())
		must(b, Destroy(x.StateDir, x.Dir, x.Cgroup))
		b.StartTimer()
	}
}

// BenchmarkRunc is `runc run` of the same program in a bundle of the same root.
func BenchmarkRunc(b *testing.B) {
	needRoot(b)
	if _, err := exec.LookPath("runc"); err != nil {
		b.Skip("needs runc:", err)
	}
	bundle := b.TempDir()
	must(b, os.Rename(busybox(b), filepath.Join(bundle, "rootfs")))
	spec := exec.Command("runc", "spec")
	spec.Dir = bundle
	must(b, spec.Run())
	file := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(file)
	must(b, err)
	var s specs.Spec
	must(b, json.Unmarshal(data, &s))
	s.Process.Args, s.Process.Terminal = []string{"true"}, false
	data, err = json.Marshal(s)
	must(b, err)
	must(b, os.WriteFile(file, data, 0o644))
	for b.Loop() {
		out, err := exec.Command("runc", "--root", filepath.Join(bundle, "state"), "run", "-b", bundle, "naru-bench").CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
}
