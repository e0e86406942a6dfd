package build

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkShape is what a hit costs for each of 20,000 files of its layer.
func BenchmarkShape(b *testing.B) {
	dir := b.TempDir()
	for d := range 200 {
		sub := filepath.Join(dir, fmt.Sprint(d))
		if err := os.Mkdir(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		for f := range 100 {
			if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(f)), []byte("x"), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		if _, _, err := shapeOf(dir); err != nil {
			b.Fatal(err)
		}
	}
}
