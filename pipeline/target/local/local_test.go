package local

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	targettest.Run(t, func(t *testing.T) targettest.Subject {
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
		return targettest.Subject{Target: New(e), Image: img.ID.String()}
	})
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
