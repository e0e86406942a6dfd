package sandbox

import (
	"context"
	"path/filepath"
	"testing"
)

// BenchmarkRun is the whole life of a container that does nothing.
func BenchmarkRun(b *testing.B) {
	dir := b.TempDir()
	e, err := Open(Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")})
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := e.Reset(context.Background()); err != nil {
			b.Error(err)
		}
	}()
	if _, err := e.Images().Import(b.Context(), busyboxTar(b), "busybox", busyboxConfig()); err != nil {
		b.Fatal(err)
	}
	config := sh("true")
	config.Args = []string{"true"}
	config.Remove = true
	for b.Loop() {
		c, err := e.Run(b.Context(), config, Stdio{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Wait(b.Context(), c.ID); err != nil {
			b.Fatal(err)
		}
	}
}
