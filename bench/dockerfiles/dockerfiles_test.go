package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCorpus builds every case with naru and compares with what is kept: what it
// made when it was last compared with other builders.
func TestCorpus(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("builds run in containers, which need root")
	}
	n, dir := prepared(t)
	cases, err := loadCases("testdata")
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < 250 {
		t.Fatalf("the corpus has %d cases only", len(cases))
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { testOne(t, n, c, dir) })
	}
}

// prepared is a fresh binary whose root has the image "base".
func prepared(t *testing.T) (naru, string) {
	t.Helper()
	dir := t.TempDir()
	n := naru{bin: filepath.Join(dir, "naru-bin"), dir: dir}
	if out, err := exec.Command("go", "build", "-o", n.bin, "../..").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	base, err := makeBase(t.Context(), n, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.begin(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	return n, dir
}

func testOne(t *testing.T, n naru, c *testCase, dir string) {
	o := attempt(t.Context(), n, c, dir)
	if c.fails != "" {
		if o.err == nil || !strings.Contains(o.err.Error(), c.fails) {
			t.Fatalf("error %v, want one with %q", o.err, c.fails)
		}
		return
	}
	if o.err != nil {
		t.Fatal(o.err)
	}
	kept, err := os.ReadFile(goldenFile("testdata", c))
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatal("nothing is kept to compare with: go run ./bench/dockerfiles -golden")
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := own(o.result); got != string(kept) {
		t.Errorf("made:\n%s\nwant:\n%s", got, kept)
	}
}

// TestDifferencesAreSeen changes one thing of a result at a time.
func TestDifferencesAreSeen(t *testing.T) {
	a := outcome{result: &result{files: map[string]string{"/a": "file 0644 0:0 1 x"}, config: map[string]string{"User": `"app"`}}}
	for name, b := range map[string]outcome{
		"file":   {result: &result{files: map[string]string{"/a": "file 0600 0:0 1 x"}, config: a.result.config}},
		"config": {result: &result{files: a.result.files, config: map[string]string{}}},
		"failed": {err: context.Canceled},
	} {
		if len(differences(a, b)) == 0 || len(differences(b, a)) == 0 {
			t.Errorf("%s: no difference is seen", name)
		}
	}
	if d := differences(a, a); len(d) > 0 {
		t.Errorf("the same result differs: %q", d)
	}
}
