package local

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"naru/pipeline"
	"naru/pipeline/target/targettest"
	"naru/sandbox"
	"naru/sandbox/image"
	"naru/sandbox/runtime/launch"
)

func TestMain(m *testing.M) {
	launch.Main()
	os.Exit(m.Run())
}

func TestContract(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	targettest.Run(t, func(t *testing.T) targettest.Subject { return subject(t, "") })
}

// TestContractWithRunc deploys replicas whose app has `runtime: /…/runc`.
func TestContractWithRunc(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skip("the other runtime is runc: ", err)
	}
	targettest.Run(t, func(t *testing.T) targettest.Subject { return subject(t, runc) })
}

// TestRuntimeThatIsGone is a replica that does not start, and says why.
func TestRuntimeThatIsGone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	s := subject(t, "/nowhere/runc")
	_, err := s.Target.Start(t.Context(), pipeline.ReplicaSpec{Name: "r", App: "shop", Image: s.Image, Process: pipeline.Process{Name: "web", Command: []string{"sleep", "60"}}})
	if err == nil || !strings.Contains(err.Error(), "/nowhere/runc: no such file") {
		t.Errorf("got %v", err)
	}
	if list, err := s.Target.List(t.Context(), "shop"); err != nil || len(list) > 0 {
		t.Errorf("replicas are left: %v, %v", list, err)
	}
}

// subject is a target with an engine of its own, whose replicas have a runtime.
func subject(t *testing.T, runtime string) targettest.Subject {
	t.Helper()
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
	img, err := e.Images().Import(t.Context(), busybox(t), "busybox", config)
	if err != nil {
		t.Fatal(err)
	}
	return targettest.Subject{Target: withRuntime{t, New(e), e, runtime}, Image: img.ID.String()}
}

// withRuntime is a target for apps that all have one runtime.
type withRuntime struct {
	t *testing.T
	*Target
	engine  *sandbox.Engine
	runtime string
}

func (w withRuntime) Start(ctx context.Context, s pipeline.ReplicaSpec) (pipeline.Replica, error) {
	s.Runtime = w.runtime
	r, err := w.Target.Start(ctx, s)
	if c, getErr := w.engine.Get(ctx, s.Name); getErr == nil && c.Config.Runtime != w.runtime {
		w.t.Errorf("replica %s has runtime %q, want %q", s.Name, c.Config.Runtime, w.runtime)
	}
	return r, err
}

func (w withRuntime) Run(ctx context.Context, s pipeline.ReplicaSpec, command []string, log io.Writer) (int, error) {
	s.Runtime = w.runtime
	var b bytes.Buffer
	code, err := w.Target.Run(ctx, s, command, &b)
	for line := range strings.Lines(b.String()) {
		if w.runtime == "" || !strings.HasPrefix(line, "naru: warning: runtime "+w.runtime) { // which belongs to it
			_, _ = io.WriteString(log, line) // a buffer of the test's
		}
	}
	return code, err
}

func TestHostnames(t *testing.T) {
	for name, want := range map[string]string{
		"shop.web.r7.abc123.1":   "shop-web-r7-abc123-1",
		strings.Repeat("x", 100): strings.Repeat("x", 63),
		"a_":                     "a",
	} {
		if got := hostname(name); got != want {
			t.Errorf("%s became %s, want %s", name, got, want)
		}
	}
}

func TestWarningsAreNotLost(t *testing.T) {
	if got := replica(sandbox.Container{Warnings: []string{"no user namespace"}}).Warnings; len(got) != 1 || got[0] != "no user namespace" {
		t.Errorf("the replica says %q", got)
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
	for _, dir := range []string{"bin/", "tmp/", "etc/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for applet := range strings.FieldsSeq("sh cat echo sleep true test touch mkdir httpd seq") {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}
