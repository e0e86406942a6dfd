package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestOneAtATime: two builders that share a cache make a step once.
func TestOneAtATime(t *testing.T) {
	w := newWorld(t)
	o := Options{Context: w.context(map[string]string{"Dockerfile": "FROM base\nRUN sleep 0.3; echo x >/x\nRUN echo y >/y\n"})}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if _, err := w.builder().Build(t.Context(), o); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if w.runs != 2 {
		t.Errorf("%d runs, want 2", w.runs)
	}
	if list, err := os.ReadDir(filepath.Join(w.dir, "cache/locks")); err != nil || len(list) > 0 {
		t.Errorf("locks left: %v, %v", list, err)
	}
}

func TestNoCacheFilter(t *testing.T) {
	w := newWorld(t)
	o := Options{Context: w.context(map[string]string{"Dockerfile": "FROM base AS a\nRUN echo a >/a\nFROM base AS b\nRUN echo b >/b\nFROM base\nCOPY --from=a /a /\nCOPY --from=b /b /\n"})}
	w.mustBuild(o)
	o.NoCacheFilter = []string{"B"}
	if _, log := w.mustBuild(o); w.runs != 3 || strings.Count(log, "CACHED") != 3 {
		t.Errorf("%d runs\n%s", w.runs, log)
	}
}

// TestDamage: what is not as it was in the cache or the store is made again.
func TestDamage(t *testing.T) {
	layers := func(t *testing.T, w *world) []string {
		list, err := filepath.Glob(filepath.Join(w.dir, "images/layers/*/fs/made"))
		must(t, err)
		if len(list) != 1 {
			t.Fatalf("layers %v", list)
		}
		return list
	}
	for name, harm := range map[string]func(t *testing.T, w *world){
		"file truncated":     func(t *testing.T, w *world) { must(t, os.Truncate(layers(t, w)[0], 1)) },
		"same size and time": func(t *testing.T, w *world) { same(t, layers(t, w)[0], "YY\n") },
		"file gone":          func(t *testing.T, w *world) { must(t, os.Remove(layers(t, w)[0])) },
		"file added": func(t *testing.T, w *world) {
			must(t, os.WriteFile(filepath.Join(filepath.Dir(layers(t, w)[0]), "evil"), nil, 0o644))
		},
		"mode changed": func(t *testing.T, w *world) { must(t, os.Chmod(layers(t, w)[0], 0o600)) },
		"tree gone":    func(t *testing.T, w *world) { must(t, os.RemoveAll(filepath.Dir(layers(t, w)[0]))) },
		"layer gone": func(t *testing.T, w *world) {
			must(t, os.RemoveAll(filepath.Dir(filepath.Dir(layers(t, w)[0]))))
		},
		"layer record": func(t *testing.T, w *world) {
			must(t, os.WriteFile(filepath.Join(filepath.Dir(filepath.Dir(layers(t, w)[0])), "layer.json"), []byte("{"), 0o600))
		},
		"records cut off": func(t *testing.T, w *world) {
			eachStep(t, w, func(f string, data []byte) []byte { return data[:len(data)/2] })
		},
		"records changed": func(t *testing.T, w *world) {
			eachStep(t, w, func(f string, data []byte) []byte {
				return []byte(strings.Replace(string(data), "sha256:", "sha256:0", 1))
			})
		},
		"records exchanged": func(t *testing.T, w *world) {
			eachStep(t, w, func(f string, data []byte) []byte {
				body := fmt.Sprintf(`{"layer":"%s","created":"2020-01-01T00:00:00Z"}`, digest.FromString("x"))
				return []byte(body + "\n" + digest.FromString(body).String())
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			o := Options{Context: w.context(map[string]string{"Dockerfile": "FROM base\nRUN echo XX >/made\nRUN cat /made >/copy\n"}), Args: map[string]string{"SOURCE_DATE_EPOCH": "1700000000"}}
			first, _ := w.mustBuild(o)
			harm(t, w)
			second, log := w.mustBuild(o)
			for _, p := range []string{"made", "copy"} {
				if got := w.look(second, p); got != "f 644 0:0 XX\n" {
					t.Errorf("%s: %q\n%s", p, got, log)
				}
			}
			if got := w.look(second, "evil"); got != "-" || first.ID != second.ID {
				t.Errorf("%q, %s and %s\n%s", got, first.ID, second.ID, log)
			}
		})
	}
}

func eachStep(t *testing.T, w *world, change func(string, []byte) []byte) {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(w.dir, "cache/steps/*/*"))
	must(t, err)
	if len(list) == 0 {
		t.Fatal("no steps")
	}
	for _, f := range list {
		data, err := os.ReadFile(f)
		must(t, err)
		must(t, os.WriteFile(f, change(f, data), 0o600))
	}
}

// TestLimit: many builds keep to the limit of the cache, none fails, and the
// one that was made last is still remembered.
func TestLimit(t *testing.T) {
	w := newWorld(t)
	const limit = 24 << 20
	var o Options
	for i := range 12 {
		o = Options{Tags: []string{"app:1"}, CacheLimit: limit, Context: w.context(map[string]string{"Dockerfile": fmt.Sprintf(
			"FROM base\nRUN echo shared >/s\nRUN yes %d | head -c 3000000 >/a\nRUN head -c 1000000 /a >/b\n", i)})}
		_, log := w.mustBuild(o)
		_ = log
		used, err := diskOf(filepath.Join(w.dir, "images/layers"))
		must(t, err)
		if used > limit {
			t.Fatalf("build %d: %d bytes of layers, the limit is %d", i, used, limit)
		}
	}
	if _, log := w.mustBuild(o); strings.Count(log, "CACHED") != 3 || w.runs != 25 {
		t.Errorf("%d runs\n%s", w.runs, log)
	}
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	build := func(n int, tag ...string) {
		w.mustBuild(Options{Tags: tag, Context: w.context(map[string]string{"Dockerfile": fmt.Sprintf("FROM base\nRUN yes %d | head -c 500000 >/a\n", n)})})
	}
	build(1, "kept:1")
	build(2)
	build(3)
	b := w.builder()
	u, err := b.Usage()
	must(t, err)
	if len(u.Steps) != 3 || u.Total < 1_500_000 || u.Reclaimable < 1_000_000 || u.Reclaimable >= 1_500_000 || u.Steps[0].Text != "RUN yes 1 | head -c 500000 >/a" {
		t.Errorf("%+v", u)
	}
	for _, c := range []struct {
		o     PruneOptions
		steps int
		freed int64
	}{
		{PruneOptions{Until: time.Hour}, 0, 0},
		{PruneOptions{Keep: 700_000}, 1, 500_000},
		{PruneOptions{}, 1, 500_000},
		{PruneOptions{}, 0, 0},
		{PruneOptions{All: true}, 1, 0},
	} {
		r, err := b.Prune(t.Context(), c.o)
		must(t, err)
		if r.Steps != c.steps || r.Freed < c.freed || r.Freed > c.freed+100_000 {
			t.Errorf("%+v: %+v", c.o, r)
		}
	}
	img, err := w.store.Get("kept:1")
	must(t, err)
	if _, err := w.store.Lower(img); err != nil {
		t.Error(err)
	}
}
