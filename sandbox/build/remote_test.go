package build

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// site is a web server that counts what it is asked.
type site struct {
	*httptest.Server
	mu    sync.Mutex
	files map[string]string // path → content
	asked []string          // method, path, answer
	since time.Time         // Last-Modified; zero: none
	etag  bool
}

func newSite(t *testing.T, files map[string]string) *site {
	s := &site{files: files}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := func(code int) { s.asked = append(s.asked, fmt.Sprint(r.URL.Path, " ", code)); w.WriteHeader(code) }
	data, ok := s.files[r.URL.Path]
	if to, found := strings.CutPrefix(data, "-> "); found {
		w.Header().Set("Location", to)
		answer(http.StatusFound)
		return
	}
	if !ok {
		answer(http.StatusNotFound)
		return
	}
	if s.etag {
		tag := fmt.Sprintf(`"%x"`, sha256.Sum256([]byte(data)))
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			answer(http.StatusNotModified)
			return
		}
	}
	if !s.since.IsZero() {
		w.Header().Set("Last-Modified", s.since.UTC().Format(http.TimeFormat))
	}
	answer(http.StatusOK)
	_, _ = fmt.Fprint(w, data)
}

// count says how often a path was answered so, and forgets.
func (s *site) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, a := range s.asked {
		if a == what {
			n++
		}
	}
	s.asked = nil
	return n
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func TestAddURL(t *testing.T) {
	archive := string(makeTar(t, tarEntry{name: "in", kind: '0', mode: 0o640, uid: 3, gid: 4, data: "IN"}))
	s := newSite(t, map[string]string{"/d/file.txt": "content", "/x.tar.gz": gzipped(t, []byte(archive)), "/to": "-> /d/file.txt", "/loop": "-> /loop",
		"/out": "-> ftp://127.0.0.1/x", "/": "index"})
	sha := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("content")))
	sha384 := fmt.Sprintf("sha384:%x", sha512.Sum384([]byte("content")))
	var cases []buildCase
	for _, c := range []buildCase{
		{name: "into a directory", file: "ADD URL/d/file.txt?q=1 /n/", want: map[string]string{"n/file.txt": "f 600 0:0 content", "n": "d 755 0:0"}},
		{name: "to a name", file: "ADD URL/d/file.txt /n", want: map[string]string{"n": "f 600 0:0 content"}},
		{name: "to an existing directory", file: "ADD URL/to /tmp", want: map[string]string{"tmp/to": "f 600 0:0 content"}},
		{name: "without a name", file: "ADD URL /n/", want: map[string]string{"n/__unnamed__": "f 600 0:0 index"}},
		{name: "flags", file: "ADD --chown=app --chmod=u+x URL/d/file.txt /n/", want: map[string]string{"n/file.txt": "f 700 1000:1001 content"}},
		{name: "an archive stays one", file: "ADD URL/x.tar.gz /n/", want: map[string]string{"n/in": "-"}},
		{name: "unpack", file: "ADD --unpack URL/x.tar.gz /n/", want: map[string]string{"n/in": "f 640 3:4 IN", "n/x.tar.gz": "-"}},
		{name: "with a file", file: "ADD URL/to Dockerfile /n/", want: map[string]string{"n/to": "f 600 0:0 content"}},
		{name: "variable", file: "ARG V=d\nADD URL/$V/file.txt /n", want: map[string]string{"n": "f 600 0:0 content"}},
		{name: "checksum", file: "ADD --checksum=" + sha + " URL/d/file.txt /n", want: map[string]string{"n": "f 600 0:0 content"}},
		{name: "longer checksum", file: "ADD --checksum=" + sha384 + " URL/d/file.txt /n", want: map[string]string{"n": "f 600 0:0 content"}},
		{name: "wrong checksum", file: "ADD --checksum=sha256:" + strings.Repeat("0", 64) + " URL/d/file.txt /n", err: "digest mismatch: got " + sha},
		{name: "no checksum", file: "ADD --checksum=md5:1234 URL/d/file.txt /n", err: "--checksum=md5:1234: neither sha256"},
		{name: "checksum of a file", file: "ADD --checksum=" + sha + " Dockerfile /n", err: "--checksum needs a URL"},
		{name: "checksum of two", file: "ADD --checksum=" + sha + " URL/to URL/d/file.txt /n/", err: "--checksum needs exactly one source"},
		{name: "missing", file: "ADD URL/gone /n", err: "the server answers 404"},
		{name: "loop", file: "ADD URL/loop /n", err: "more than 10 redirects"},
		{name: "other scheme", file: "ADD URL/out /n", err: `scheme "ftp"`},
		{name: "COPY", file: "COPY URL/to /n", err: "which only ADD fetches"},
		{name: "password", file: "ADD http://user:hunter2@127.0.0.1:1/x /n", err: "http://user:xxxxx@127.0.0.1:1/x"},
	} {
		c.file = "FROM base\n" + strings.ReplaceAll(c.file, "URL", s.URL) + "\n"
		c.opts.Reach = loopback
		cases = append(cases, c)
	}
	runCases(t, cases)
}

// TestAddURLCache: a URL is asked again each time, and its content counts; one
// with a checksum is not.
func TestAddURLCache(t *testing.T) {
	w := newWorld(t)
	s := newSite(t, map[string]string{"/f": "one"})
	s.etag, s.since = true, time.Unix(1_500_000_000, 0)
	dir := w.context(map[string]string{"Dockerfile": "FROM scratch\nADD " + s.URL + "/f /f\n"})
	build := func(want string) {
		t.Helper()
		img, _ := w.mustBuild(Options{Context: dir, Reach: loopback})
		if got := w.look(img, "f"); got != "f 600 0:0 "+want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	build("one")
	build("one")
	if n := s.count("/f 304"); n != 1 {
		t.Errorf("%d answers 304", n)
	}
	s.mu.Lock()
	s.files["/f"] = "two"
	s.mu.Unlock()
	build("two")
	writeFile(t, dir, "Dockerfile", fmt.Sprintf("FROM scratch\nADD --checksum=sha256:%x %s/f /f\n", sha256.Sum256([]byte("two")), s.URL))
	s.count("")
	build("two")
	s.Close()
	build("two")
	if n := len(s.asked); n != 0 {
		t.Errorf("asked %q", s.asked)
	}
}

// TestAddURLStaysOut: from where a build is told to fetch, it gets nothing of
// this machine, by no name and through no redirect.
func TestAddURLStaysOut(t *testing.T) {
	w := newWorld(t)
	s := newSite(t, map[string]string{"/secret": "SECRET"})
	port := s.URL[strings.LastIndex(s.URL, ":"):]
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::]", "127.1.2.3", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "169.254.169.254", "[fe80::1%25lo]", "2130706433", "0x7f.1"} {
		dir := w.context(map[string]string{"Dockerfile": "FROM scratch\nADD http://" + host + port + "/secret /f\n"})
		if _, log, err := w.build(Options{Context: dir}); err == nil {
			t.Errorf("%s: built\n%s", host, log)
		}
	}
	if len(s.asked) != 0 {
		t.Errorf("asked %q", s.asked)
	}
}

// gitStub stands for the fetcher of repositories.
type gitStub struct {
	asked []GitSource
	fill  func(dir string) error
}

func (g *gitStub) Checkout(_ context.Context, s GitSource, dir string) (string, error) {
	g.asked = append(g.asked, s)
	return strings.Repeat("c", 40), g.fill(dir)
}

func TestAddGit(t *testing.T) {
	g := &gitStub{fill: func(dir string) error {
		return errors.Join(os.MkdirAll(filepath.Join(dir, "sub/in"), 0o755), os.WriteFile(filepath.Join(dir, "f"), []byte("F"), 0o755), os.WriteFile(filepath.Join(dir, "sub/in/g"), []byte("G"), 0o644),
			os.Symlink("/etc", filepath.Join(dir, "out")), os.Symlink("sub", filepath.Join(dir, "near")), os.Chown(filepath.Join(dir, "f"), 5, 5))
	}}
	var cases []buildCase
	for _, c := range []buildCase{
		{name: "all", file: "ADD https://example.com/a/b.git /n", want: map[string]string{"n/f": "f 755 0:0 F", "n/sub/in/g": "f 644 0:0 G", "n/out": "l /etc"}},
		{name: "subdirectory", file: "ADD git@example.com:a/b.git#v1:sub/in /n/", want: map[string]string{"n/g": "f 644 0:0 G", "n/f": "-"}},
		{name: "query", file: "ADD --chown=7:8 https://example.com/a/b.git?branch=main&subdir=sub&checksum=cccc /n/", want: map[string]string{"n/in/g": "f 644 7:8 G"}},
		{name: "link on the way", file: "ADD https://example.com/a/b.git#:near/in /n/", err: `directory "near/in"`},
		{name: "link out", file: "ADD https://example.com/a/b.git#:out /n/", err: `directory "out"`},
		{name: "dots", file: "ADD https://example.com/a/b.git#:../../etc /n/", err: `directory "etc"`},
		{name: "bad query", file: "ADD https://example.com/a/b.git?x=1 /n/", err: `unexpected query "x"`},
		{name: "no commit", file: "ADD --checksum=sha256:00 https://example.com/a/b.git /n/", err: "is not the id of a commit"},
		{name: "two checksums", file: "ADD --checksum=aa https://example.com/a/b.git?checksum=bb /n/", err: "--checksum=aa, and bb in the URL"},
		{name: "two wishes", file: "ADD --keep-git-dir https://example.com/a/b.git?keep-git-dir=false /n/", err: "differ"},
		{name: "COPY", file: "COPY https://example.com/a/b.git /n/", err: "which only ADD fetches"},
	} {
		c.file = "FROM base\n" + c.file + "\n"
		c.opts.Git = g
		cases = append(cases, c)
	}
	runCases(t, cases)
	if s := g.asked[1]; s.URL != "git@example.com:a/b.git" || s.Ref != "v1" || !s.Submodules || s.KeepDir {
		t.Errorf("asked %+v", s)
	}
	if s := g.asked[2]; s.URL != "https://example.com/a/b.git" || s.Ref != "refs/heads/main" || s.Commit != "cccc" {
		t.Errorf("asked %+v", s)
	}
	runCases(t, []buildCase{{name: "nobody", file: "FROM base\nADD https://example.com/a/b.git /n/\n", err: "nobody here to fetch it"}})
}
