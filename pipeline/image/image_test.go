package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"naru/pipeline"
	"naru/sandbox"
	"naru/sandbox/build"
	"naru/sandbox/image"
	"naru/sandbox/runtime/launch"
)

func TestMain(m *testing.M) {
	launch.Main()
	os.Exit(m.Run())
}

const commit = "0123456789abcdef0123456789abcdef01234567"

func newBuilder(t *testing.T) (*Builder, *sandbox.Engine) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	dir := t.TempDir()
	e, err := sandbox.Open(sandbox.Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Reset(context.Background()); err != nil {
			t.Errorf("reset: %v", err)
		}
	})
	config := image.Config{}
	config.Config.Env = []string{"PATH=/bin"}
	if _, err := e.Images().Import(t.Context(), busybox(t), "busybox", config); err != nil {
		t.Fatal(err)
	}
	limits := DefaultLimits()
	limits.Memory, limits.Network = 256<<20, "none"
	return New(e, limits, nil), e
}

func request(dir string, log io.Writer) pipeline.BuildRequest {
	return pipeline.BuildRequest{
		App: "Shop", Commit: pipeline.Commit{Hash: commit}, Dir: dir, Log: log,
		Build: pipeline.Build{Context: ".", Dockerfile: "Dockerfile", Args: map[string]string{"WORD": "built"}},
	}
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const dockerfile = "FROM busybox\nARG WORD\nCOPY page /page\nRUN echo $WORD >> /page\nCMD [\"cat\", \"/page\"]\n"

func TestBuildMakesANamedImage(t *testing.T) {
	b, e := newBuilder(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": dockerfile, "page": "page\n"})
	var log bytes.Buffer
	first, err := b.Build(t.Context(), request(dir, &log))
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	img, err := e.Images().Get(first)
	if err != nil || !slices.Contains(img.Names, "naru/shop:0123456789ab") || img.Config.Config.Labels[LabelApp] != "Shop" {
		t.Errorf("%v, labels %v, %v", img.Names, img.Config.Config.Labels, err)
	}
	r := request(dir, io.Discard)
	r.Commit.Hash = strings.Repeat("f", 40)
	again, err := b.Build(t.Context(), r)
	if err != nil || again != first {
		t.Errorf("another commit with the same content: %s, %v; want %s", again, err, first)
	}
	c, err := e.Run(t.Context(), sandbox.ContainerConfig{Image: first, Network: "none"}, sandbox.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := e.Wait(t.Context(), c.ID); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
}

// TestATreeWithoutDockerfile is built, and the deployment's log says how.
func TestATreeWithoutDockerfile(t *testing.T) {
	b, e := newBuilder(t)
	if _, err := e.Images().Import(t.Context(), busybox(t), "nginxinc/nginx-unprivileged:1.29-alpine", image.Config{}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"index.html": "hello"})
	var log bytes.Buffer
	id, err := b.Build(t.Context(), request(dir, &log))
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if img, err := e.Images().Get(id); err != nil || img.Config.Config.User != "101:101" {
		t.Errorf("%+v, %v", img.Config.Config, err)
	}
	for _, want := range []string{"no Dockerfile: find out how to build this", "static site: index.html", "This Dockerfile is used"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in\n%s", want, log.String())
		}
	}
}

func TestAFailingStepIsAnErrorWithItsLine(t *testing.T) {
	b, _ := newBuilder(t)
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "FROM busybox\nRUN echo bad news && exit 5\n"})
	var log bytes.Buffer
	_, err := b.Build(t.Context(), request(dir, &log))
	step := new(build.StepError)
	if !errors.As(err, &step) || step.Code != 5 || step.Line != 2 {
		t.Errorf("%v", err)
	}
	if !strings.Contains(log.String(), "bad news") {
		t.Errorf("log %q", log.String())
	}
}

func TestTheContextStaysInTheTree(t *testing.T) {
	b, _ := newBuilder(t)
	outside, dir := t.TempDir(), t.TempDir()
	write(t, outside, map[string]string{"Dockerfile": "FROM busybox\n"})
	write(t, dir, map[string]string{"file": ""})
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"..", "../..", "link", "/etc", "missing", "file"} {
		r := request(dir, io.Discard)
		r.Build.Context = sub
		if id, err := b.Build(t.Context(), r); err == nil {
			t.Errorf("context %q was built to %s", sub, id)
		}
	}
}

// TestLimitsAndSecretsOfAnApp: what the app's build section says reaches its steps.
func TestLimitsAndSecretsOfAnApp(t *testing.T) {
	b, _ := newBuilder(t)
	b.Secret = func(name string) (string, error) {
		if name != "token" {
			return "", errors.New("there is no such secret")
		}
		return "value-of-the-token", nil
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "FROM busybox\nRUN --mount=type=secret,id=token,required cat /run/secrets/token\nRUN yes 0123456789abcdef > /file\n"})
	var log bytes.Buffer
	r := request(dir, &log)
	r.Build.Secrets, r.Build.Disk, r.Build.Args = []string{"token"}, 8<<20, nil
	_, err := b.Build(t.Context(), r)
	if failed := (*build.StepError)(nil); !errors.As(err, &failed) || failed.Reason != build.ReasonDisk || failed.Line != 3 {
		t.Errorf("%v", err)
	}
	if s := log.String(); strings.Contains(s, "value-of") || !strings.Contains(s, "***") {
		t.Errorf("log %s", s)
	}
	r.Build.Secrets = []string{"other"}
	if _, err := b.Build(t.Context(), r); err == nil || !strings.Contains(err.Error(), "secret other") {
		t.Errorf("%v", err)
	}
}

// busybox is a root file system of the host's static busybox.
func busybox(t *testing.T) io.Reader {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("the test runs busybox: ", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for _, applet := range []string{"sh", "cat", "echo", "yes"} {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}
