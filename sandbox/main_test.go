package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image"
	"naru/sandbox/runtime"
	"naru/sandbox/runtime/launch"
)

func TestMain(m *testing.M) {
	launch.Main()
	killsInit()
	tracerIfAsked()
	jobIfAsked()
	crashIfAsked()
	calledIfAsked()
	agentIfAsked()
	hostileIfAsked()
	os.Exit(m.Run())
}

// needRoot skips what makes real containers.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("the tests run busybox: ", err)
	}
}

// newEngine opens an engine of its own with an image "busybox", and checks at
// the end of the test that nothing of it is left in the kernel.
func newEngine(t *testing.T) *Engine {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	e, err := Open(Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Reset(context.Background()); err != nil {
			t.Errorf("reset: %v", err)
		}
		checkNoCgroups(t, e)
	})
	if _, err := e.Images().Import(t.Context(), busyboxTar(t), "busybox", busyboxConfig()); err != nil {
		t.Fatal(err)
	}
	return e
}

func checkNoCgroups(t *testing.T, e *Engine) {
	t.Helper()
	var left []string
	for _, place := range []string{"/sys/fs/cgroup/*/naru-", "/sys/fs/cgroup/naru-"} { // v1 and hybrid, v2
		found, err := filepath.Glob(place + e.hash + "/*")
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	for _, path := range left {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			t.Errorf("cgroup is left: %s", path)
		}
	}
}

func busyboxConfig() image.Config {
	return image.Config{Config: image.RunConfig{ImageConfig: v1.ImageConfig{
		Cmd: []string{"sh"}, Env: []string{"PATH=/bin", "FROM=image"}, Labels: map[string]string{"made": "by test", "naru.app": "forged"},
	}}}
}

// busyboxTar is a root file system with busybox, two users and a directory of
// the plain one's.
func busyboxTar(t testing.TB) io.Reader {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
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
	for _, dir := range []string{"bin/", "etc/", "tmp/", "root/", "srv/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	for applet := range strings.FieldsSeq("sh cat echo id ls sleep true false touch mkdir chmod httpd wget head dd env hostname pwd stat kill test nc yes tail grep ps rm seq date mount ping") {
		add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\nplain:x:1000:1000::/srv:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\nplain:x:1000:\nextra:x:2000:plain\n"))
	add(tar.Header{Name: "etc/notes", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("no program\n"))
	add(tar.Header{Name: "srv/data/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 1000, Gid: 1000}, nil)
	add(tar.Header{Name: "srv/data/seed", Typeflag: tar.TypeReg, Mode: 0o600, Uid: 1000, Gid: 1000}, []byte("seed\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// sh is a container without network that runs a shell script.
func sh(script string) ContainerConfig {
	return ContainerConfig{Image: "busybox", Args: []string{"sh", "-c", script}, Network: NetworkNone}
}

// runToEnd runs a container and returns its exit and what it wrote.
func runToEnd(t *testing.T, e *Engine, c ContainerConfig) (runtime.Exit, string) {
	t.Helper()
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := e.Wait(t.Context(), made.ID)
	if err != nil {
		t.Fatal(err)
	}
	return exit, logOf(t, e, made.ID)
}

func logOf(t *testing.T, e *Engine, ref string) string {
	t.Helper()
	var b bytes.Buffer
	if err := e.Logs(t.Context(), ref, runtime.LogOptions{}, &b, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// output is runToEnd for scripts that must succeed.
func output(t *testing.T, e *Engine, c ContainerConfig) string {
	t.Helper()
	exit, out := runToEnd(t, e, c)
	if exit.Code != 0 || !exit.Known {
		t.Fatalf("%q ended with %+v: %s", c.Args, exit, out)
	}
	return out
}

// eventually polls until ok or ten seconds are over.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timeout: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func mustState(t *testing.T, e *Engine, ref, want string) Container {
	t.Helper()
	c, err := e.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if c.State != want {
		t.Fatalf("container %s is %s, want %s", ref, c.State, want)
	}
	return c
}

func mustBeGone(t *testing.T, e *Engine, ref string) {
	t.Helper()
	if c, err := e.Get(t.Context(), ref); !errors.Is(err, ErrNotFound) {
		t.Fatalf("container %s: got %s, %v; want it gone", ref, c.State, err)
	}
}
