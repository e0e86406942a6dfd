package image

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/layer/layertest"
)

// gzipImage is an image of layer tars that umoci 0.4.7 can read.
func gzipImage(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: runtime.GOOS, Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
			tarball.WithMediaType(types.OCILayer))
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// tarOf packs files of this machine by GNU tar.
func tarOf(t testing.TB, format string, paths ...string) []byte {
	t.Helper()
	args := append([]string{"--create", "--format=" + format, "--sparse", "--xattrs", "--directory=/", "--numeric-owner", "--warning=none"}, paths...)
	out, err := exec.Command("tar", args...).Output()
	if err != nil && len(out) == 0 { // a file that changed meanwhile is a warning
		t.Skip("needs GNU tar: ", err)
	}
	return out
}

// hard is valid, and everything in it has gone wrong somewhere once.
func hard() [][]layertest.Entry {
	nanos := time.Unix(1_500_000_000, 123_456_789)
	long := strings.Repeat("long-", 40)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return [][]layertest.Entry{{
		layertest.Dir("a", 0o755), layertest.File("a/f"), layertest.Dir("b", 0o700), layertest.Link("b/linked", "a/f"), layertest.Link("top", "/b/linked"),
		{Typeflag: '0', Name: "nanos", Mode: 0o640, ModTime: nanos, Uid: 1234, Gid: 4321},
		{Typeflag: '0', Name: "cap", Mode: 0o755, PAXRecords: layertest.Xattrs("security.capability", capability, "user.k", "v\x00w")},
		{Typeflag: '0', Name: "setid", Mode: 0o6755, Uid: 3, Gid: 4}, {Typeflag: '5', Name: "sticky", Mode: 0o3777, ModTime: nanos},
		layertest.Dir(long, 0o755), layertest.File(long + "/" + long), {Typeflag: '2', Name: "long-link", Linkname: "/" + long + "/" + long + "/" + long},
		{Typeflag: '6', Name: "fifo", Mode: 0o611}, {Typeflag: '4', Name: "blk", Mode: 0o600, Devmajor: 7, Devminor: 300},
		layertest.Symlink("up", "../../.."), layertest.Symlink("loop", "loop"), layertest.File("uml\u00e4ut \u65e5\u672c\n"),
		layertest.Dir("gone", 0o755), layertest.File("gone/x"), layertest.Dir("kept", 0o711), layertest.File("kept/old"), layertest.File("was-file"), layertest.Dir("was-dir", 0o755), layertest.File("was-dir/x"),
	}, {
		layertest.File(".wh.gone"), layertest.Dir("kept", 0o710), layertest.File("kept/.wh..wh..opq"), layertest.File("kept/new"),
		layertest.Dir("was-file", 0o751), layertest.File("was-file/x"), layertest.File("was-dir"),
		layertest.Dir("link-dir", 0o755), layertest.Symlink("link-dir/to", "../a"), layertest.File("dup"), {Typeflag: '0', Name: "dup", Mode: 0o600, Uid: 9},
	}, {
		layertest.Dir("gone", 0o700), layertest.File("gone/again"), layertest.File("kept/.wh.new"), layertest.Dir("kept", 0o712),
	}}
}

// umoci unpacks the same images in its own way; the trees are the same to the
// nanosecond, the link and the attribute.
func TestUmociAgreesOnEverything(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("needs umoci: ", err)
	}
	layertest.NeedRoot(t)
	var made [][]byte
	for _, entries := range hard() {
		made = append(made, layertest.Tar(t, entries...))
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox: ", err)
	}
	for name, layers := range map[string][][]byte{
		"made": made,
		"machine": {tarOf(t, "gnu", "etc"), tarOf(t, "pax", "etc", strings.TrimPrefix(busybox, "/")),
			layertest.Tar(t, layertest.Dir("etc", 0o750), layertest.File("etc/.wh.passwd"), layertest.File(".wh.usr"))},
	} {
		t.Run(name, func(t *testing.T) {
			img := gzipImage(t, layers...)
			dir := ociLayout(t, img, "latest")
			bundle := filepath.Join(t.TempDir(), "bundle")
			if out, err := exec.Command(umoci, "unpack", "--image", dir+":latest", bundle).CombinedOutput(); err != nil {
				t.Fatalf("umoci unpack: %v\n%s", err, out)
			}
			s := newStore(t)
			loaded, err := s.LoadDir(ctx, dir, LoadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			lower, err := s.Lower(loaded[0])
			if err != nil {
				t.Fatal(err)
			}
			want, got := exactly(t, filepath.Join(bundle, "rootfs")), exactly(t, mountLower(t, lower))
			if len(want) < 15 {
				t.Errorf("only %d files were compared", len(want))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-umoci +ours):\n%s", diff)
			}
		})
	}
}

// exactly describes every file of a tree, by path.
func exactly(t *testing.T, tree string) map[string]string {
	t.Helper()
	files, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == tree {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(tree, path) // both are absolute
		line := fmt.Sprintf("%o %d:%d %d.%09d%s", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, layertest.Attributes(t, path))
		if !e.IsDir() {
			line += fmt.Sprintf(" links=%d rdev=%d", st.Nlink, st.Rdev)
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			line += " =" + first[st.Ino]
		}
		switch {
		case e.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(data), sha256.Sum256(data))
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		files[rel] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
