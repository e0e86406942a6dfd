package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/layer/layertest"
)

var epoch = time.Unix(0, 0)

func TestImportGetList(t *testing.T) {
	s := newStore(t)
	tar := layertest.Tar(t, threeLayers()[0]...)
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	_, errG := g.Write(tar)
	_, errZ := z.Write(tar)
	if err := errors.Join(errG, errZ, g.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	created := epoch
	cfg := Config{Created: &created, Config: RunConfig{ImageConfig: ocispec.ImageConfig{Cmd: []string{"sh"}}, Shell: []string{"/bin/bash"}}}
	ids := map[digest.Digest]bool{}
	for name, data := range map[string][]byte{"plain": tar, "gz": gz.Bytes(), "zst": zst.Bytes(), "xz": packed(t, tar, "xz"), "bz2": packed(t, tar, "bzip2")} {
		img, err := s.Import(ctx, bytes.NewReader(data), name, cfg)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ids[img.ID] = true
	}
	if len(ids) != 1 {
		t.Fatalf("%d ids for one content", len(ids))
	}
	img, err := s.Get("gz")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"bz2:latest", "gz:latest", "plain:latest", "xz:latest", "zst:latest"}; !slices.Equal(img.Names, want) {
		t.Errorf("names %v, want %v", img.Names, want)
	}
	if img.Config.Config.Shell[0] != "/bin/bash" || img.Config.OS != "linux" || img.Size == 0 {
		t.Errorf("image %+v", img)
	}
	checkStore(t, s)
	for _, ref := range []string{img.ID.String(), img.ID.Encoded(), img.ID.Encoded()[:12], img.Manifest.String(), "docker.io/library/gz:latest", "gz@" + img.Manifest.String()} {
		if got, err := s.Get(ref); err != nil || got.ID != img.ID {
			t.Errorf("get %s: %v", ref, err)
		}
	}
	for _, ref := range []string{"nothing", "gz:other", "0123456789abcdef", "gz@sha256:" + strings.Repeat("0", 64)} {
		if _, err := s.Get(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("get %s: %v, want not found", ref, err)
		}
	}
	for _, ref := range []string{"", "UPPER", "a:b:c", "../x", "x@sha256:zz"} {
		if _, err := s.Get(ref); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("get %q: %v, want that it is no name", ref, err)
		}
	}
}

func TestNames(t *testing.T) {
	hash := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"debian": "debian:latest | docker.io/library/debian:latest", "debian:12": "debian:12 | docker.io/library/debian:12",
		"me/app": "me/app:latest | docker.io/me/app:latest", "index.docker.io/library/x:1": "x:1 | docker.io/library/x:1",
		"ghcr.io/a/b:c": "ghcr.io/a/b:c | ghcr.io/a/b:c", "localhost/x": "localhost/x:latest | localhost/x:latest",
		"127.0.0.1:5000/x": "127.0.0.1:5000/x:latest | 127.0.0.1:5000/x:latest", "[::1]:5000/x:1": "[::1]:5000/x:1 | [::1]:5000/x:1",
		"a:1@" + hash: "a@" + hash + " | docker.io/library/a@" + hash,
	} {
		r, err := parseName(in)
		if got := r.short() + " | " + r.full(); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", in, got, err, want)
		}
		if again, err := parseName(r.short()); err != nil || again.full() != r.full() {
			t.Errorf("%s: its short form means %s (%v)", in, again.full(), err)
		}
	}
}

func TestConfigIsDockersJSON(t *testing.T) {
	const docker = `{"created":"2024-01-02T03:04:05Z","architecture":"amd64","os":"linux","config":{"User":"app","Env":["A=b"],"Cmd":["x"],"Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":30000000000,"Retries":3},"OnBuild":["RUN y"],"Shell":["/bin/bash","-c"]},"rootfs":{"type":"layers","diff_ids":[]}}`
	var cfg Config
	if err := json.Unmarshal([]byte(docker), &cfg); err != nil {
		t.Fatal(err)
	}
	if cfg.Config.Healthcheck.Interval != 30*time.Second || cfg.Config.User != "app" {
		t.Errorf("read %+v", cfg.Config)
	}
	out, err := json.Marshal(cfg)
	if err != nil || string(out) != docker {
		t.Errorf("wrote (%v)\n%s\nwant\n%s", err, out, docker)
	}
}

func TestBuilderFlow(t *testing.T) {
	s := newStore(t)
	base := importFiles(t, s, "base", "etc", "f")
	one := commit(t, s, "x", "y")
	if two := commit(t, s, "y", "x"); two != one {
		t.Errorf("the same content gave %s and %s", one, two)
	}
	cfg := base.Config
	img, err := s.Put(ctx, cfg, append(base.Layers, one), "app:1", "app:2")
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Put(ctx, cfg, append(base.Layers, one))
	if err != nil || again.ID != img.ID {
		t.Errorf("put again: %s, %v, want %s", again.ID, err, img.ID)
	}
	if len(img.Names) != 2 || len(img.Config.RootFS.DiffIDs) != 2 {
		t.Errorf("image %+v", img)
	}
	if got := merged(t, s, img); !strings.Contains(got, `etc mode`) || !strings.Contains(got, `x mode`) {
		t.Errorf("merged:\n%s", got)
	}
	if _, err := s.Put(ctx, cfg, []digest.Digest{digest.FromString("none")}); !errors.Is(err, ErrLayerNotFound) {
		t.Errorf("put without the layer: %v", err)
	}
	checkStore(t, s)
}

func TestCommitKeepsTheLayerAfterAnError(t *testing.T) {
	s := newStore(t)
	l, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(l.Upper, ".wh.bad")
	if err := os.WriteFile(bad, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, l); err == nil {
		t.Fatal("committed a name that no layer can hold")
	}
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, l); err != nil {
		t.Fatal(err)
	}
	if err := l.Discard(); err != nil {
		t.Errorf("discard after commit: %v", err)
	}
	checkStore(t, s)
}

func TestLowerOfSpecialImages(t *testing.T) {
	s := newStore(t)
	none, err := s.Put(ctx, Config{}, nil, "none")
	if err != nil {
		t.Fatal(err)
	}
	if lower, err := s.Lower(none); err != nil || len(lower) != 1 {
		t.Errorf("without layers: %v, %v", lower, err)
	}
	a, b := commit(t, s, "a"), commit(t, s, "b")
	hide, err := s.Import(ctx, bytes.NewReader(layertest.Tar(t, layertest.File(".wh..wh..opq"), layertest.File("c"))), "", Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		layers []digest.Digest
		want   int
	}{{[]digest.Digest{a, b, a}, 2}, {[]digest.Digest{a, b, hide.Layers[0]}, 1}, {[]digest.Digest{a, hide.Layers[0], b}, 2}} {
		lower, err := s.Lower(Image{Layers: test.layers})
		if err != nil || len(lower) != test.want {
			t.Errorf("%v: %v, %v, want %d", test.layers, lower, err, test.want)
		}
	}
}

func TestTagAndRemove(t *testing.T) {
	s := newStore(t)
	one, two := importFiles(t, s, "one", "1"), importFiles(t, s, "two", "2")
	if err := s.Tag(one.ID.Encoded()[:10], "two"); err != nil { // moves the name
		t.Fatal(err)
	}
	if got, _ := s.Get("two"); got.ID != one.ID {
		t.Errorf("two is %s, want %s", got.ID, one.ID)
	}
	if got, err := s.Get(two.ID.String()); err != nil || len(got.Names) != 0 {
		t.Errorf("the image that lost its name: %v, %v", got.Names, err)
	}
	if err := s.Tag("nothing", "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("tag of nothing: %v", err)
	}
	if err := s.Remove(one.ID.String(), false); !errors.Is(err, ErrSeveralNames) {
		t.Errorf("remove by id: %v", err)
	}
	if err := s.Remove("two", false); err != nil {
		t.Fatal(err)
	}
	if !s.HasLayer(one.Layers[0]) {
		t.Error("the layer went with one name of two")
	}
	if err := s.Remove("one", false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(one.ID.String()); !errors.Is(err, ErrNotFound) {
		t.Errorf("after the last name: %v", err)
	}
	if s.HasLayer(one.Layers[0]) || s.hasBlob(one.ID) || s.hasBlob(one.Manifest) {
		t.Error("the layer, config or manifest is still there")
	}
	if err := s.Tag(two.ID.String(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Tag("a", "b"), s.Remove(two.ID.String(), true)); err != nil {
		t.Fatal(err)
	}
	if images := checkStore(t, s); len(images) != 0 {
		t.Errorf("left: %v", images)
	}
}

func TestPruneKeepsWhatIsSharedHeldAndNew(t *testing.T) {
	s := newStore(t)
	shared, own, orphan := commit(t, s, "shared"), commit(t, s, "own"), commit(t, s, "orphan")
	if _, err := s.Put(ctx, Config{}, []digest.Digest{shared}, "keep"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(ctx, Config{Author: "x"}, []digest.Digest{shared, own}, "drop"); err != nil {
		t.Fatal(err)
	}
	freed, err := s.Prune(ctx, func(img Image) bool { return slices.Contains(img.Names, "keep:latest") })
	if err != nil || freed <= 0 {
		t.Fatalf("freed %d, %v", freed, err)
	}
	if !s.HasLayer(shared) || s.HasLayer(own) || !s.HasLayer(orphan) {
		t.Errorf("layers shared %v, own %v, orphan %v; want the first and the last", s.HasLayer(shared), s.HasLayer(own), s.HasLayer(orphan))
	}
	old := time.Now().Add(-2 * grace)
	if err := os.Chtimes(s.layerPath(orphan), old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if s.HasLayer(orphan) || !s.HasLayer(shared) {
		t.Error("the orphan outlived its grace, or a used layer went")
	}
	checkStore(t, s)
}

func TestHoldProtectsLayersOfARemovedImage(t *testing.T) {
	s := newStore(t)
	img := importFiles(t, s, "x", "f")
	hold, err := s.Hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lower(img); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("x", false); err != nil {
		t.Fatal(err)
	}
	if !s.HasLayer(img.Layers[0]) {
		t.Fatal("a held layer went")
	}
	again, err := s.Put(ctx, img.Config, img.Layers, "y")
	if err != nil || again.ID != img.ID {
		t.Errorf("put: %v", err)
	}
	if err := hold.Release(); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("y", false); err != nil {
		t.Fatal(err)
	}
	if s.HasLayer(img.Layers[0]) {
		t.Error("the layer stayed without a hold")
	}
}

// A layer written before a power cut may have lost data, unless an image's
// record, written after a sync, names it.
func TestUnsyncedLayersOfAnotherBootAreAbsent(t *testing.T) {
	s := newStore(t)
	a, b := commit(t, s, "a"), commit(t, s, "b")
	if _, err := s.Put(ctx, Config{}, []digest.Digest{b}, "b"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []digest.Digest{a, b} {
		if err := os.WriteFile(filepath.Join(s.layerPath(d), "unsynced"), []byte("another boot"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s.HasLayer(a) || !s.HasLayer(b) {
		t.Errorf("a %v, b %v; want b only", s.HasLayer(a), s.HasLayer(b))
	}
	if again := commit(t, s, "a"); again != a || !s.HasLayer(a) {
		t.Error("the layer could not be made again")
	}
	checkStore(t, s)
}

func TestSweepUnmountsAndRemovesTheDeadOnly(t *testing.T) {
	s := newStore(t)
	living, err := s.NewLayer()
	if err != nil {
		t.Fatal(err)
	}
	dead := s.path("tmp", "dead")
	source := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dead, "mnt"), 0o700), os.WriteFile(filepath.Join(source, "precious"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, filepath.Join(dead, "mnt"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead workspace: %v", err)
	}
	if _, err := os.Stat(filepath.Join(source, "precious")); err != nil {
		t.Errorf("what was mounted there: %v", err)
	}
	if _, err := os.Stat(living.Upper); err != nil {
		t.Errorf("the living layer: %v", err)
	}
	if err := living.Discard(); err != nil {
		t.Error(err)
	}
	checkStore(t, s)
}

// Several stores on one root, as in several processes: flock does not care.
func TestManyAtOnce(t *testing.T) {
	root := newStore(t).root
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			s := openStore(t, root)
			for round := range 4 {
				own := fmt.Sprintf("own-%d", worker)
				img, err := s.Import(ctx, bytes.NewReader(layertest.Tar(t, layertest.File("same"), layertest.File(fmt.Sprint(round)))), own, Config{})
				if err != nil {
					t.Error(err)
					return
				}
				_, pruneErr := s.Prune(ctx, nil)
				if err := errors.Join(s.Tag(own, own+":kept"), pruneErr, s.Sweep()); err != nil {
					t.Error(err)
				}
				if got, err := s.Get(own + ":kept"); err != nil || got.ID != img.ID {
					t.Errorf("get: %v", err)
				}
				if err := s.Remove(own, false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	s := openStore(t, root)
	var names []string
	for _, img := range checkStore(t, s) {
		names = append(names, img.Names...)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"own-0:kept", "own-1:kept", "own-2:kept", "own-3:kept"}, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestDigestsOfOtherKindsAreRefused(t *testing.T) {
	s := newStore(t)
	for _, d := range []digest.Digest{"", "sha256:../../etc", "sha512:" + digest.Digest(strings.Repeat("a", 128)), "md5:x"} {
		if _, err := s.LayerDir(d); !errors.Is(err, ErrLayerNotFound) {
			t.Errorf("%q: %v", d, err)
		}
	}
}
