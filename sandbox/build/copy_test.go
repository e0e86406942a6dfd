package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopyParents: what BuildKit's own tests and documentation say of --parents.
func TestCopyParents(t *testing.T) {
	ctx := map[string]string{
		"a/b/c/d/foo": "1", "a/b/c/d/e/bay": "2", "a/b2/c/d/e/bar": "3", "a/b/c2/d/e/baz": "4", "a/b/c2/d/e2/baz": "5", "top": "T", "a/l@link": "b",
	}
	copy := func(args string) string { return "FROM base\nCOPY --parents " + args + "\n" }
	runCases(t, []buildCase{
		{name: "file", file: copy("a/b/c/d/foo /o/"), ctx: ctx, want: map[string]string{
			"o": "d 755 0:0", "o/a/b/c/d/foo": "f 644 0:0 1", "o/a/b/c/d": "d 755 0:0", "o/a/b/c/d/e": "-", "o/a/b2": "-"}},
		{name: "without slash", file: copy("a/b/c/d/foo top /o"), ctx: ctx, want: map[string]string{"o/a/b/c/d/foo": "f 644 0:0 1", "o/top": "f 644 0:0 T"}},
		{name: "directory", file: copy("./a/b/c/d/. /o/"), ctx: ctx, want: map[string]string{"o/a/b/c/d/e/bay": "f 644 0:0 2", "o/a/b2": "-"}},
		{name: "pivot", file: copy("/a/b/./c/d /o/"), ctx: ctx, want: map[string]string{"o/c/d/foo": "f 644 0:0 1", "o/c/d/e/bay": "f 644 0:0 2", "o/a": "-", "o/c2": "-"}},
		{name: "two pivots", file: copy("a/./b/./c /o/"), ctx: ctx, want: map[string]string{"o/b/c/d/foo": "f 644 0:0 1", "o/c": "-"}},
		{name: "wildcard behind pivot", file: copy("a/./*/c /o/"), ctx: ctx, want: map[string]string{"o/b/c/d/e/bay": "f 644 0:0 2", "o/b2/c/d/e/bar": "f 644 0:0 3", "o/b/c2": "-", "o/l": "-"}},
		{name: "wildcard before pivot", file: copy("a/b*/./c/**/e /o/"), ctx: ctx, want: map[string]string{"o/c/d/e/bay": "f 644 0:0 2", "o/c/d/e/bar": "f 644 0:0 3", "o/c/d/foo": "-"}},
		{name: "two arguments", file: copy("a/b/c*/./d/**/baz a/b*/./c/**/bar /o/"), ctx: ctx, want: map[string]string{
			"o/d/e/baz": "f 644 0:0 4", "o/d/e2/baz": "f 644 0:0 5", "o/d/e/bay": "-", "o/c/d/e/bar": "f 644 0:0 3"}},
		{name: "double star", file: copy("**/ba? /o/"), ctx: ctx, want: map[string]string{"o/a/b/c/d/e/bay": "f 644 0:0 2", "o/a/b/c/d/foo": "-", "o/top": "-"}},
		{name: "everything", file: copy(". /o/"), ctx: ctx, want: map[string]string{"o/a/b/c/d/foo": "f 644 0:0 1", "o/a/l": "l b"}},
		{name: "link is not followed", file: copy("a/l/c/d/foo /o/"), ctx: ctx, err: `"/a/l/c/d/foo" is not in the build context`},
		{name: "missing", file: copy("a/b/c/d/fooo /o/"), ctx: ctx, err: `"/a/b/c/d/fooo" is not in the build context (did you mean "a/b/c/d/foo"?)`},
		{name: "missing wildcard", file: copy("a/b/./c9* /o/"), ctx: ctx, want: map[string]string{"o": "d 755 0:0", "o/c": "-"}},
		{name: "exclude", file: "FROM base\nCOPY --parents --exclude=**/e --exclude=a/b2 a /o/\n", ctx: ctx, want: map[string]string{
			"o/a/b/c/d/foo": "f 644 0:0 1", "o/a/b/c/d/e": "-", "o/a/b2": "-", "o/a/b/c2/d/e2/baz": "f 644 0:0 5"}},
		{name: "exception of exclude", file: "FROM base\nCOPY --exclude=b --exclude=!b/c/d/foo a /o/\n", ctx: ctx, want: map[string]string{
			"o/b/c/d/foo": "f 644 0:0 1", "o/b/c/d/e": "-", "o/b/c2": "-", "o/b2/c/d/e/bar": "f 644 0:0 3"}},
		{name: "owner and mode of what is on the way", file: "FROM base\nRUN mkdir -p /o/a && chmod 700 /o/a && chown 3:4 /o/a\nCOPY --parents --chown=7:8 --chmod=u=rwx,go= a/b/c/d/foo /o/\n", ctx: ctx,
			want: map[string]string{"o/a": "d 755 3:4", "o/a/b": "d 700 7:8", "o/a/b/c/d/foo": "f 700 7:8 1"}},
		{name: "of a stage", file: "FROM base AS s\nRUN mkdir -p /x/y && echo z >/x/y/z && chown 5:6 /x/y\nFROM scratch\nCOPY --from=s --parents /x/y/z /\n",
			want: map[string]string{"x/y": "d 755 5:6", "x/y/z": "f 644 0:0 z\n"}},
	})
}

// TestCopyCorners: what BuildKit does where its documentation is silent.
func TestCopyCorners(t *testing.T) {
	ctx := map[string]string{
		"a": "A", "b*": "B", "d/x": "X", "d/e/y*": "Y", "dd/x": "XX", "l@link": "d", "d/m@link": "nowhere",
		"hid/in/deep": "1", "hid/gone": "2", "Readme.md": "R", ".dockerignore": "hid\n!hid/in\n",
	}
	runCases(t, []buildCase{
		{name: "chmod symbolic", file: "FROM base\nCOPY --chmod=u=rwX,go=rX,g+s d /n/\nCOPY --chmod=+x a /m/a", ctx: ctx, want: map[string]string{
			"n": "d 755 0:0", "n/x": "f 2644 0:0 X", "n/e": "d 2755 0:0", "n/e/y": "f 2755 0:0 Y", "m": "d 755 0:0", "m/a": "f 755 0:0 A"}},
		{name: "chmod octal makes parents", file: "FROM base\nCOPY --chmod=2750 a /p/q/a", ctx: ctx, want: map[string]string{"p": "d 750 0:0", "p/q": "d 750 0:0", "p/q/a": "f 2750 0:0 A"}},
		{name: "chown of parents", file: "FROM base\nCOPY --chown=5:6 a /p/q/\nCOPY --chown=7 d /p/q", ctx: ctx, want: map[string]string{
			"p": "d 755 5:6", "p/q": "d 755 5:6", "p/q/e": "d 755 7:7", "p/q/m": "l nowhere"}},
		{name: "existing directories below take the source's looks", file: "FROM base\nRUN mkdir -p /n/e && chmod 700 /n /n/e && chown 3:4 /n /n/e\nCOPY d /n", ctx: ctx,
			want: map[string]string{"n": "d 700 3:4", "n/e": "d 755 0:0"}},
		{name: "link argument that is a directory", file: "FROM base\nCOPY l /n", ctx: ctx, want: map[string]string{"n/x": "f 644 0:0 X"}},
		{name: "path through a link", file: "FROM base\nCOPY l/e/y /n", ctx: ctx, want: map[string]string{"n": "f 755 0:0 Y"}},
		{name: "wildcard through a link", file: "FROM base\nCOPY l/[xe] /n/", ctx: ctx, want: map[string]string{"n/x": "f 644 0:0 X", "n/y": "f 755 0:0 Y"}},
		{name: "wildcard match that leads nowhere", file: "FROM base\nCOPY d/* /n/", ctx: ctx, err: `"d/m" is not in the build context`},
		{name: "double star is one star", file: "FROM base\nCOPY **/y /n/", ctx: ctx, want: map[string]string{"n": "-"}, log: `nothing matches "**/y"`},
		{name: "wildcard matches directories", file: "FROM base\nCOPY d* /n/", ctx: ctx, want: map[string]string{"n/x": "f 644 0:0 XX", "n/e/y": "f 755 0:0 Y"}},
		{name: "escaped wildcard", file: "FROM base\nCOPY [[]x] /n/", ctx: map[string]string{"[x]": "E", "x": "no"}, want: map[string]string{"n/[x]": "f 644 0:0 E", "n/x": "-"}},
		{name: "bad pattern", file: "FROM base\nCOPY a[ /n/", ctx: ctx, err: `syntax error in pattern`},
		{name: "wildcard in a missing directory", file: "FROM base\nCOPY nodir/* /n/", ctx: ctx, err: `"nodir" is not in the build context`},
		{name: "no file of an exclude argument", file: "FROM base\nCOPY --exclude=* a /n/", ctx: ctx, want: map[string]string{"n/a": "f 644 0:0 A"}},
		{name: "exception below an excluded directory", file: "FROM base\nCOPY . /n/", ctx: ctx, want: map[string]string{"n/hid/in/deep": "f 644 0:0 1", "n/hid/gone": "-"}},
		{name: "similar name", file: "FROM base\nCOPY README.md /n/", ctx: ctx, err: `"README.md" is not in the build context (did you mean "Readme.md"?)`},
		{name: "similar directory", file: "FROM base\nCOPY ddd/x /n/", ctx: ctx, err: `(did you mean "dd/x"?)`},
		{name: "what is hidden is not suggested", file: "FROM base\nCOPY hid/gona /n/", ctx: ctx, err: `excluded by .dockerignore line 1`},
		{name: "slash at a file", file: "FROM base\nCOPY a /n\nCOPY b /n/", ctx: ctx, err: "not a directory"},
		{name: "below a file", file: "FROM base\nCOPY a /n\nCOPY b /n/b", ctx: ctx, err: "not a directory"},
		{name: "file onto directory by name", file: "FROM base\nCOPY d /n/\nCOPY --from=base /owned /n/e/", ctx: ctx, want: map[string]string{"n/e/owned": "f 4755 7:8 owned"}},
		{name: "file over directory inside", file: "FROM base\nRUN mkdir -p /n/x\nCOPY d /n/", ctx: ctx, err: "cannot replace the directory /n/x by a file"},
		{name: "dangling link as destination", file: "FROM base\nRUN ln -s /new/place /n\nCOPY a /n", ctx: ctx, want: map[string]string{"n": "l /new/place", "new/place": "f 644 0:0 A"}},
		{name: "link to a directory inside is no directory", file: "FROM base\nRUN mkdir -p /n /k && ln -s /k /n/e\nCOPY d /n/", ctx: ctx, err: "cannot copy a directory to /n/e"},
		{name: "dot at the end", file: "FROM base\nCOPY a /n/.", ctx: ctx, want: map[string]string{"n/a": "f 644 0:0 A"}},
		{name: "quotes and spaces", file: "FROM base\nCOPY [\"a b\", \"/n o/\"]", ctx: map[string]string{"a b": "S"}, want: map[string]string{"n o/a b": "f 644 0:0 S"}},
		{name: "link with chmod follows links", file: "FROM base\nCOPY --link --chmod=600 a /lib/a", ctx: ctx, want: map[string]string{"lib": "l usr/lib", "usr/lib/a": "f 600 0:0 A"}},
		{name: "link takes the looks of its directories", file: "FROM base\nRUN mkdir -m 700 /n\nCOPY --link d /n/", ctx: ctx, want: map[string]string{"n": "d 755 0:0", "n/x": "f 644 0:0 X"}},
		{name: "heredoc modes", file: "FROM base\nCOPY --chmod=u+x --chown=5 <<one /n/one\nx\none\n", ctx: ctx, want: map[string]string{"n": "d 755 5:5", "n/one": "f 744 5:5 x\n"}},
		{name: "heredoc and file", file: "FROM base\nCOPY a <<-two /n/\n\tx\ntwo\n", ctx: ctx, want: map[string]string{"n/a": "f 644 0:0 A", "n/two": "f 644 0:0 x\n"}},
	})
}

// TestLinksAndHoles: names of one file stay names of one file, and holes stay
// holes.
func TestLinksAndHoles(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nCOPY d /n/\nFROM scratch\nCOPY --from=0 /n /m/\n", "d/one": "1", "d/s/": ""})
	must(t, os.Link(filepath.Join(dir, "d/one"), filepath.Join(dir, "d/s/two")))
	const size = 64 << 20
	f, err := os.Create(filepath.Join(dir, "d/sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("end"), size-3)
	must(t, err)
	_, err = f.WriteAt([]byte("middle"), size/2)
	must(t, err)
	must(t, f.Close())
	img, _ := w.mustBuild(Options{Context: dir})
	lower, err := w.store.Lower(img)
	must(t, err)
	var one, two, sparse unix.Stat_t
	top := lower[len(lower)-1]
	must(t, unix.Lstat(filepath.Join(top, "m/one"), &one))
	must(t, unix.Lstat(filepath.Join(top, "m/s/two"), &two))
	must(t, unix.Lstat(filepath.Join(top, "m/sparse"), &sparse))
	if one.Ino != two.Ino || one.Nlink != 2 {
		t.Errorf("inodes %d and %d, %d links", one.Ino, two.Ino, one.Nlink)
	}
	if sparse.Size != size || sparse.Blocks*512 > 1<<20 {
		t.Errorf("sparse file of %d bytes has %d on disk", sparse.Size, sparse.Blocks*512)
	}
	got, err := os.ReadFile(filepath.Join(top, "m/sparse"))
	must(t, err)
	if string(got[size/2:size/2+6]) != "middle" || string(got[size-3:]) != "end" || strings.Trim(string(got[:size/2]), "\x00") != "" {
		t.Error("the sparse file has another content")
	}
}

// TestXattrsOfContext: as in BuildKit, security.capability goes into the image,
// and nothing else: user.* attributes are of the machine the context lies on.
func TestXattrsOfContext(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nCOPY d /n/\n", "d/ping*": "P"})
	raw := []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00") // cap_net_raw=ep
	must(t, unix.Setxattr(filepath.Join(dir, "d/ping"), capsName, raw, 0))
	must(t, unix.Setxattr(filepath.Join(dir, "d/ping"), "user.origin", []byte("here"), 0))
	attrs := func() (caps, user string) {
		img, _ := w.mustBuild(Options{Context: dir})
		lower, err := w.store.Lower(img)
		must(t, err)
		name, buf := filepath.Join(lower[len(lower)-1], "n/ping"), make([]byte, 64)
		if n, err := unix.Getxattr(name, capsName, buf); err == nil {
			caps = string(buf[:n])
		}
		if n, err := unix.Getxattr(name, "user.origin", buf); err == nil {
			user = string(buf[:n])
		}
		return caps, user
	}
	if caps, user := attrs(); caps != string(raw) || user != "" {
		t.Errorf("capabilities %x, user.origin %q", caps, user)
	}
	must(t, unix.Removexattr(filepath.Join(dir, "d/ping"), capsName))
	if caps, _ := attrs(); caps != "" {
		t.Errorf("a cached layer with capabilities %x", caps)
	}
}
