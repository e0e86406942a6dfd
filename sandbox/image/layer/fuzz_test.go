package layer

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"naru/sandbox/image/layer/layertest"
)

// FuzzUnpack feeds any bytes. Nothing outside the layer may change, and what
// could be unpacked can be packed, unpacked again, and gives the same tar.
func FuzzUnpack(f *testing.F) {
	for _, test := range hostile {
		f.Add(layertest.Tar(f, test.entries...))
	}
	f.Add(layertest.Tar(f, allKinds()...))
	limits := Limits{Entries: 1000, Depth: 32, Bytes: 1 << 20}
	f.Fuzz(func(t *testing.T, data []byte) {
		tree := newTree(t)
		canary := filepath.Join(filepath.Dir(tree), "canary")
		if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Unpack(context.Background(), tree, bytes.NewReader(data), Options{Limits: limits})
		if got, readErr := os.ReadFile(canary); readErr != nil || string(got) != "alive" {
			t.Fatalf("the canary is %q, %v", got, readErr)
		}
		if entries, _ := os.ReadDir(filepath.Dir(tree)); len(entries) != 2 {
			t.Fatalf("something new is beside the layer: %v", entries)
		}
		if err != nil {
			return
		}
		first := pack(t, tree)
		again := newTree(t)
		if _, err := Unpack(context.Background(), again, bytes.NewReader(first), Options{}); err != nil {
			t.Fatalf("unpack what was packed: %v", err)
		}
		if !bytes.Equal(first, pack(t, again)) {
			t.Fatal("the second tar differs")
		}
	})
}
