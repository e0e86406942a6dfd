package sandbox

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"naru/sandbox/build"
)

// BenchmarkBuildSteps: a cold build of ten RUN steps that do nothing. Run it in a
// network namespace of its own (unshare -n).
func BenchmarkBuildSteps(b *testing.B) {
	for name, network := range map[string]string{"network": networkBuild, "none": NetworkNone} {
		b.Run(name, func(b *testing.B) {
			root := b.TempDir()
			e, err := Open(Options{Root: filepath.Join(root, "root"), Run: filepath.Join(root, "run")})
			must(b, err)
			defer func() { must(b, e.Reset(context.Background())) }()
			_, err = e.Images().Import(b.Context(), busyboxTar(b), "busybox", busyboxConfig())
			must(b, err)
			dir := writeContext(b, map[string]string{"Dockerfile": "FROM busybox\n" + strings.Repeat("RUN true\n", 10)})
			b.ResetTimer()
			start := time.Now()
			for range b.N {
				if _, log, err := buildIn(b, e, build.Options{Context: dir, NoCache: true, Network: network}); err != nil {
					b.Fatalf("%v\n%s", err, log)
				}
			}
			b.ReportMetric(float64(time.Since(start).Microseconds())/float64(10*b.N), "µs/step")
		})
	}
}
