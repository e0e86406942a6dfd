package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRemoteContext: contexts that are fetched, as the build's own.
func TestRemoteContext(t *testing.T) {
	w := newWorld(t)
	files := []tarEntry{
		{name: "Dockerfile", kind: '0', mode: 0o644, data: "FROM base\nCOPY . /x/\n"}, {name: "f", kind: '0', mode: 0o640, uid: 7, data: "F"},
		{name: "hidden", kind: '0', mode: 0o644, data: "H"}, {name: ".dockerignore", kind: '0', mode: 0o644, data: "hidden"}, {name: "Other", kind: '0', mode: 0o644, data: "FROM base\nCOPY f /other\n"},
	}
	hostile := makeTar(t, files[0], tarEntry{name: "l", kind: '2', link: "/etc"}, tarEntry{name: "l/passwd2", kind: '0', mode: 0o644, data: "x"})
	s := newSite(t, map[string]string{
		"/c.tar": string(makeTar(t, files...)), "/c.tgz": gzipped(t, makeTar(t, files...)), "/to": "-> /c.tgz", "/Dockerfile": "FROM base\nCOPY context /c\n",
		"/empty.tar": string(makeTar(t, files[1])), "/big": strings.Repeat("#", maxDockerfile+1), "/out": "-> http://localhost:1/x",
		"/link.tar": string(hostile),
	})
	abs := filepath.Join(w.context(map[string]string{"My": "FROM base\nCOPY f /mine\n"}), "My")
	for _, c := range []struct {
		name, context string
		o             Options
		want          map[string]string
		err           string
	}{
		{name: "archive", context: "URL/c.tar", want: map[string]string{"x/f": "f 640 0:0 F", "x/hidden": "-"}},
		{name: "compressed, after a redirect", context: "URL/to", want: map[string]string{"x/f": "f 640 0:0 F"}},
		{name: "file of it", context: "URL/c.tgz", o: Options{Dockerfile: "Other"}, want: map[string]string{"other": "f 640 0:0 F"}},
		{name: "file of ours", context: "URL/c.tgz", o: Options{Dockerfile: abs}, want: map[string]string{"mine": "f 640 0:0 F"}},
		{name: "text of ours", context: "URL/c.tgz", o: Options{Text: []byte("FROM base\nCOPY f /text\n")}, want: map[string]string{"text": "f 640 0:0 F"}},
		{name: "Dockerfile", context: "URL/Dockerfile", want: map[string]string{"c": "f 600 0:0 FROM base\nCOPY context /c\n"}},
		{name: "text of ours and a file", context: "URL/Dockerfile", o: Options{Text: []byte("FROM base\nADD context /d/\n")}, want: map[string]string{"d/context": "f 600 0:0 FROM base\nCOPY context /c\n"}},
		{name: "links stay inside", context: "URL/link.tar", want: map[string]string{"x/l": "l /etc", "etc/passwd2": "-"}},
		{name: "file in a file", context: "URL/Dockerfile", o: Options{Dockerfile: "x"}, err: "it is a single file, and so the Dockerfile"},
		{name: "no Dockerfile", context: "URL/empty.tar", err: "read Dockerfile"},
		{name: "large file", context: "URL/big", err: "neither a tar archive nor a Dockerfile"},
		{name: "too large", context: "URL/c.tar", o: Options{FetchBytes: 100}, err: "more than the 100"},
		{name: "missing", context: "URL/gone", err: "the server answers 404"},
		{name: "fragment", context: "URL/c.tar#sub", err: "a fragment means nothing"},
		{name: "scheme", context: "s3://bucket/x", err: "cannot be fetched by s3"},
		{name: "password", context: "http://u:hunter2@127.0.0.1:1/x", err: "u:xxxxx@127.0.0.1:1"},
		{name: "bad query", context: "https://example.com/a.git?x=1", err: `unexpected query "x"`},
		{name: "nobody for git", context: "https://example.com/a.git", err: "nobody here to fetch it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Context, c.o.Reach = strings.Replace(c.context, "URL", s.URL, 1), loopback
			img, log, err := w.build(c.o)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("%v\n%s", err, log)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			for p, want := range c.want {
				if got := w.look(img, p); got != want {
					t.Errorf("%s: %q, want %q", p, got, want)
				}
			}
		})
	}
	if _, _, err := w.build(Options{Context: s.URL + "/c.tar"}); err == nil || !strings.Contains(err.Error(), "may not be reached by a build") {
		t.Errorf("this machine: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, "images/tmp", "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// TestRemoteContextGit: what a repository's URL says reaches the fetcher, and the
// subdirectory is the context.
func TestRemoteContextGit(t *testing.T) {
	w := newWorld(t)
	g := &gitStub{fill: func(dir string) error {
		return errors.Join(os.MkdirAll(filepath.Join(dir, "sub"), 0o755), os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM base\nCOPY . /top/\n"), 0o644),
			os.WriteFile(filepath.Join(dir, "sub/Dockerfile"), []byte("FROM base\nCOPY . /sub/\n"), 0o644), os.Symlink("/", filepath.Join(dir, "out")))
	}}
	img, log := w.mustBuild(Options{Context: "git@example.com:a/b.git#v1:sub", Git: g})
	if got := w.look(img, "sub/Dockerfile"); !strings.HasPrefix(got, "f 644 0:0") || !strings.Contains(log, "commit cccc") {
		t.Errorf("%s\n%s", got, log)
	}
	w.mustBuild(Options{Context: "github.com/a/b", Git: g, Args: map[string]string{keepGitArg: "1"}})
	w.mustBuild(Options{Context: "https://example.com/a/b.git?branch=main&commit=cccc&subdir=sub", Git: g})
	for i, want := range []GitSource{
		{URL: "git@example.com:a/b.git", Ref: "v1"}, {URL: "https://github.com/a/b", KeepDir: true}, {URL: "https://example.com/a/b.git", Ref: "refs/heads/main", Commit: "cccc"},
	} {
		if s := g.asked[i]; s.URL != want.URL || s.Ref != want.Ref || s.Commit != want.Commit || s.KeepDir != want.KeepDir || !s.Submodules {
			t.Errorf("asked %+v, want %+v", s, want)
		}
	}
	for _, bad := range []string{"out", "out/etc", "../..", "nope"} {
		if _, _, err := w.build(Options{Context: "https://example.com/a/b.git#:" + bad, Git: g}); err == nil && bad != "../.." {
			t.Errorf("subdirectory %s: built", bad)
		}
	}
}

// TestRemoteNamedContext: the same as a named context, fetched only when a stage asks for it.
func TestRemoteNamedContext(t *testing.T) {
	w := newWorld(t)
	s := newSite(t, map[string]string{"/c.tgz": gzipped(t, makeTar(t, tarEntry{name: "d/f", kind: '0', mode: 0o644, data: "F"})), "/file": "text"})
	g := &gitStub{fill: func(dir string) error { return os.WriteFile(filepath.Join(dir, "g"), []byte("G"), 0o644) }}
	dir := w.context(map[string]string{"Dockerfile": "FROM base AS unused\nCOPY --from=never / /\nFROM base AS b\nCOPY --from=tar d/f /f\nCOPY --from=one context /one\nFROM repo\nCOPY --from=b /f /one /\n"})
	o := Options{Context: dir, Git: g, Reach: loopback, Contexts: map[string]string{
		"tar": s.URL + "/c.tgz", "one": s.URL + "/file", "repo": "https://example.com/a.git", "never": s.URL + "/gone",
	}}
	img, log := w.mustBuild(o)
	for p, want := range map[string]string{"f": "f 644 0:0 F", "one": "f 600 0:0 text", "g": "f 644 0:0 G"} {
		if got := w.look(img, p); got != want {
			t.Errorf("%s: %q, want %q\n%s", p, got, want, log)
		}
	}
	if n := s.count("/gone 404"); n != 0 {
		t.Error("a context that nobody needs was fetched")
	}
	again, _ := w.mustBuild(o)
	if again.ID != img.ID {
		t.Error("the same contexts made another image")
	}
	o.Contexts["tar"] = s.URL + "/gone"
	if _, _, err := w.build(o); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("Dockerfile:4: build context tar: fetch %s/gone: the server answers 404", s.URL)) {
		t.Errorf("missing: %v", err)
	}
}
