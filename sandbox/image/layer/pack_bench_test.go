package layer

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkPack packs 20,000 small files, and one of 300 MB, for their digest.
func BenchmarkPack(b *testing.B) {
	small, large := b.TempDir(), b.TempDir()
	for i := range 20_000 {
		dir := filepath.Join(small, fmt.Sprint(i/100))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), fmt.Append(nil, "content ", i), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(large, "f"), make([]byte, 300<<20), 0o644); err != nil {
		b.Fatal(err)
	}
	for name, dir := range map[string]string{"small": small, "large": large} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := Pack(context.Background(), dir, sha256.New()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
