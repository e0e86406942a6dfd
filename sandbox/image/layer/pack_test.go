package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/layer/layertest"
)

// allKinds is a layer with one of everything.
func allKinds() []entry {
	return []entry{
		layertest.Dir("dir", 0o1750), layertest.File("dir/.wh.gone"), layertest.File("dir/plain"),
		layertest.Dir("opaque", 0o755), layertest.File("opaque/.wh..wh..opq"), layertest.File("opaque/in"),
		{Typeflag: tar.TypeReg, Name: "suid", Mode: 0o4755, Uid: 12, Gid: 65535},
		{Typeflag: tar.TypeReg, Name: "attrs", Mode: 0o600, PAXRecords: layertest.Xattrs("user.a", "b\x00c", "user.z", "1")},
		{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600},
		layertest.Symlink("sym", "/absolute/../target"),
		layertest.File("one"), layertest.Link("two", "one"), layertest.Link("dir/three", "/one"),
		layertest.File("näme with ümlauts and " + strings.Repeat("long ", 40)),
		{Typeflag: tar.TypeReg, Name: "big-owner", Uid: 5_000_000, Gid: 5_000_000},
	}
}

func TestPackUnpackRoundTrip(t *testing.T) {
	tree, _ := unpack(t, allKinds()...)
	first := pack(t, tree)
	again := newTree(t)
	if _, err := Unpack(context.Background(), again, bytes.NewReader(first), Options{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(layertest.Describe(t, tree), layertest.Describe(t, again)); diff != "" {
		t.Errorf("the tree changed on the way (-was +is):\n%s", diff)
	}
	if second := pack(t, again); !bytes.Equal(first, second) {
		t.Error("the second tar differs from the first")
	}
}

// The digest of a built layer is that of the tar Pack makes, now and after any
// update of Go's archive/tar: a layer that packs differently cannot be saved
// any more. If this test fails, the writer needs a version, not a new number.
func TestPackIsTheSameForever(t *testing.T) {
	tree, _ := unpack(t, allKinds()...)
	const want = "54bf152192a3762e4f06faf6c6b7a709030e8fe49e38b518397a584ef0533541"
	if got := fmt.Sprintf("%x", sha256.Sum256(pack(t, tree))); got != want {
		t.Errorf("sha256 %s, want %s", got, want)
	}
}

func TestPackOrderAndForms(t *testing.T) {
	tree, _ := unpack(t, layertest.Dir("b", 0o755), layertest.File("b/.wh..wh..opq"), layertest.File("b/.wh.x"), layertest.File("b/a"), layertest.File("c"), layertest.Link("a", "c"))
	var got []string
	r := tar.NewReader(bytes.NewReader(pack(t, tree)))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%c %s %s", h.Typeflag, h.Name, h.Linkname))
	}
	want := []string{"0 a ", "5 b/ ", "0 b/.wh..wh..opq ", "0 b/a ", "0 b/.wh.x ", "1 c a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func TestPackSkipsSockets(t *testing.T) {
	tree := newTree(t)
	l, err := net.Listen("unix", filepath.Join(tree, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := tar.NewReader(bytes.NewReader(pack(t, tree))).Next(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want an empty tar", err)
	}
}

func TestPackRefuses(t *testing.T) {
	for name, make := range map[string]func(tree string) error{
		"names start with": func(tree string) error {
			return os.WriteFile(filepath.Join(tree, ".wh.mine"), nil, 0o600)
		},
		"no complete layer": func(tree string) error {
			path := filepath.Join(tree, "d")
			return errors.Join(os.Mkdir(path, 0o755), unix.Setxattr(path, "trusted.overlay.redirect", []byte("/x"), 0))
		},
	} {
		tree := newTree(t)
		if err := make(tree); err != nil {
			t.Fatal(err)
		}
		err := Pack(context.Background(), tree, io.Discard)
		if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "names that start with", "names start with"), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}

func TestCapabilitiesLoseTheNamespaceTheyWereSetIn(t *testing.T) {
	v3 := "\x01\x00\x00\x03" + strings.Repeat("c", 16) + "\x10\x27\x00\x00"
	if got, want := withoutRootID(v3), "\x01\x00\x00\x02"+strings.Repeat("c", 16); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if v2 := v3[:20]; withoutRootID(v2) != v2 {
		t.Error("a version 2 capability changed")
	}
}

// What the kernel's overlayfs leaves in an upper directory is what Pack reads,
// and what Unpack makes is what overlayfs understands.
func TestKernelAgrees(t *testing.T) {
	lower, _ := unpack(t,
		layertest.Dir("d", 0o755), layertest.File("d/old"), layertest.File("d/changed"), layertest.Dir("replaced", 0o755), layertest.File("replaced/hidden"),
		layertest.File("f1"), layertest.File("f2"))
	base := filepath.Dir(lower)
	upper, work, merged := filepath.Join(base, "upper"), filepath.Join(base, "work"), filepath.Join(base, "merged")
	for _, d := range []string{upper, work, merged} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	overlay := func(options string) func() {
		t.Helper()
		if err := unix.Mount("overlay", merged, "overlay", 0, options+",redirect_dir=off,metacopy=off,index=off"); err != nil {
			t.Fatalf("mount overlay: %v", err)
		}
		return func() {
			if err := unix.Unmount(merged, 0); err != nil {
				t.Fatalf("unmount: %v", err)
			}
		}
	}
	unmount := overlay("lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work)
	at := func(name string) string { return filepath.Join(merged, name) }
	err := errors.Join(
		os.Remove(at("f1")), os.Remove(at("f2")), // two whiteouts, one inode
		os.Remove(at("d/old")), os.WriteFile(at("d/changed"), []byte("new"), 0o644), os.Chmod(at("d"), 0o700),
		os.RemoveAll(at("replaced")), os.Mkdir(at("replaced"), 0o755), os.WriteFile(at("replaced/fresh"), nil, 0o644),
		os.Link(at("d/changed"), at("linked")),
	)
	want := layertest.Describe(t, merged)
	unmount()
	if err != nil {
		t.Fatal(err)
	}
	layer := newTree(t)
	if _, err := Unpack(context.Background(), layer, bytes.NewReader(pack(t, upper)), Options{}); err != nil {
		t.Fatal(err)
	}
	unmount = overlay("lowerdir=" + layer + ":" + lower)
	got := layertest.Describe(t, merged)
	unmount()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the merged view (-built +unpacked):\n%s", diff)
	}
}
