package build

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostileContext: whatever the links of a context, a stage or an image say,
// nothing outside is read or written.
func TestHostileContext(t *testing.T) {
	const secret = "SECRET-OF-THE-HOST"
	for name, c := range map[string]struct {
		file string
		ctx  map[string]string
		err  string
		want map[string]string
	}{
		"link to file of the host":     {file: "FROM base\nCOPY l /n", ctx: map[string]string{"l@link": "OUT/secret"}, err: "is not in the build context"},
		"relative link out":            {file: "FROM base\nCOPY l /n", ctx: map[string]string{"l@link": "../outside/secret"}, err: "is not in the build context"},
		"path through a link out":      {file: "FROM base\nCOPY l/secret /n", ctx: map[string]string{"l@link": "OUT"}, err: "is not in the build context"},
		"dots":                         {file: "FROM base\nCOPY ../outside/secret /n", err: "is not in the build context"},
		"dots inside":                  {file: "FROM base\nCOPY a/../../../x /n", ctx: map[string]string{"x": "mine"}, want: map[string]string{"n": "f 644 0:0 mine"}},
		"wildcard through a link":      {file: "FROM base\nCOPY l/* /n/", ctx: map[string]string{"l@link": "OUT"}, err: "is not in the build context"},
		"wildcard match is a link":     {file: "FROM base\nCOPY l* /n/", ctx: map[string]string{"l@link": "OUT/secret"}, err: "is not in the build context"},
		"absolute is the context":      {file: "FROM base\nCOPY /etc/x /n", ctx: map[string]string{"etc/x": "mine"}, want: map[string]string{"n": "f 644 0:0 mine"}},
		"link below a directory stays": {file: "FROM base\nCOPY d /n/", ctx: map[string]string{"d/l@link": "OUT/secret"}, want: map[string]string{"n/l": "l OUT/secret"}},
		"magic link":                   {file: "FROM base\nCOPY l /n", ctx: map[string]string{"l@link": "/proc/self/root/OUT/secret"}, err: "is not in the build context"},
		"link of the image as source":  {file: "FROM scratch\nCOPY --from=base /etc/hostfile /n", err: "no such file"},
		"link of a stage as source":    {file: "FROM base AS a\nRUN ln -s OUT/secret /l && ln -s OUT /m\nFROM scratch\nCOPY --from=a /l /n", err: "no such file"},
		"directory link of a stage":    {file: "FROM base AS a\nRUN ln -s OUT /m\nFROM scratch\nCOPY --from=a /m/secret /n", err: "no such file"},
		"dots from a stage":            {file: "FROM scratch\nCOPY --from=base ../../../../..OUT/secret /n", err: "no such file"},
		"destination is a link out":    {file: "FROM base\nRUN ln -s OUT/new /n\nCOPY x /n", ctx: map[string]string{"x": "X"}, want: map[string]string{"n": "l OUT/new", "OUT/new": "f 644 0:0 X"}},
		"destination below a link out": {file: "FROM base\nRUN ln -s OUT /n\nCOPY x /n/y/", ctx: map[string]string{"x": "X"}, want: map[string]string{"OUT/y/x": "f 644 0:0 X"}},
		"destination dots":             {file: "FROM base\nCOPY x ../../../../OUT/new", ctx: map[string]string{"x": "X"}, want: map[string]string{"OUT/new": "f 644 0:0 X"}},
		"workdir is a link out":        {file: "FROM base\nRUN ln -s OUT /w\nWORKDIR /w/sub", want: map[string]string{"OUT/sub": "d 755 0:0"}},
		"passwd is a link out":         {file: "FROM base\nRUN rm /etc/passwd && ln -s OUT/passwd /etc/passwd\nCOPY --chown=evil x /n", ctx: map[string]string{"x": ""}, err: `unknown user "evil"`},
		"passwd is a fifo":             {file: "FROM base\nRUN rm /etc/passwd && busybox mkfifo /etc/passwd\nCOPY --chown=evil x /n", ctx: map[string]string{"x": ""}, err: "no regular file"},
		"ignore file is a link out":    {file: "FROM base\nCOPY x /n", ctx: map[string]string{"x": "X", ".dockerignore@link": "OUT/secret"}, want: map[string]string{"n": "f 644 0:0 X"}},
		"script dir is a link out":     {file: "FROM base\nRUN rm -rf /.naru-heredoc; ln -s OUT /.naru-heredoc", want: map[string]string{".naru-heredoc": "-"}},
		"mount point stub is a link":   {file: "FROM base\nRUN rm -r /sys; ln -s OUT /sys", want: map[string]string{"sys": "l OUT"}},
		"from scratch has nothing":     {file: "FROM scratch AS a\nFROM scratch\nCOPY --from=a /etc/passwd /n", err: "no such file"},
		"device file of the build":     {file: "FROM base AS a\nRUN busybox mknod /x b 259 0\nFROM scratch\nCOPY --from=a /x /n/", want: map[string]string{"n/x": "60000 644 0:0"}},
		"link loop":                    {file: "FROM base\nCOPY a /n", ctx: map[string]string{"a@link": "b", "b@link": "a"}, err: "too many levels"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			out := filepath.Join(w.dir, "outside")
			err := errors.Join(os.Mkdir(out, 0o755), os.WriteFile(filepath.Join(out, "secret"), []byte(secret), 0o644),
				os.WriteFile(filepath.Join(out, "passwd"), []byte("evil:x:66:66::/:\n"), 0o644))
			if err != nil {
				t.Fatal(err)
			}
			fill := func(s string) string { return strings.ReplaceAll(s, "OUT", out) }
			files := map[string]string{"Dockerfile": fill(c.file)}
			for k, v := range c.ctx {
				files[k] = fill(v)
			}
			img, log, err := w.build(Options{Context: w.context(files)})
			if list, _ := os.ReadDir(out); len(list) != 2 {
				t.Fatalf("outside there is %v", list)
			}
			if strings.Contains(log, secret) {
				t.Fatalf("the log has the secret:\n%s", log)
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), secret) {
					t.Fatalf("%v, want %q\n%s", err, c.err, log)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			for p, want := range c.want {
				if got := w.look(img, fill(p)); got != fill(want) {
					t.Errorf("%s: %q, want %q", p, got, fill(want))
				}
			}
		})
	}
}

func TestSpecialFilesInContext(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nCOPY d /n/\n", "d/f": "F"})
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Join(dir, "d")) // a socket's path is short
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "sock"}); err != nil {
		t.Fatal(err)
	}
	t.Chdir(here)
	img, _ := w.mustBuild(Options{Context: dir})
	if got := w.look(img, "n/sock"); got != "-" {
		t.Errorf("the socket is %s", got)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "d/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.build(Options{Context: dir}); err == nil || !strings.Contains(err.Error(), "Dockerfile:2: COPY: /d/pipe in the context is a fifo") {
		t.Error(err)
	}
}

// TestRootConfines is the floor under all of the above.
func TestRootConfines(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "in/file", "x")
	writeFile(t, dir, "out/file", "secret")
	writeFile(t, dir, "in/l@link", "../out")
	writeFile(t, dir, "in/abs@link", filepath.Join(dir, "out/file"))
	writeFile(t, dir, "in/d/up@link", "../../../file")
	r, err := openRoot(filepath.Join(dir, "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, p := range []string{"l/file", "../out/file", "abs", "d/../../out/file"} {
		if f, err := r.open(p); err == nil {
			f.Close()
			t.Errorf("%s was opened", p)
		}
		if f, err := r.create(p + "2"); err == nil && p != "abs" {
			f.Close()
			t.Errorf("%s2 was created", p)
		}
	}
	for in, want := range map[string]string{
		"/l": "out", "l/file": "out/file", "/abs": strings.TrimPrefix(dir, "/") + "/out/file", "d/up": "file",
		"../../x": "x", "file/y": "file/y", "": "", "/": "", "d/./up/..": "",
	} {
		if got, err := r.resolve(in); err != nil || got != want {
			t.Errorf("resolve %q: %q, %v; want %q", in, got, err, want)
		}
	}
	if err := r.mknod("w", unix.S_IFCHR, 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a whiteout was made: %v", err)
	}
	if err := r.removeAll("d"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "in/file")); err != nil {
		t.Error(err)
	}
}
