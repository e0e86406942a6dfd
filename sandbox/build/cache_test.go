package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// same writes new content that stat cannot tell from the old one, but for ctime.
func same(t *testing.T, file, data string) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if int(info.Size()) != len(data) {
		t.Fatal("not the same size")
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(data)
	if err := errors.Join(err, f.Close(), os.Chtimes(file, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
}

// TestMutations changes one input at a time. With the cache, the image must be
// what it is without.
func TestMutations(t *testing.T) {
	base := map[string]string{
		"Dockerfile": "FROM base AS one\nARG A=1\nENV E=1\nCOPY d /d/\nCOPY --chown=0:0 f l /g/\nRUN cat /d/x /g/f >/o; echo $A $E >>/o\n" +
			"FROM base\nARG A=1\nUSER 0\nWORKDIR /w\nCOPY --from=one /o /g/ /h/\nADD a.tar /t\n",
		"d/x": "one", "d/y": "1", "f": "old", "l@link": "f", "d/l@link": "x", ".dockerignore": "nothing\n",
		"a.tar": string(makeTar(t, tarEntry{name: "in", kind: '0', data: "aaa"})),
	}
	for name, change := range map[string]struct {
		do   func(t *testing.T, dir string, o *Options)
		path string
		want string
	}{
		"same size and mtime":  {func(t *testing.T, dir string, _ *Options) { same(t, filepath.Join(dir, "f"), "new") }, "h/f", "f 644 0:0 new"},
		"in a directory":       {func(t *testing.T, dir string, _ *Options) { same(t, filepath.Join(dir, "d/x"), "two") }, "h/o", "f 644 0:0 twoold1 1\n"},
		"mode":                 {func(t *testing.T, dir string, _ *Options) { must(t, os.Chmod(filepath.Join(dir, "f"), 0o600)) }, "h/f", "f 600 0:0 old"},
		"target of a link":     {func(t *testing.T, dir string, _ *Options) { relink(t, filepath.Join(dir, "l"), "d/y") }, "h/l", "f 644 0:0 1"},
		"new file":             {func(t *testing.T, dir string, _ *Options) { writeFile(t, dir, "d/z", "z") }, "h/o", "f 644 0:0 oneold1 1\n"},
		"build argument":       {func(_ *testing.T, _ string, o *Options) { o.Args = map[string]string{"A": "2"} }, "h/o", "f 644 0:0 oneold2 1\n"},
		"ignore line":          {func(t *testing.T, dir string, _ *Options) { writeFile(t, dir, ".dockerignore", "d/y\n") }, "h/o", "f 644 0:0 oneold1 1\n"},
		"archive":              {func(t *testing.T, dir string, _ *Options) { replaceArchive(t, dir) }, "t/in", "f 0 0:0 bbb"},
		"ENV":                  {edit("ENV E=1", "ENV E=2"), "h/o", "f 644 0:0 oneold1 2\n"},
		"chown":                {edit("--chown=0:0", "--chown=5:6"), "h/f", "f 644 5:6 old"},
		"destination":          {edit("/g/ /h/", "/g/ /i/"), "i/f", "f 644 0:0 old"},
		"USER of a WORKDIR":    {edit("USER 0", "USER app"), "w", "d 755 1000:1001"},
		"replaced with rename": {func(t *testing.T, dir string, _ *Options) { swap(t, dir) }, "h/f", "f 644 0:0 new"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			o := Options{Context: w.context(base)}
			w.mustBuild(o)
			change.do(t, o.Context, &o)
			cached, log := w.mustBuild(o)
			o.NoCache = true
			fresh, _ := w.mustBuild(o)
			for _, img := range []image.Image{cached, fresh} {
				if got := w.look(img, change.path); got != change.want {
					t.Errorf("%s: %q, want %q\n%s", change.path, got, change.want, log)
				}
			}
			for _, p := range []string{"h/o", "h/f", "h/l", "t/in", "w"} {
				if c, f := w.look(cached, p), w.look(fresh, p); c != f {
					t.Errorf("%s: %q with the cache, %q without", p, c, f)
				}
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func relink(t *testing.T, p, target string) {
	t.Helper()
	must(t, errors.Join(os.Remove(p), os.Symlink(target, p)))
}

func replaceArchive(t *testing.T, dir string) {
	same(t, filepath.Join(dir, "a.tar"), string(makeTar(t, tarEntry{name: "in", kind: '0', data: "bbb"})))
}

// swap puts another file of the same size and times in the place of f.
func swap(t *testing.T, dir string) {
	t.Helper()
	old := filepath.Join(dir, "f")
	info, err := os.Stat(old)
	must(t, err)
	writeFile(t, dir, "tmp", "new")
	tmp := filepath.Join(dir, "tmp")
	must(t, errors.Join(os.Chtimes(tmp, info.ModTime(), info.ModTime()), os.Rename(tmp, old)))
}

func edit(from, to string) func(*testing.T, string, *Options) {
	return func(t *testing.T, dir string, _ *Options) {
		t.Helper()
		p := filepath.Join(dir, "Dockerfile")
		data, err := os.ReadFile(p)
		must(t, err)
		if !strings.Contains(string(data), from) {
			t.Fatalf("the Dockerfile has no %q", from)
		}
		must(t, os.WriteFile(p, []byte(strings.Replace(string(data), from, to, 1)), 0o644))
	}
}

// TestUnchanged: a second build does nothing, and makes the same image.
func TestUnchanged(t *testing.T) {
	w := newWorld(t)
	files := map[string]string{"Dockerfile": "FROM base AS a\nCOPY . /x/\nRUN cat /x/f >/y\nFROM base\nWORKDIR /w\nCOPY --from=a /y .\nRUN true\nENV A=b\n", "f": "F"}
	o := Options{Context: w.context(files), Tags: []string{"app:1"}}
	first, _ := w.mustBuild(o)
	runs := w.runs
	second, log := w.mustBuild(o)
	if first.ID != second.ID || w.runs != runs || strings.Count(log, "CACHED") != 5 {
		t.Errorf("%s and %s, %d runs\n%s", first.ID, second.ID, w.runs-runs, log)
	}
	if second.Config.Created == nil || len(second.Names) != 1 {
		t.Errorf("%+v", second)
	}
	// Another app with the same content shares the layers.
	third, _ := w.mustBuild(Options{Context: w.context(files)})
	if third.ID != first.ID || w.runs != runs {
		t.Errorf("%s and %s, %d runs", first.ID, third.ID, w.runs-runs)
	}
	layers := 0
	for _, h := range second.Config.History {
		if !h.EmptyLayer {
			layers++
		}
	}
	if layers != len(second.Layers) || second.Config.RootFS.DiffIDs == nil {
		t.Errorf("%d entries of the history have layers, there are %d", layers, len(second.Layers))
	}
}

// TestCutOff: a stage that was made again with the same files does not make
// those after it again.
func TestCutOff(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base AS a\nCOPY src /src\nRUN echo fixed >/out\nFROM base\nCOPY --from=a /out /out\nRUN cat /out >/late\n", "src": "1"})
	first, _ := w.mustBuild(Options{Context: dir})
	writeFile(t, dir, "src", "2")
	runs := w.runs
	second, log := w.mustBuild(Options{Context: dir})
	if w.runs != runs+1 || first.ID != second.ID {
		t.Errorf("%d runs, %s and %s\n%s", w.runs-runs, first.ID, second.ID, log)
	}
}

// TestProxyIsNoInput: proxies reach RUN and change nothing else.
func TestProxyIsNoInput(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nRUN true >/x\n"})
	first, _ := w.mustBuild(Options{Context: dir, Args: map[string]string{"HTTP_PROXY": "http://a"}})
	env := strings.Join(w.steps[0].Env, " ")
	if !strings.Contains(env, "HTTP_PROXY=http://a") || !strings.Contains(env, "http_proxy=http://a") {
		t.Errorf("environment %q", env)
	}
	second, _ := w.mustBuild(Options{Context: dir, Args: map[string]string{"HTTP_PROXY": "http://b"}})
	if first.ID != second.ID || w.runs != 1 {
		t.Errorf("%s and %s, %d runs", first.ID, second.ID, w.runs)
	}
}

// TestEpoch: with SOURCE_DATE_EPOCH the image is the same without a cache too.
func TestEpoch(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nCOPY . /new/dir/\nWORKDIR /w\nRUN echo x >/tmp/x; ln -s a /tmp/l; rm /owned\nCOPY <<E /e\ntext\nE\n", "f": "F"})
	o := Options{Context: dir, NoCache: true, Args: map[string]string{"SOURCE_DATE_EPOCH": "1000000000"}}
	first, _ := w.mustBuild(o)
	later := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(filepath.Join(dir, "f"), later, later))
	second, log := w.mustBuild(o)
	if first.ID != second.ID || strings.Contains(log, "CACHED") {
		t.Errorf("%s and %s\n%s", first.ID, second.ID, log)
	}
	if c := second.Config.Created; c == nil || c.Unix() != 1_000_000_000 {
		t.Errorf("created %v", c)
	}
	o.Args["SOURCE_DATE_EPOCH"] = "today"
	if _, _, err := w.build(o); err == nil {
		t.Error("a word was taken for a time")
	}
}

// TestLostLayer: a layer that the store has pruned is made again.
func TestLostLayer(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nRUN echo 1 >/1\nRUN echo 2 >/2\n"})
	img, _ := w.mustBuild(Options{Context: dir})
	must(t, w.store.Remove(img.ID.String(), true))
	if _, err := w.store.Prune(t.Context(), func(image.Image) bool { return true }); err != nil {
		t.Fatal(err)
	}
	again, log := w.mustBuild(Options{Context: dir})
	if got := w.look(again, "2"); got != "f 644 0:0 2\n" {
		t.Errorf("%s\n%s", got, log)
	}
}

// TestDamagedCache: what cannot be read is a miss.
func TestDamagedCache(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base AS a\nCOPY f /f\nFROM base\nCOPY --from=a /f /g\nRUN true >/x\n", "f": "F"})
	w.mustBuild(Options{Context: dir})
	err := filepath.WalkDir(filepath.Join(w.dir, "cache"), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.WriteFile(p, []byte("\x00garbage"), 0o600)
	})
	must(t, err)
	img, _ := w.mustBuild(Options{Context: dir})
	if got := w.look(img, "g"); got != "f 644 0:0 F" {
		t.Error(got)
	}
	must(t, os.RemoveAll(filepath.Join(w.dir, "cache")))
	w.mustBuild(Options{Context: dir})
}

// TestChangedWhileCopied: what is written is what the key says, or nothing.
func TestChangedWhileCopied(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"f": "old"})
	tree, err := openRoot(dir)
	must(t, err)
	defer tree.Close()
	src := &source{root: tree, context: true, sums: loadSums(filepath.Join(w.dir, "sums")), clock: tick}
	picks, err := src.pick(t.Context(), "f", selection{})
	must(t, err)
	same(t, filepath.Join(dir, "f"), "new")
	into, err := openRoot(t.TempDir())
	must(t, err)
	defer into.Close()
	wr := newWriter(t.Context(), into)
	must(t, wr.place(&picks[0], "/f"))
	if err := wr.put(into); !errors.Is(err, errChanged) {
		t.Error(err)
	}
}

// TestSumsOfYoungFiles: a file that may still change within the tick of the
// clock is not remembered.
func TestSumsOfYoungFiles(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "ctx/f", "F")
	tree, err := openRoot(filepath.Join(dir, "ctx"))
	must(t, err)
	defer tree.Close()
	pick := func(clock time.Duration) *sums {
		s := &source{root: tree, context: true, sums: loadSums(filepath.Join(dir, "sums")), clock: clock}
		if _, err := s.pick(t.Context(), ".", selection{}); err != nil {
			t.Fatal(err)
		}
		must(t, s.sums.save())
		return s.sums
	}
	if s := pick(time.Hour); len(s.known) != 0 {
		t.Errorf("%d files are remembered", len(s.known))
	}
	if s := pick(tick); len(s.known) != 1 { // find waits for the tick
		t.Errorf("%d files are remembered", len(s.known))
	}
	if s := loadSums(filepath.Join(dir, "sums")); len(s.known) != 1 {
		t.Errorf("%d files were saved", len(s.known))
	}
}

// TestConcurrent: builds that share everything do not disturb each other.
func TestConcurrent(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base AS a\nCOPY . /x/\nRUN cat /x/f >/y\nFROM base\nCOPY --from=a /y /y\nRUN echo done >/z\n", "f": "F"})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			runs, steps := 0, []Step{}
			b := New(w.store, chrootExecutor{filepath.Join(w.dir, "mnt"), &runs, &steps}, filepath.Join(w.dir, "cache"))
			img, err := b.Build(context.WithoutCancel(t.Context()), Options{Context: dir, NoCache: i%2 == 0, Tags: []string{fmt.Sprintf("c:%d", i)}})
			if err != nil {
				t.Error(err)
				return
			}
			if got := w.look(img, "z"); got != "f 644 0:0 done\n" {
				t.Error(got)
			}
		})
	}
	wg.Wait()
	if list, err := os.ReadDir(filepath.Join(w.dir, "images/tmp")); err != nil || len(list) != 0 {
		t.Errorf("left in tmp: %v %v", list, err)
	}
}

func TestTimeoutAndCancel(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nRUN sleep 60\n"})
	start := time.Now()
	_, _, err := w.build(Options{Context: dir, Timeout: 300 * time.Millisecond})
	if !errors.Is(err, errTimeout) || !strings.Contains(err.Error(), "Dockerfile:2") || time.Since(start) > 20*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.builder().Build(ctx, Options{Context: dir}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if list, err := os.ReadDir(filepath.Join(w.dir, "images/tmp")); err != nil || len(list) != 0 {
		t.Errorf("left in tmp: %v %v", list, err)
	}
}

// TestNoFileLeft: a build leaves no descriptor and no mount behind.
func TestNoFileLeft(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base AS a\nCOPY . /x/\nWORKDIR /w\nRUN true\nFROM base\nCOPY --from=a /x /x\nADD nope /\n"})
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	_, _, _ = w.build(Options{Context: dir}) // opens what stays open once
	before := count()
	if _, _, err := w.build(Options{Context: dir}); err == nil {
		t.Fatal("built")
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), w.dir) {
		t.Errorf("mounted:\n%s", mounts)
	}
}

// TestManyFiles measures the second build of an unchanged context.
func TestManyFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("20,000 files")
	}
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nCOPY . /x/\nRUN true >/y\n", ".dockerignore": "*.log\n"})
	for i := range 20_000 {
		writeFile(t, dir, fmt.Sprintf("d%d/e%d/f%d", i%20, i%200, i), fmt.Sprint("content ", i))
	}
	start := time.Now()
	first, _ := w.mustBuild(Options{Context: dir})
	cold := time.Since(start)
	best := time.Hour
	for range 5 {
		start = time.Now()
		img, log := w.mustBuild(Options{Context: dir})
		best = min(best, time.Since(start))
		if img.ID != first.ID {
			t.Fatalf("another image\n%s", log)
		}
	}
	t.Logf("20,000 files: cold %s, warm %s", cold, best)
	if best > cold/4 { // a ratio, as an emulated machine is slow in both
		t.Errorf("the second build took %s, the first %s", best, cold)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "d1/e1/f1"), &st))
	same(t, filepath.Join(dir, "d1/e1/f1"), "CONTENT 1")
	start = time.Now()
	img, _ := w.mustBuild(Options{Context: dir})
	t.Logf("one file changed: %s", time.Since(start))
	if got := w.look(img, "x/d1/e1/f1"); got != "f 644 0:0 CONTENT 1" {
		t.Error(got)
	}
}
