package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"naru/sandbox/image"
)

// TestParallelStages: each stage waits for a file that another one makes, so
// that they can only end when all run at once.
func TestParallelStages(t *testing.T) {
	w := newWorld(t)
	meet := "RUN touch /meet/$N; for i in $(seq 3000); do [ -e /meet/1 -a -e /meet/2 -a -e /meet/3 -a -e /meet/4 ] && exit 0; sleep 0.01; done; exit 9\n"
	file := ""
	for i := 1; i <= 4; i++ {
		file += fmt.Sprintf("FROM base AS s%d\nARG N=%d\n%sRUN echo %d >/out%d\n", i, i, meet, i, i)
	}
	file += "FROM base\nCOPY --from=s1 /out1 /\nCOPY --from=s2 /out2 /\nCOPY --from=s3 /out3 /\nCOPY --from=s4 /out4 /\n"
	shared := filepath.Join(w.dir, "meet")
	must(t, os.Mkdir(shared, 0o777))
	b := New(w.store, meeting{w.builder().exec, shared}, filepath.Join(w.dir, "cache"))
	img, err := b.Build(t.Context(), Options{Context: w.context(map[string]string{"Dockerfile": file})})
	must(t, err)
	for i := 1; i <= 4; i++ {
		if got, want := w.look(img, fmt.Sprintf("out%d", i)), fmt.Sprintf("f 644 0:0 %d\n", i); got != want {
			t.Errorf("out%d: %q, want %q", i, got, want)
		}
	}
}

// meeting plays the part of RUN touch /meet/N: the steps have no directory in
// common.
type meeting struct {
	Executor
	dir string
}

func (m meeting) Run(ctx context.Context, s Step) (StepExit, error) {
	if !strings.Contains(strings.Join(s.Args, " "), "/meet/") {
		return m.Executor.Run(ctx, s)
	}
	for _, kv := range s.Env {
		if n, ok := strings.CutPrefix(kv, "N="); ok {
			if err := os.WriteFile(filepath.Join(m.dir, n), nil, 0o644); err != nil {
				return StepExit{}, err
			}
		}
	}
	for {
		if list, err := os.ReadDir(m.dir); err != nil || len(list) == 4 {
			return StepExit{}, err
		}
		select {
		case <-ctx.Done():
			return StepExit{}, context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(testDeadline) {
			return StepExit{Code: 9}, nil
		}
	}
}

// testDeadline ends waits of tests that have failed.
var testDeadline = time.Now().Add(3 * time.Minute)

// TestParallelLimit: no more RUN steps at once than Options.Parallel.
func TestParallelLimit(t *testing.T) {
	w := newWorld(t)
	file := ""
	for i := range 5 {
		file += fmt.Sprintf("FROM base AS s%d\nRUN echo %d\n", i, i)
	}
	file += "FROM scratch\n"
	for i := range 5 {
		file += fmt.Sprintf("COPY --from=s%d /etc/passwd /%d\n", i, i)
	}
	c := &counting{}
	b := New(w.store, c, filepath.Join(w.dir, "cache"))
	_, err := b.Build(t.Context(), Options{Context: w.context(map[string]string{"Dockerfile": file}), Parallel: 2})
	must(t, err)
	if c.most != 2 {
		t.Errorf("%d steps at once, want 2", c.most)
	}
}

type counting struct{ now, most int }

func (c *counting) Run(ctx context.Context, _ Step) (StepExit, error) {
	stepsMu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	stepsMu.Unlock()
	time.Sleep(30 * time.Millisecond) // long enough that all that may run do
	stepsMu.Lock()
	c.now--
	stepsMu.Unlock()
	return StepExit{}, nil
}

// TestFailureEndsOthers: the failing stage is reported, the other one is
// stopped, and both are over when Build returns.
func TestFailureEndsOthers(t *testing.T) {
	w := newWorld(t)
	file := "FROM base AS slow\nRUN sleep 100\nFROM base AS bad\nRUN sleep 0.3; exit 7\nFROM base\nCOPY --from=slow /x /\nCOPY --from=bad /x /\n"
	start := time.Now()
	_, log, err := w.build(Options{Context: w.context(map[string]string{"Dockerfile": file})})
	var failed *StepError
	if !errors.As(err, &failed) || failed.Code != 7 || failed.Line != 4 {
		t.Fatalf("%v\n%s", err, log)
	}
	if !strings.Contains(log, "CANCELED") || time.Since(start) > 60*time.Second {
		t.Errorf("after %s\n%s", time.Since(start), log)
	}
}

func TestOnbuild(t *testing.T) {
	w := newWorld(t)
	c := map[string]string{"f": "F", "Dockerfile": `FROM base
ENV A=a
ONBUILD COPY f /onbuild/
ONBUILD RUN <<EOT
echo $A $B >/onbuild/ran
EOT
ONBUILD COPY --from=extra /made /onbuild/made
ONBUILD ENV C=c`}
	img, log := w.mustBuild(Options{Context: w.context(c), Tags: []string{"trigger"}})
	if n := len(img.Config.Config.OnBuild); n != 4 || w.runs != 0 {
		t.Fatalf("%d triggers, %d runs: %q\n%s", n, w.runs, img.Config.Config.OnBuild, log)
	}
	child, log := w.mustBuild(Options{Context: w.context(map[string]string{"f": "G", "Dockerfile": `FROM base AS extra
RUN echo extra >/made
FROM base AS unused
RUN false
FROM trigger AS mid
RUN cat /onbuild/ran >/later; echo $C >>/later
FROM mid
RUN true`})})
	for p, want := range map[string]string{
		"onbuild/f": "f 644 0:0 G", "onbuild/ran": "f 644 0:0 a\n", "onbuild/made": "f 644 0:0 extra\n", "later": "f 644 0:0 a\nc\n",
	} {
		if got := w.look(child, p); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
	if len(child.Config.Config.OnBuild) > 0 || !strings.Contains(log, "[mid 2/5] ONBUILD COPY f /onbuild/") {
		t.Errorf("%q\n%s", child.Config.Config.OnBuild, log)
	}
}

func TestOnbuildOfStage(t *testing.T) {
	runCases(t, []buildCase{
		{name: "runs in the stage from it", file: "FROM base AS a\nONBUILD RUN echo on >>/on\nRUN echo a >/a\nFROM a AS b\nRUN cat /on >/b\nFROM b",
			want:   map[string]string{"on": "f 644 0:0 on\n", "b": "f 644 0:0 on\n"},
			config: func(c image.Config) any { return c.Config.OnBuild }, equals: "null"},
		{name: "recorded in order", file: "FROM base\nONBUILD RUN a\nONBUILD COPY x y",
			config: func(c image.Config) any { return c.Config.OnBuild }, equals: `["RUN a","COPY x y"]`},
		{name: "wrong line", file: "FROM base AS a\nONBUILD COPY --nope x y\nFROM a", err: "Dockerfile:3: ONBUILD COPY --nope x y"},
		{name: "missing stage is an image", file: "FROM base AS a\nONBUILD COPY --from=7 x y\nFROM a", err: "Dockerfile:3: COPY --from=7: there are 2 stages"},
	})
}

func TestNamedContexts(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"x": "dir", "hid": "h", ".dockerignore": "hid\n", "sub/y": "Y"})
	other := w.importTar("other:1", image.Config{OS: "linux"}, makeTar(t, tarEntry{name: "o", kind: '0', mode: 0o644, data: "O"}))
	layout := filepath.Join(w.dir, "layout")
	must(t, w.store.SaveDir(t.Context(), layout, "other:1"))
	_ = other
	for _, c := range []struct {
		name, file string
		contexts   map[string]string
		want       map[string]string
		err        string
	}{
		{name: "copy from directory", file: "FROM base\nCOPY --from=src /x sub /d/", contexts: map[string]string{"src": dir}, want: map[string]string{"d/x": "f 644 0:0 dir", "d/y": "f 644 0:0 Y"}},
		{name: "ignore file of the directory", file: "FROM base\nCOPY --from=src hid /d/", contexts: map[string]string{"src": dir}, err: "is excluded by .dockerignore"},
		{name: "FROM directory", file: "FROM src\nCOPY --from=base /bin /bin\nRUN cat /x >/z", contexts: map[string]string{"src": dir}, want: map[string]string{"x": "f 644 0:0 dir", "z": "f 644 0:0 dir", "hid": "-"}},
		{name: "instead of an image", file: "FROM docker.io/library/base:latest", contexts: map[string]string{"base": "docker-image://other:1"}, want: map[string]string{"o": "f 644 0:0 O", "bin": "-"}},
		{name: "instead of a stage", file: "FROM base AS lib\nRUN false\nFROM scratch\nCOPY --from=lib / /", contexts: map[string]string{"lib": dir}, want: map[string]string{"x": "f 644 0:0 dir"}},
		{name: "stage from layout", file: "FROM base AS lib\nRUN false\nFROM lib", contexts: map[string]string{"lib": "oci-layout://" + layout + ":1"}, want: map[string]string{"o": "f 644 0:0 O"}},
		{name: "no such tag", file: "FROM lib", contexts: map[string]string{"lib": "oci-layout://" + layout + ":2"}, err: "Dockerfile:1: load images: read archive: it has no image 2 for"},
		{name: "url", file: "FROM lib", contexts: map[string]string{"lib": "https://example.com/a.git"}, err: "build context lib: https://example.com/a.git is a git repository, and there is nobody here to fetch it"},
		{name: "no directory", file: "FROM lib", contexts: map[string]string{"lib": "/nonexistent"}, err: "build context lib=/nonexistent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			img, log, err := w.build(Options{Context: w.context(map[string]string{"Dockerfile": c.file}), Contexts: c.contexts})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%v, want %q\n%s", err, c.err, log)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			for p, want := range c.want {
				if got := w.look(img, p); got != want {
					t.Errorf("%s: %q, want %q\n%s", p, got, want, log)
				}
			}
		})
	}
	if img, err := w.store.Get("other:1"); err != nil || len(img.Names) != 1 {
		t.Errorf("names moved: %v %v", img.Names, err)
	}
}

// TestNamedContextChange: a changed file of a named directory is no stale hit.
func TestNamedContextChange(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"x": "one"})
	o := Options{Context: w.context(map[string]string{"Dockerfile": "FROM base\nCOPY --from=src x /x\n"}), Contexts: map[string]string{"src": dir}}
	w.mustBuild(o)
	same(t, filepath.Join(dir, "x"), "two")
	img, _ := w.mustBuild(o)
	if got := w.look(img, "x"); got != "f 644 0:0 two" {
		t.Error(got)
	}
}

func TestPlatforms(t *testing.T) {
	foreign := "arm64"
	if native().arch == "arm64" {
		foreign = "amd64"
	}
	t.Run("cross build", func(t *testing.T) {
		runCases(t, []buildCase{
			{name: "cross", file: "FROM --platform=$BUILDPLATFORM base AS b\nARG TARGETARCH TARGETPLATFORM BUILDARCH\nRUN echo $TARGETARCH $TARGETPLATFORM $BUILDARCH >/o\nFROM scratch\nCOPY --from=b /o /o",
				opts: Options{Platforms: []string{"linux/" + foreign}}, want: map[string]string{"o": "f 644 0:0 " + foreign + " linux/" + foreign + " " + native().arch + "\n"},
				config: func(c image.Config) any { return []any{c.OS, c.Architecture} }, equals: `["linux","` + foreign + `"]`},
			{name: "windows", file: "FROM base", opts: Options{Platforms: []string{"windows/amd64"}}, err: "only images for linux"},
			{name: "FROM nonsense", file: "FROM --platform=x base", err: "Dockerfile:1: FROM --platform=x: platform \"x\": want os/arch"},
			{name: "FROM blank", file: "ARG X\nFROM --platform=$X base", err: "Dockerfile:2: empty platform value from expression $X"},
		})
	})
	if (target{os: "linux", arch: foreign}).runnable() != nil {
		runCases(t, []buildCase{{name: "RUN needs an emulator", file: "FROM --platform=linux/" + foreign + " base AS x\nFROM scratch\nRUN x",
			opts: Options{Platforms: []string{"linux/" + foreign}}, err: "Dockerfile:3: a step for linux/" + foreign + " cannot run on this machine"}})
	}
}

func TestEmulated(t *testing.T) {
	const arm64 = "7f454c460201010000000000000000000200b700"
	for text, want := range map[string]string{
		"enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\nmagic " + arm64 + "\n": "",
		"disabled\nflags: F\nmagic " + arm64 + "\n":                                                      "is disabled",
		"enabled\nflags: OC\nmagic " + arm64 + "\n":                                                      "lacks the flag F",
		"enabled\nflags: F\nmagic 7f454c460201010000000000000000000200f300\n":                            "has no entry",
		"enabled\nflags: F\nextension .py\n":                                                             "has no entry",
	} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "qemu"), []byte(text), 0o644))
		err := target{os: "linux", arch: "arm64"}.emulated(dir)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
