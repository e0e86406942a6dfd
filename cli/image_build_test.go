package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// input makes data a standard input.
func input(t *testing.T, data []byte) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	go func() {
		_, _ = w.Write(data)
		w.Close()
	}()
	return r
}

func writeFiles(t *testing.T, dir string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestBuildInputs: the ways a context and a Dockerfile can be given, as with
// docker build.
func TestBuildInputs(t *testing.T) {
	c := newConsole(t)
	dir := writeFiles(t, t.TempDir(), map[string]string{"page": "here\n", "sub/Dockerfile": "FROM busybox\nCOPY page /page\n"})
	elsewhere := writeFiles(t, t.TempDir(), map[string]string{"My.Dockerfile": "FROM busybox\nCOPY page /page\n"})
	archive := tarOf(t, map[string]string{"page": "tar\n", "Dockerfile": "FROM busybox\nCOPY page /page\n", "Other": "FROM busybox\nLABEL other=yes\n"})
	for _, b := range []struct {
		name  string
		stdin []byte
		args  []string
		page  string
	}{
		{"Dockerfile outside of the context", nil, []string{"-f", elsewhere + "/My.Dockerfile", dir}, "here\n"},
		{"below the context", nil, []string{"-f", "sub/Dockerfile", dir}, "here\n"},
		{"from standard input", []byte("FROM busybox\nCOPY page /page\n"), []string{"-f", "-", dir}, "here\n"},
		{"without a context", []byte("FROM busybox\nCOPY <<E /page\ninline\nE\n"), []string{"-"}, "inline\n"},
		{"archive", archive, []string{"-"}, "tar\n"},
	} {
		out, errs, err := c.naruIn(t.Context(), input(t, b.stdin), append([]string{"build", "-q", "-t", "one", "-t", "two:2", "--network", "none"}, b.args...)...)
		if err != nil || errs != "" || !strings.HasPrefix(out, "sha256:") {
			t.Errorf("%s: %v\n%s%s", b.name, err, out, errs)
			continue
		}
		for _, name := range []string{"one", "two:2"} {
			if page := c.ok("run", "--rm", "--network", "none", name, "cat", "/page"); page != b.page {
				t.Errorf("%s: %s has %q", b.name, name, page)
			}
		}
	}
	if _, _, err := c.naruIn(t.Context(), input(t, archive), "build", "-q", "-t", "other", "-f", "Other", "-"); err != nil {
		t.Errorf("--file in an archive: %v", err)
	}
	for _, b := range []struct {
		args []string
		want string
	}{
		{[]string{"-f", "-", "-"}, "standard input cannot be both"},
		{[]string{filepath.Join(dir, "page")}, "is no directory; a Dockerfile is given with --file"},
		{[]string{"-f", "nope", dir}, "--file nope: there is no such file"},
		{[]string{"s3://bucket/x"}, "cannot be fetched by s3"},
		{[]string{"https://example.com/x.git?what=1"}, `unexpected query "what"`},
		{[]string{"-t", "UPPER", dir}, "--tag: image name \"UPPER\""},
		{[]string{"--progress", "loud", dir}, `--progress "loud": want auto, plain, tty, quiet, rawjson`},
		{[]string{"--progress", "tty", "-f", "sub/Dockerfile", dir}, "the output is no terminal"},
		{[]string{"-m", "much", dir}, `size "much"`},
		{[]string{"--squash", dir}, "--squash is not possible"},
		{[]string{"--security-opt", "seccomp=unconfined", dir}, "--security-opt seccomp=unconfined is not possible"},
		{[]string{"--cpuset-cpus", "0", dir}, "--cpuset-cpus 0 is not possible"},
		{[]string{"--memory-swap", "-1", dir}, "--memory-swap -1 is not possible"},
		{[]string{"-c", "512", dir}, "--cpu-shares 512 is not possible"},
		{[]string{"--builder", "mine", dir}, "--builder mine is not possible"},
		{[]string{"--isolation", "hyperv", dir}, "--isolation hyperv is not possible"},
		{[]string{"--disable-content-trust=false", dir}, "--disable-content-trust=false is not possible"},
		{[]string{"--call", "outline", dir}, "--call outline: only build and check"},
		{[]string{"--cpu-quota", "50000", "--cpus", "1", dir}, "--cpu-quota and --cpus exclude each other"},
		{[]string{"--sbom=generator=x", dir}, "generator=x is not supported"},
		{[]string{"--cgroup-parent", "/x", dir}, "--cgroup-parent /x is not possible"},
	} {
		_, _, err := c.naruIn(t.Context(), input(t, nil), append([]string{"build"}, b.args...)...)
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != exitUsage || !strings.Contains(err.Error(), b.want) {
			t.Errorf("%q: %v", b.args, err)
		}
	}
}

func TestBuildCheck(t *testing.T) {
	c := newConsole(t)
	dir := writeFiles(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nCMD x\n", "good": "FROM busybox\nCMD [\"x\"]\n", "bad": "FROM busybox\nRNU x\n"})
	if out := c.ok("build", "--check", "-f", dir+"/good", dir); out != "Check complete, no warnings found.\n" {
		t.Error(out)
	}
	out, _, err := c.naruIn(t.Context(), nil, "build", "--check", dir)
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 1 || exit.Err != nil {
		t.Errorf("%v", err)
	}
	for _, want := range []string{"Check complete, 1 warning has been found!\n", "\nWARNING: JSONArgsRecommended - https://", "   2 | >>> CMD x\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if out, _, err = c.naruIn(t.Context(), nil, "build", "--check", "-f", dir+"/bad", dir); err == nil || !strings.Contains(err.Error(), "bad:2: unknown instruction: RNU") || !strings.Contains(out, ">>> RNU x") {
		t.Errorf("%v\n%s", err, out)
	}
	out, _, _ = c.naruIn(t.Context(), nil, "build", "--check", "--json", dir)
	var report struct {
		Warnings []struct {
			RuleName string
			Line     int
		}
		BuildError string
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Warnings) != 1 || report.Warnings[0].RuleName != "JSONArgsRecommended" || report.Warnings[0].Line != 2 {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestBuildOutput: where the id, the progress and the reason of a failure go.
func TestBuildOutput(t *testing.T) {
	c := newConsole(t)
	dir := writeFiles(t, t.TempDir(), map[string]string{"Dockerfile": "FROM busybox\nRUN echo hello\nLABEL a=b\n", "bad": "FROM busybox\nRUN echo why; nope\n", "slow": "FROM busybox\nRUN sleep 60\n"})
	idFile := filepath.Join(dir, "id")
	out, errs, err := c.naruIn(t.Context(), nil, "image", "build", "-t", "a", "--network", "none", "--iidfile", idFile, "--json", "--progress", "plain", dir)
	var result struct {
		ID    string
		Names []string
	}
	if err != nil || json.Unmarshal([]byte(out), &result) != nil || len(result.Names) != 1 || !strings.Contains(errs, " hello\n") || !strings.Contains(errs, " [2/2] RUN echo hello\n") {
		t.Errorf("%v\n%s\n%s", err, out, errs)
	}
	if id, err := os.ReadFile(idFile); err != nil || string(id) != result.ID {
		t.Errorf("%s, %v", id, err)
	}
	if _, errs, err = c.naruIn(t.Context(), nil, "build", "--progress", "rawjson", dir); err != nil || !strings.HasPrefix(errs, `{"vertexes":[{"digest":"sha256:`) {
		t.Errorf("%v\n%s", err, errs)
	}
	out, errs, err = c.naruIn(t.Context(), nil, "build", "-q", "--network", "none", "-f", dir+"/bad", dir)
	if err == nil || out != "" || !strings.Contains(errs, "\nwhy\n") || !strings.Contains(errs, ">>> RUN echo why; nope\n") || !strings.Contains(errs, "hint: there is no program nope") {
		t.Errorf("%v\n%s", err, errs)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var exit *ExitError
	if _, errs, err = c.naruIn(ctx, nil, "build", "--network", "none", "-f", dir+"/slow", dir); !errors.As(err, &exit) || exit.Code != 130 || err.Error() != "build canceled" {
		t.Errorf("%v\n%s", err, errs)
	}
}

func TestPrintDockerfile(t *testing.T) {
	c := newConsole(t)
	dir := writeFiles(t, t.TempDir(), map[string]string{"index.html": "x"})
	out := c.ok("build", "--print-dockerfile", dir)
	if !strings.HasPrefix(out, "# syntax=docker/dockerfile:1\n# Written by naru") {
		t.Error(out)
	}
	var plan struct {
		Kind, Dockerfile string
		Reasons          []string
	}
	if text := c.ok("build", "--print-dockerfile", "--json", dir); json.Unmarshal([]byte(text), &plan) != nil || plan.Kind != "static site" || plan.Dockerfile != out || len(plan.Reasons) == 0 {
		t.Error(text)
	}
	if out := c.ok("build", "--check", dir); out != "Check complete, no warnings found.\n" {
		t.Error(out)
	}
	writeFiles(t, dir, map[string]string{"Dockerfile": "FROM scratch\n"})
	if out := c.ok("build", "--print-dockerfile", dir); out != "FROM scratch\n" {
		t.Error(out)
	}
}
