package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/build"
)

// TestBuildMountContexts: RUN --mount=from= of a named context shows its files as
// COPY would take them, by content, also to stages that run at once.
func TestBuildMountContexts(t *testing.T) {
	e := newEngine(t)
	named := writeContext(t, map[string]string{"a": "AAA\n", "d/b": "BBB\n", "secret": "HIDDEN\n", ".dockerignore": "secret\n", "out@": "/etc/hostname"})
	must(t, os.Chown(filepath.Join(named, "a"), 1234, 1234))
	for name, c := range map[string]struct{ file, want, not, err string }{
		"bind":               {file: "RUN --mount=type=bind,from=x,target=/m cat /m/a /m/d/b; stat -c '%u:%g' /m/a; ls /m; ! touch /m/new", want: `AAA(?s:.*)BBB(?s:.*) 0:0(?s:.*)Read-only`, not: " secret"},
		"bind of a file":     {file: "RUN --mount=from=x,source=d/b,target=/f cat /f", want: "BBB"},
		"bind rw":            {file: "RUN --mount=from=x,target=/m,rw echo new > /m/a; cat /m/a\nRUN --mount=from=x,target=/m cat /m/a", want: "new(?s:.*)AAA"},
		"bind of no file":    {file: "RUN --mount=from=x,source=none,target=/m true", err: "source=none"},
		"bind of the hidden": {file: "RUN --mount=from=x,source=secret,target=/m true", err: "source=secret"},
		"bind of a link out": {file: "RUN --mount=from=x,source=out,target=/m true", err: "not in"},
		"cache":              {file: "RUN --mount=type=cache,id=c,from=x,source=d,target=/m cat /m/b; echo more >> /m/b\nRUN --mount=type=cache,id=c,from=x,source=d,target=/m cat /m/b", want: "BBB(?s:.*)more"},
		"cache of all":       {file: "RUN --mount=type=cache,id=all,from=x,target=/m,mode=0700 ls /m; stat -c '%a' /m", want: ` a\n(?s:.*) 700`, not: " secret"},
		"cache of a file":    {file: "RUN --mount=type=cache,id=f,from=x,source=a,target=/m true", err: "no directory"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeContext(t, map[string]string{"Dockerfile": "FROM busybox\n" + c.file, "a": "of the main context"})
			_, log, err := buildIn(t, e, build.Options{Context: dir, Contexts: map[string]string{"x": named}, NoCache: true, Owner: t.Name()})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if ok, _ := regexp.MatchString(c.want, log); !ok || err != nil || c.not != "" && strings.Contains(log, c.not) {
				t.Errorf("%v\n%s\nwant %s, not %q", err, log, c.want, c.not)
			}
		})
	}

	var file strings.Builder
	for i := range 6 {
		fmt.Fprintf(&file, "FROM busybox AS s%d\nRUN --mount=from=x,target=/m --mount=target=/c --mount=type=cache,id=p%d,from=x,source=d,target=/n echo %d >/dev/null; cat /m/a /n/b /c/a > /f\nCOPY --from=x d /e%d\n", i, i%2, i, i)
	}
	file.WriteString("FROM busybox\n")
	for i := range 6 {
		fmt.Fprintf(&file, "COPY --from=s%d /f /e%d/b /r%d/\n", i, i, i)
	}
	file.WriteString("RUN echo made $(cat /r*/f | grep -c .) of 18\n")
	dir := writeContext(t, map[string]string{"Dockerfile": file.String(), "a": "main\n"})
	built := func(want string) {
		t.Helper()
		_, log, err := buildIn(t, e, build.Options{Context: dir, Contexts: map[string]string{"x": named}, Owner: "parallel"})
		if ran := strings.Contains(log, "made 18 of 18"); err != nil || ran != (want == "made") {
			t.Errorf("%v, want %s\n%s", err, want, log)
		}
	}
	built("made")
	built("cached")
	put(t, named, "a", "XXX\n")
	_, log, err := buildIn(t, e, build.Options{Context: dir, Contexts: map[string]string{"x": named}, Owner: "parallel"})
	if err != nil || !strings.Contains(log, "made 18 of 18") {
		t.Errorf("after a file of the named context changed: %v\n%s", err, log)
	}
}

// TestBuildCachePrune: cache mounts go when the cache is full, that which was not used
// for longest first, none that a step uses, and by the filters of prune.
func TestBuildCachePrune(t *testing.T) {
	e := newEngine(t)
	fill := func(id, more string, limit int64) string {
		t.Helper()
		dir := writeContext(t, map[string]string{"Dockerfile": "FROM busybox\nRUN --mount=type=cache,target=/c,id=" + id + " dd if=/dev/zero of=/c/f bs=1M count=4 2>/dev/null; ls /c | grep -c f$; " + more})
		_, log, err := buildIn(t, e, build.Options{Context: dir, Owner: "app", NoCache: true, CacheLimit: limit})
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		return log
	}
	b := e.Builder()
	ids := func() string {
		t.Helper()
		u, err := b.Usage()
		must(t, err)
		var list []string
		sum := int64(0)
		for _, m := range u.CacheMounts {
			list = append(list, m.ID)
			sum += m.Bytes
			if m.Owner != "app" || m.Bytes < 4<<20 || m.InUse || time.Since(m.Used) > time.Minute {
				t.Errorf("%+v", m)
			}
		}
		if u.Mounts != sum || u.Total < sum || u.Reclaimable < sum {
			t.Errorf("usage %+v, mounts have %d", u, sum)
		}
		return strings.Join(list, " ")
	}
	const limit = 20 << 20 // a quarter is kept free, so three fit
	for _, id := range []string{"one", "two", "three", "four"} {
		fill(id, "true", limit)
	}
	if got := ids(); got != "one two three four" {
		t.Errorf("before there was need: %s", got)
	}
	fill("two", "true", limit)
	if got := ids(); got != "three four two" {
		t.Errorf("16 MiB of 20: %s", got)
	}
	prune := func(o build.PruneOptions, mounts int, left string) {
		t.Helper()
		r, err := b.Prune(t.Context(), o)
		must(t, err)
		if got := ids(); r.Mounts != mounts || r.Freed < int64(mounts)*4<<20 || got != left {
			t.Errorf("%+v: %+v, left %s, want %s", o, r, got, left)
		}
	}
	prune(build.PruneOptions{Type: build.TypeStep}, 0, "three four two")
	prune(build.PruneOptions{Type: build.TypeCacheMount, Until: time.Hour}, 0, "three four two")
	prune(build.PruneOptions{IDs: []string{"four", "none"}}, 1, "three two")
	if _, err := b.Prune(t.Context(), build.PruneOptions{Type: "socks"}); err == nil {
		t.Error("there is no such type")
	}
	// One that is in use, and what a killed prune has left.
	mounts, err := b.CacheMounts()
	must(t, err)
	var used build.CacheMount
	for _, m := range mounts {
		if m.ID == "three" {
			used = m
		}
	}
	at := filepath.Join(e.root, "build", used.Path)
	if _, err := os.Stat(at); err != nil {
		found, _ := filepath.Glob(filepath.Join(e.root, "*", used.Path))
		if len(found) != 1 {
			t.Fatalf("no directory of %+v", used)
		}
		at = found[0]
	}
	lock, err := os.Open(filepath.Join(at, "lock"))
	must(t, err)
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_SH))
	left := filepath.Join(filepath.Dir(at), ".rm-7")
	must(t, os.Mkdir(left, 0o700))
	r, err := b.Prune(t.Context(), build.PruneOptions{Type: build.TypeCacheMount})
	if mounts, listErr := b.CacheMounts(); err != nil || listErr != nil || r.Mounts != 1 || len(mounts) != 1 || !mounts[0].InUse || mounts[0].ID != "three" {
		t.Errorf("%+v, %v; left %+v, %v", r, err, mounts, listErr)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", left, err)
	}
	must(t, lock.Close())
	prune(build.PruneOptions{Type: build.TypeCacheMount}, 1, "")
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(at)), "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
