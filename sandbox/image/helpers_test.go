package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/layer/layertest"
)

var ctx = context.Background()

func newStore(t testing.TB) *Store {
	t.Helper()
	layertest.NeedRoot(t)
	return openStore(t, filepath.Join(t.TempDir(), "images"))
}

func openStore(t testing.TB, root string) *Store {
	t.Helper()
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	s.pause = 2 * time.Millisecond
	return s
}

// importFiles makes an image of one layer with some files.
func importFiles(t testing.TB, s *Store, name string, files ...string) Image {
	t.Helper()
	var entries []layertest.Entry
	for _, f := range files {
		entries = append(entries, layertest.File(f))
	}
	img, err := s.Import(ctx, bytes.NewReader(layertest.Tar(t, entries...)), name, Config{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// commit makes a layer as a build does.
func commit(t testing.TB, s *Store, files ...string) digest.Digest {
	t.Helper()
	l, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		path := filepath.Join(l.Upper, name)
		if err := errors.Join(os.WriteFile(path, []byte(name), 0o644), os.Chtimes(path, epoch, epoch)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := s.Commit(ctx, l)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// threeLayers are what the registry and the archives of the tests hold: each kind of compression,
// a whiteout, an opaque directory, hard links, and a layer that implies its directories.
func threeLayers() [][]layertest.Entry {
	return [][]layertest.Entry{
		{layertest.Dir("etc", 0o755), layertest.File("etc/os-release"), layertest.File("etc/gone"), layertest.Dir("tmp", 0o1777),
			layertest.Dir("old", 0o700), layertest.File("old/hidden"), layertest.File("a"), layertest.Link("b", "a"), layertest.Symlink("sh", "/bin/sh")},
		{layertest.Dir("etc", 0o750), layertest.File("etc/.wh.gone"), layertest.File("etc/new"),
			layertest.Dir("old", 0o755), layertest.File("old/.wh..wh..opq"), layertest.File("old/fresh"), layertest.File(".wh.b")},
		{layertest.File("tmp/implied"), {Typeflag: '0', Name: "usr/bin/su", Mode: 0o4755, Uid: 7}},
	}
}

// remoteThree is the image of threeLayers as go-containerregistry makes it: gzip, zstd and plain.
func remoteThree(t testing.TB) v1.Image {
	t.Helper()
	forms := []struct {
		how       compression.Compression
		mediaType types.MediaType
	}{{compression.GZip, types.OCILayer}, {compression.ZStd, types.OCILayerZStd}, {compression.None, types.OCIUncompressedLayer}}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: runtime.GOOS, Architecture: runtime.GOARCH, Config: v1.Config{Env: []string{"A=b"}, Cmd: []string{"sh"}}})
	if err != nil {
		t.Fatal(err)
	}
	for i, entries := range threeLayers() {
		data := layertest.Tar(t, entries...)
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
			tarball.WithCompression(forms[i].how), tarball.WithMediaType(forms[i].mediaType))
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// merged describes what a container of the image would see.
func merged(t testing.TB, s *Store, img Image) string {
	t.Helper()
	lower, err := s.Lower(img)
	if err != nil {
		t.Fatal(err)
	}
	return layertest.Describe(t, mountLower(t, lower))
}

func mountLower(t testing.TB, lower []string) string {
	t.Helper()
	dir := t.TempDir()
	dirs := append([]string{dir}, slices.Clone(lower)...) // overlayfs wants two if nothing is written
	slices.Reverse(dirs)
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(dirs, ":")); err != nil {
		t.Fatalf("mount overlay: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// checkStore verifies everything a store promises: every image has its config,
// its layers pack to their digests or have the blob they came as, every name
// has an image, and nothing is left of operations that ended.
func checkStore(t testing.TB, s *Store) []Image {
	t.Helper()
	images, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if _, err := s.Lower(img); err != nil {
			t.Errorf("image %v: %v", img.Names, err)
		}
		for _, diffID := range img.Layers {
			info, err := s.layerInfo(diffID)
			if err != nil {
				t.Errorf("image %v: %v", img.Names, err)
				continue
			}
			if err := s.writeLayer(ctx, info, io.Discard); err != nil {
				t.Errorf("image %v: layer: %v", img.Names, err)
			}
		}
	}
	names, err := s.readNames()
	if err != nil {
		t.Fatal(err)
	}
	for name := range names {
		if _, err := s.Get(name); err != nil {
			t.Errorf("name %s: %v", name, err)
		}
	}
	for _, dir := range []string{"tmp", "leases"} {
		if left, err := os.ReadDir(s.path(dir)); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v (%v)", dir, left, err)
		}
	}
	return images
}

// umociImage is an image that umoci 0.4.7 can read (gzip only), with every
// directory named, since times of implied ones are nobody's standard.
func umociImage(t testing.TB) v1.Image {
	t.Helper()
	layers := threeLayers()[:2]
	layers = append(layers, []layertest.Entry{
		{Typeflag: '0', Name: "suid", Mode: 0o4711, Uid: 100, Gid: 65534}, layertest.Link("suid2", "suid"),
		{Typeflag: '3', Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, {Typeflag: '6', Name: "fifo", Mode: 0o600},
		{Typeflag: '0', Name: "attrs", Mode: 0o600, PAXRecords: layertest.Xattrs("user.x", "y")},
		layertest.Dir("old", 0o711), layertest.File("old/.wh.fresh"), layertest.Symlink("etc2", "/etc/../etc"),
	})
	var tars [][]byte
	for _, entries := range layers {
		tars = append(tars, layertest.Tar(t, entries...))
	}
	return gzipImage(t, tars...)
}

// spoil changes the byte at an offset of a file.
func spoil(t testing.TB, file string, at int) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func checkNoPartials(t testing.TB, s *Store) {
	t.Helper()
	if left, err := os.ReadDir(s.path("partial")); err != nil || len(left) > 0 {
		t.Errorf("partial holds %v (%v)", left, err)
	}
}
