package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func cacheWorlds(t *testing.T) (files map[string]string) {
	return map[string]string{"a": "A", "Dockerfile": "FROM base AS one\nCOPY a /a\nRUN cat /a >/b; echo one\nRUN true\nFROM base\nCOPY --from=one /b /b\nRUN echo two >/c\n"}
}

// twin makes a second machine with the same base image.
func (w *world) twin() *world {
	w.t.Helper()
	other := newWorld(w.t)
	return other
}

// TestCacheMoves: a second machine that begins from the first one's cache runs
// nothing, and makes the same files.
func TestCacheMoves(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "exported", "cache")
	files := cacheWorlds(t)
	o := Options{Context: w.context(files), CacheTo: []string{"type=local,dest=" + dir}}
	w.mustBuild(o)
	w.mustBuild(o) // over the one that is there
	if list, err := w.store.List(); err != nil || len(list) != 2 {
		t.Errorf("images %v, %v", list, err)
	}
	other := w.twin()
	from := Options{Context: other.context(files), CacheFrom: []string{"type=local,src=" + dir}}
	img, log := other.mustBuild(from)
	if other.runs != 0 || strings.Count(log, "CACHED") != 5 {
		t.Errorf("%d runs\n%s", other.runs, log)
	}
	if got := other.look(img, "b"); got != "f 644 0:0 A" {
		t.Error(got)
	}
	// Of the first stage only what the image has is in a small cache; whether its
	// other steps run again depends on the second in which their files are made.
	min := filepath.Join(w.dir, "min")
	o.CacheTo = []string{"type=local,mode=min,dest=" + min}
	w.mustBuild(o)
	small := w.twin()
	from.CacheFrom = []string{"type=local,src=" + min}
	if _, log := small.mustBuild(from); small.runs > 2 {
		t.Errorf("%d runs\n%s", small.runs, log)
	}
}

// TestCacheBroken: a cache that is damaged or strange is a warning, and nothing
// of it is used.
func TestCacheBroken(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "cache-out")
	files := cacheWorlds(t)
	w.mustBuild(Options{Context: w.context(files), CacheTo: []string{"type=local,dest=" + dir}})
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	must(t, err)
	for _, blob := range blobs {
		data, err := os.ReadFile(blob)
		must(t, err)
		data[len(data)/2] ^= 1
		must(t, os.WriteFile(blob, data, 0o644))
	}
	for _, from := range []string{"type=local,src=" + dir, "type=local,src=/nonexistent", "type=local,src=" + w.dir} {
		other := w.twin()
		img, log := other.mustBuild(Options{Context: other.context(files), CacheFrom: []string{from}})
		if other.runs != 3 || !strings.Contains(log, " - cache "+from) || other.look(img, "b") != "f 644 0:0 A" {
			t.Errorf("%s: %d runs\n%s", from, other.runs, log)
		}
	}
	for _, bad := range []string{"type=gha", "type=local", "type=registry", "type=inline", "type=local,src=x,foo=1"} {
		if _, _, err := w.build(Options{Context: w.context(files), CacheFrom: []string{bad}}); err == nil || !strings.Contains(err.Error(), "cache from") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	must(t, os.WriteFile(filepath.Join(w.dir, "precious"), nil, 0o644))
	if _, _, err := w.build(Options{Context: w.context(files), CacheTo: []string{"type=local,dest=" + w.dir}}); err == nil || !strings.Contains(err.Error(), "no cache") {
		t.Error(err)
	}
}

func TestInlineCache(t *testing.T) {
	w := newWorld(t)
	files := cacheWorlds(t)
	w.mustBuild(Options{Context: w.context(files), Tags: []string{"app:1"}, CacheTo: []string{"type=inline"}})
	dir := filepath.Join(w.dir, "layout")
	must(t, w.store.SaveDir(t.Context(), dir, "app:1"))
	other := w.twin()
	if _, log := other.mustBuild(Options{Context: other.context(files), CacheFrom: []string{"type=local,src=" + dir}}); other.runs > 2 {
		t.Errorf("%d runs\n%s", other.runs, log)
	}
	img, _ := w.mustBuild(Options{Context: w.context(map[string]string{"Dockerfile": "FROM app:1\nENV a=b\n"})})
	if len(img.Config.BuildCache) > 0 {
		t.Error("a child has its base's cache")
	}
}
