package build

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"naru/sandbox/image"
)

// manyFiles makes a context of 20,000 small files in 200 directories.
func manyFiles(w *world) string {
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nCOPY . /x/\n", ".dockerignore": "*.log\n"})
	for i := range 20_000 {
		if i < 220 {
			must(w.t, os.MkdirAll(filepath.Join(dir, fmt.Sprintf("d%d/e%d", i%20, i%200)), 0o755))
		}
		must(w.t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("d%d/e%d/f%d", i%20, i%200, i)), fmt.Append(nil, "content ", i), 0o644))
	}
	return dir
}

// BenchmarkCopy measures COPY of 20,000 files beside cp -a of the same tree, in
// turns: this is run on machines that others use too, and the ratio is what
// can be compared.
func BenchmarkCopy(b *testing.B) {
	w := newWorld(b)
	dir := manyFiles(w)
	cp := func() time.Duration {
		to := filepath.Join(w.dir, "cp")
		start := time.Now()
		if out, err := exec.Command("cp", "-a", dir, to).CombinedOutput(); err != nil {
			b.Fatalf("cp: %s", out)
		}
		took := time.Since(start)
		must(b, os.RemoveAll(to))
		return took
	}
	n := 0
	for _, c := range []struct {
		name   string
		before func() // not measured
	}{
		{"cold", func() {
			must(b, os.RemoveAll(filepath.Join(w.dir, "cache")))
			must(b, os.RemoveAll(filepath.Join(w.dir, "images")))
			var err error
			w.store, err = image.Open(filepath.Join(w.dir, "images"))
			must(b, err)
			w.importTar("base", image.Config{OS: "linux"}, baseTar(b))
		}},
		{"unchanged", func() {}},
		{"changed", func() {
			n++
			must(b, os.WriteFile(filepath.Join(dir, "d1/e1/f1"), fmt.Append(nil, "new ", n), 0o644))
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			w.t = b
			var ours, theirs time.Duration
			for b.Loop() {
				b.StopTimer()
				c.before()
				theirs += cp()
				start := time.Now()
				b.StartTimer()
				w.mustBuild(Options{Context: dir})
				ours += time.Since(start)
			}
			b.ReportMetric(float64(ours)/float64(theirs), "x-cp-a")
		})
	}
}
