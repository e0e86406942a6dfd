package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"naru/pipeline"
)

// upstream is a real repository, made with the git program.
type upstream struct {
	t   *testing.T
	dir string
}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("the program git is not installed")
	}
	u := &upstream{t, filepath.Join(t.TempDir(), "up")}
	if err := os.Mkdir(u.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	u.git("init", "-q", "-b", "main")
	return u
}

// git runs git in the repository with nothing of this machine's configuration.
func (u *upstream) git(args ...string) string {
	u.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = u.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=Mona", "GIT_AUTHOR_EMAIL=mona@example.com", "GIT_COMMITTER_NAME=Mona", "GIT_COMMITTER_EMAIL=mona@example.com",
		"GIT_AUTHOR_DATE=2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE=2026-01-02T03:04:05Z")
	out, err := cmd.CombinedOutput()
	if err != nil {
		u.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (u *upstream) write(name, content string) {
	u.t.Helper()
	path := filepath.Join(u.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		u.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		u.t.Fatal(err)
	}
}

// commit records everything and returns the id.
func (u *upstream) commit(message string) string {
	u.t.Helper()
	u.git("add", "-A")
	u.git("commit", "-q", "--allow-empty", "-m", message)
	return u.git("rev-parse", "HEAD")
}

func (u *upstream) repo() pipeline.Repo {
	return pipeline.Repo{URL: "file://" + u.dir, Branch: "main"}
}

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "stores"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fetch(t *testing.T, s *Store, repo pipeline.Repo, hint string) pipeline.Commit {
	t.Helper()
	c, err := s.Fetch(t.Context(), repo, hint, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mirrorDir is the only mirror of the store.
func mirrorDir(t *testing.T, s *Store) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(s.root, "*.git"))
	if err != nil || len(all) != 1 {
		t.Fatalf("mirrors: %v, %v", all, err)
	}
	return all[0]
}

func TestFetchFollowsTheBranch(t *testing.T) {
	u, s := newUpstream(t), open(t)
	u.write("a", "1")
	first := u.commit("first\n\nmore text")
	u.git("tag", "v1")
	u.git("branch", "other")

	got := fetch(t, s, u.repo(), "")
	want := pipeline.Commit{Hash: first, Subject: "first", Author: "Mona <mona@example.com>", Time: got.Time}
	if diff := cmp.Diff(want, got); diff != "" || !got.Time.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Error(diff, got.Time)
	}
	if got := fetch(t, s, u.repo(), ""); got.Hash != first {
		t.Errorf("again: %s", got.Hash)
	}
	u.write("a", "2")
	second := u.commit("second")
	if got := fetch(t, s, u.repo(), ""); got.Hash != second {
		t.Errorf("after a push: %s", got.Hash)
	}
	u.git("reset", "-q", "--hard", first)
	u.write("a", "3")
	third := u.commit("third")
	if got := fetch(t, s, u.repo(), ""); got.Hash != third {
		t.Errorf("after a force push: %s", got.Hash)
	}
	refs := (&upstream{t, mirrorDir(t, s)}).git("for-each-ref", "--format=%(refname)")
	if refs != "refs/deploy/main" {
		t.Errorf("the mirror has %s", refs)
	}
}

func TestHint(t *testing.T) {
	u, s := newUpstream(t), open(t)
	first := u.commit("first")
	second := u.commit("second")
	u.git("checkout", "-q", "-b", "other")
	foreign := u.commit("foreign")
	u.git("checkout", "-q", "main")
	for _, hint := range []string{first, second, first[:7], strings.ToUpper(first)} {
		if got := fetch(t, s, u.repo(), hint); !strings.HasPrefix(got.Hash, strings.ToLower(hint)) {
			t.Errorf("%s: got %s", hint, got.Hash)
		}
	}
	for hint, want := range map[string]error{foreign: ErrNotOnBranch, strings.Repeat("0", 40): ErrNotOnBranch, "main": nil, first[:6]: nil, "--upload-pack=x": nil} {
		c, err := s.Fetch(t.Context(), u.repo(), hint, io.Discard)
		if err == nil || want != nil && !errors.Is(err, want) || want == nil && errors.Is(err, ErrNotOnBranch) {
			t.Errorf("%s: got %v, %v", hint, c, err)
		}
	}
}

func TestFetchErrors(t *testing.T) {
	u, s := newUpstream(t), open(t)
	with := func(edit func(*pipeline.Repo)) pipeline.Repo { r := u.repo(); edit(&r); return r }
	check := func(name string, repo pipeline.Repo, want string) {
		t.Helper()
		_, err := s.Fetch(t.Context(), repo, "", io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
	check("an empty repository", u.repo(), "remote repository is empty (push a commit first)")
	u.commit("first")
	check("no such branch", with(func(r *pipeline.Repo) { r.Branch = "prod" }), "there is no branch prod")
	check("no such directory", with(func(r *pipeline.Repo) { r.URL += "x" }), "no such file or directory")
	check("a directory that is no repository", pipeline.Repo{URL: "file://" + t.TempDir(), Branch: "main"}, "not")
	t.Setenv("PATH", t.TempDir())
	check("no git program", u.repo(), "needs the program git")
}

func TestURLsRefused(t *testing.T) {
	s := open(t)
	for _, url := range []string{
		"", "/srv/git/a", "a/b", "http://h/a", "git://h/a", "ext::sh -c x", "ftp://h/a", "file://h/a", "file:a", "https:///a", "https://h", "https://h/",
		"https://user:pa55@h/a", "https://token@h/a", "ssh://u:pa55@h/a", "ssh://-oProxyCommand=x/a", "ssh:///a", "ssh://-u@h/a", "-u@h:a", "u@-h:a",
		"https://h/a?b", "https://h/a#b", "https://h/a b", "https://h/a\nb", "git@h:", "git@h:22/a", "h:a", "file://", "https://%zz/pa55",
	} {
		_, err := s.Fetch(t.Context(), pipeline.Repo{URL: url, Branch: "main", KeyFile: "/k", KnownHosts: "/h"}, "", io.Discard)
		if err == nil {
			t.Errorf("%q was fetched", url)
		}
		if entries, _ := os.ReadDir(s.root); len(entries) > 0 {
			t.Fatalf("%q made files", url)
		}
	}
	for _, branch := range []string{"", "a..b", "a b", "*", "a:b", "a*", "a~1", "-a\x00", "a.lock"} {
		if _, err := parseRemote(pipeline.Repo{URL: "https://h/a", Branch: branch}); err == nil {
			t.Errorf("branch %q passes", branch)
		}
	}
}

func TestChanged(t *testing.T) {
	u, s := newUpstream(t), open(t)
	u.write("a", "1")
	u.write("d/b", "1")
	u.write("t/x", "a directory that becomes a file")
	u.write("d/e/c", "some text that is long enough to be found as a rename\n")
	first := u.commit("first")
	u.write("a", "2")
	u.write("new", "1")
	u.write("n\tw/f", "1")
	u.git("rm", "-q", "d/b")
	u.git("mv", "d/e/c", "moved")
	u.git("rm", "-q", "-r", "t")
	u.write("t", "a file")
	u.commit("second")
	u.git("update-index", "--chmod=+x", "new")
	u.git("commit", "-q", "-m", "third")
	third := u.git("rev-parse", "HEAD")
	fetch(t, s, u.repo(), "")
	got, err := s.Changed(t.Context(), u.repo(), first, third)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "d/b", "d/e/c", "moved", "n\tw/f", "new", "t", "t/x"}, got); diff != "" {
		t.Error(diff)
	}
	if got, err := s.Changed(t.Context(), u.repo(), third, third); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
	if _, err := s.Changed(t.Context(), u.repo(), strings.Repeat("1", 40), third); !errors.Is(err, ErrNotOnBranch) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := s.Changed(t.Context(), u.repo(), "", third); err == nil {
		t.Error("an empty id went well")
	}
}

// damages are ways in which a mirror may be after a power cut.
func damages(t *testing.T, dir string) map[string]func() {
	packs := func() []string {
		all, err := filepath.Glob(filepath.Join(dir, "objects/pack/*.pack"))
		if err != nil || len(all) == 0 {
			t.Fatalf("packs: %v, %v", all, err)
		}
		return all
	}
	each := func(do func(string) error) {
		for _, p := range packs() {
			if err := errors.Join(os.Chmod(p, 0o600), do(p)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return map[string]func(){
		"packs gone":     func() { each(os.Remove) },
		"packs empty":    func() { each(func(p string) error { return os.Truncate(p, 0) }) },
		"packs cut":      func() { each(func(p string) error { return os.Truncate(p, 40) }) },
		"packs of zeros": func() { each(func(p string) error { return os.WriteFile(p, make([]byte, 4096), 0o600) }) },
		"indexes of junk": func() {
			each(func(p string) error {
				i := strings.TrimSuffix(p, "pack") + "idx"
				return errors.Join(os.Chmod(i, 0o600), os.WriteFile(i, []byte("junk"), 0o600))
			})
		},
		"ref empty":      func() { must(t, os.WriteFile(filepath.Join(dir, "refs/deploy/main"), nil, 0o600)) },
		"ref of zeros":   func() { must(t, os.WriteFile(filepath.Join(dir, "refs/deploy/main"), make([]byte, 41), 0o600)) },
		"config gone":    func() { must(t, os.Remove(filepath.Join(dir, "config"))) },
		"config of junk": func() { must(t, os.WriteFile(filepath.Join(dir, "config"), []byte("[[["), 0o600)) },
		"HEAD gone":      func() { must(t, os.Remove(filepath.Join(dir, "HEAD"))) },
		"all gone":       func() { must(t, os.RemoveAll(dir)) },
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDamagedMirrorIsClonedAgain(t *testing.T) {
	u := newUpstream(t)
	u.write("a", "1")
	u.write("d/b", strings.Repeat("text\n", 500))
	first := u.commit("first")
	for name := range damages(t, "") {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			fetch(t, s, u.repo(), "")
			damages(t, mirrorDir(t, s))[name]()
			dir := filepath.Join(t.TempDir(), "out")
			if err := s.Export(t.Context(), u.repo(), first, dir); err != nil {
				t.Errorf("export: %v", err)
			}
			if data, err := os.ReadFile(filepath.Join(dir, "a")); string(data) != "1" {
				t.Errorf("exported %q, %v", data, err)
			}
			damages(t, mirrorDir(t, s))[name]()
			if got := fetch(t, s, u.repo(), first); got.Hash != first {
				t.Errorf("fetch: %v", got)
			}
		})
	}
}

func TestRepack(t *testing.T) {
	u, s := newUpstream(t), open(t)
	first := ""
	for i := range maxPacks + 3 {
		u.write("a", strings.Repeat("x", i))
		tip := u.commit("next")
		if first == "" {
			first = tip
		}
		if got := fetch(t, s, u.repo(), ""); got.Hash != tip {
			t.Fatalf("fetch %d: %s", i, got.Hash)
		}
	}
	packs, err := filepath.Glob(filepath.Join(mirrorDir(t, s), "objects/pack/*.pack"))
	if err != nil || len(packs) > 5 {
		t.Errorf("%d packs, %v", len(packs), err)
	}
	if got := fetch(t, s, u.repo(), first); got.Hash != first {
		t.Errorf("history after repacking: %v", got)
	}
	(&upstream{t, mirrorDir(t, s)}).git("fsck", "--strict")
}

func TestContextWhileLocked(t *testing.T) {
	u, s := newUpstream(t), open(t)
	u.commit("first")
	fetch(t, s, u.repo(), "")
	locks, err := filepath.Glob(filepath.Join(s.root, "*.lock"))
	if err != nil || len(locks) != 1 {
		t.Fatal(locks, err)
	}
	err = withLock(t.Context(), locks[0], true, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := s.Fetch(ctx, u.repo(), "", io.Discard)
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another fetch") {
		t.Errorf("got %v", err)
	}
}

func TestAtOnce(t *testing.T) {
	u, s := newUpstream(t), open(t)
	u.write("a", "1")
	tip := u.commit("first")
	errs := make(chan error, 8)
	for i := range cap(errs) {
		dir := filepath.Join(t.TempDir(), "out")
		go func() {
			_, err := s.Fetch(t.Context(), u.repo(), "", io.Discard)
			if err == nil && i%2 == 0 {
				err = s.Export(t.Context(), u.repo(), tip, dir)
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		must(t, <-errs)
	}
}

func TestPanicsBecomeErrors(t *testing.T) {
	u, s := newUpstream(t), open(t)
	u.commit("first")
	times := 0
	err := s.run(t.Context(), job{repo: u.repo(), log: io.Discard, write: true, do: func(context.Context, *mirror) error {
		times++
		panic("index out of range")
	}})
	if err == nil || !strings.Contains(err.Error(), "panicked: index out of range") || times != 2 {
		t.Errorf("%v after %d times", err, times)
	}
}

func TestProgress(t *testing.T) {
	var log bytes.Buffer
	p := newProgress(&log, []string{"hunter2"})
	for _, chunk := range []string{"Counting: 1%\rCounting: 2%\rCounting: 100%, done.\n", "\nhi hun", "ter2\x1b[31m!\n", strings.Repeat("x", 1<<20), "\n", "tail"} {
		_, _ = io.WriteString(p, chunk)
	}
	p.close()
	want := "remote: Counting: 100%, done.\nremote: hi *** [31m!\nremote: " + strings.Repeat("x", 1000) + "\nremote: tail\n"
	if diff := cmp.Diff(want, log.String()); diff != "" {
		t.Error(diff)
	}
}
