package layer

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"naru/sandbox/image/layer/layertest"
)

type entry = layertest.Entry

// newTree is an empty layer directory as the store makes it.
func newTree(t testing.TB) string {
	t.Helper()
	layertest.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func unpack(t testing.TB, entries ...entry) (string, Result) {
	t.Helper()
	tree := newTree(t)
	r, err := Unpack(context.Background(), tree, bytes.NewReader(layertest.Tar(t, entries...)), Options{})
	if err != nil {
		t.Fatalf("unpack: %v", err)
	}
	return tree, r
}

func pack(t testing.TB, tree string) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := Pack(context.Background(), tree, &buf); err != nil {
		t.Fatalf("pack: %v", err)
	}
	return buf.Bytes()
}
