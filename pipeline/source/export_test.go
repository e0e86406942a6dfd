package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// listing is every path below dir with its mode and content or target.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		switch {
		case d.IsDir():
			all[name] = info.Mode().String()
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			all[name] = "-> " + target
			return err
		default:
			data, err := os.ReadFile(path)
			all[name] = fmt.Sprintf("%s %.30q", info.Mode(), data)
			return err
		}
		return nil
	})
	must(t, err)
	return all
}

func TestExport(t *testing.T) {
	u, s := newUpstream(t), open(t)
	u.write("a", "1")
	u.write("empty", "")
	u.write("d/e/run.sh", "#!/bin/sh\n")
	u.write("d/ünï\tcode", "x")
	must(t, os.Chmod(filepath.Join(u.dir, "d/e/run.sh"), 0o755))
	for name, target := range map[string]string{"d/up": "../a", "d/e/dir": "..", "dangling": "d/none", "through": "d/up/x"} {
		must(t, os.Symlink(target, filepath.Join(u.dir, name)))
	}
	first := u.commit("first")
	u.write("a", "2")
	u.commit("second")
	fetch(t, s, u.repo(), "")

	old := syscall.Umask(0o077) // modes must not depend on it
	dir := filepath.Join(t.TempDir(), "out")
	err := s.Export(t.Context(), u.repo(), first, dir)
	syscall.Umask(old)
	must(t, err)
	got := listing(t, dir)
	delete(got, "d")
	delete(got, "d/e") // directories may follow the umask: only the agent reads them
	want := map[string]string{
		"a": `-rw-r--r-- "1"`, "empty": `-rw-r--r-- ""`, "d/e/run.sh": `-rwxr-xr-x "#!/bin/sh\n"`, "d/ünï\tcode": `-rw-r--r-- "x"`,
		"d/up": "-> ../a", "d/e/dir": "-> ..", "dangling": "-> d/none", "through": "-> d/up/x",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"a", "d/e/run.sh", "d", "d/e"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !info.ModTime().Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
			t.Errorf("%s: %v, %v", name, info.ModTime(), err)
		}
	}
}

func TestExportRefuses(t *testing.T) {
	link := func(target, name string) func(*upstream) {
		return func(u *upstream) { must(t, os.Symlink(target, filepath.Join(u.dir, name))) }
	}
	for _, c := range []struct {
		name string
		make func(*upstream)
		want string
	}{
		{"an absolute symlink", link("/etc/passwd", "l"), `"l" leaves the repository`},
		{"an escaping symlink", link("../x", "l"), `"l" leaves the repository`},
		{"one that goes in and out", link("d/../../x", "l"), `"l" leaves the repository`},
		{"one that escapes through another", func(u *upstream) {
			u.write("a/b/c/f", "")
			u.write("top/f", "")
			link("../../../top", "a/b/c/up")(u)
			link("a/b/c/up/../..", "l")(u)
		}, `"l" leaves the repository`},
		{"a ring of symlinks", func(u *upstream) { link("m", "l")(u); link("l", "m")(u) }, "long chain"},
		{"an LFS pointer", func(u *upstream) {
			u.write("big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
		}, `"big.bin" is kept in Git LFS`},
		{"a submodule", func(u *upstream) {
			u.git("update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",lib")
		}, `"lib" is a submodule`},
		{"too much", func(u *upstream) { u.write("big", strings.Repeat("x", 10_001)) }, "too large together"},
		{"too many", func(u *upstream) {
			for i := range 60 {
				u.write(fmt.Sprintf("f%d", i), "")
			}
		}, "too many files"},
		{"too deep", func(u *upstream) { u.write(strings.Repeat("d/", 12)+"f", "") }, "directories deep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, s := newUpstream(t), open(t)
			s.limits = limits{bytes: 10_000, entries: 50, depth: 10}
			u.write("d/f", "")
			c.make(u)
			u.git("add", ".")
			if c.name == "a submodule" { // add would take away what has no directory
				u.git("update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",lib")
			}
			u.git("commit", "-q", "-m", "hostile")
			tip := fetch(t, s, u.repo(), "").Hash
			err := s.Export(t.Context(), u.repo(), tip, filepath.Join(t.TempDir(), "out"))
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestMalformedTrees makes trees that git would not, object by object.
func TestMalformedTrees(t *testing.T) {
	for _, c := range []struct {
		name string
		tree func(blob, tree string) string // as in a tree object
		want string
	}{
		{"a git directory", func(blob, tree string) string { return "40000 .git\x00" + tree }, "not allowed"},
		{"a git directory in disguise", func(blob, tree string) string { return "40000 .GiT\x00" + tree }, "not allowed"},
		{"the directory itself", func(blob, tree string) string { return "40000 .\x00" + tree }, "not allowed"},
		{"the directory above", func(blob, tree string) string { return "40000 ..\x00" + tree }, "not allowed"},
		{"a path as a name", func(blob, tree string) string { return "100644 ../../x\x00" + blob }, "not allowed"},
		{"an absolute path", func(blob, tree string) string { return "100644 /tmp/x\x00" + blob }, "not allowed"},
		{"a name twice", func(blob, tree string) string { return "100644 a\x00" + blob + "100644 a\x00" + blob }, "twice"},
		{"a file that is a directory too", func(blob, tree string) string { return "100644 a\x00" + blob + "40000 a\x00" + tree }, "twice"},
		{"a symlink that is a directory too", func(blob, tree string) string { return "120000 a\x00" + blob + "40000 a\x00" + tree }, "twice"},
		{"an unknown mode", func(blob, tree string) string { return "60000 a\x00" + blob }, ""},
		{"half a tree", func(blob, tree string) string { return "100644 a\x00" + blob[:10] }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			u, s := newUpstream(t), open(t)
			u.write("f", "d")
			u.commit("first")
			binary := func(rev string) string {
				var b []byte
				_, err := fmt.Sscanf(u.git("rev-parse", rev), "%x", &b)
				must(t, err)
				return string(b)
			}
			raw := filepath.Join(t.TempDir(), "tree")
			must(t, os.WriteFile(raw, []byte(c.tree(binary("HEAD:f"), binary("HEAD^{tree}"))), 0o600))
			id := u.git("hash-object", "-t", "tree", "-w", "--literally", raw)
			tip := u.git("commit-tree", "-m", "hostile", id)
			u.git("update-ref", "refs/heads/main", tip)
			dir := filepath.Join(t.TempDir(), "out")
			_, err := s.Fetch(t.Context(), u.repo(), "", io.Discard)
			if err == nil {
				err = s.Export(t.Context(), u.repo(), tip, dir)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestLargeFiles(t *testing.T) {
	u, s := newUpstream(t), open(t)
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * i >> 7)
	}
	u.write("big", strings.Repeat(string(block), 20)) // above largeObject: streamed
	u.commit("first")
	u.write("big", strings.Repeat(string(block), 20)+"more") // a delta of it
	tip := u.commit("second")
	fetch(t, s, u.repo(), "")
	dir := filepath.Join(t.TempDir(), "out")
	must(t, s.Export(t.Context(), u.repo(), tip, dir))
	got, err := os.ReadFile(filepath.Join(dir, "big"))
	if err != nil || string(got) != strings.Repeat(string(block), 20)+"more" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestExportArguments(t *testing.T) {
	u, s := newUpstream(t), open(t)
	u.write("a", "1")
	tip := u.commit("first")
	full := t.TempDir()
	must(t, os.WriteFile(filepath.Join(full, "x"), nil, 0o600))
	if err := s.Export(t.Context(), u.repo(), tip, full); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a full directory: %v", err)
	}
	if err := s.Export(t.Context(), u.repo(), strings.Repeat("1", 40), t.TempDir()); !errors.Is(err, ErrNotOnBranch) {
		t.Errorf("an unknown commit: %v", err)
	}
	if err := s.Export(t.Context(), u.repo(), tip[:10], t.TempDir()); err == nil {
		t.Error("a short id went well")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Export(ctx, u.repo(), tip, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
