package detect

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/rogpeppe/go-internal/txtar"

	"naru/sandbox/build/lint"
)

var update = flag.Bool("update", false, "write what Detect says into testdata")

// golden is the name of the expected Dockerfile in a case.
const golden = "want/Dockerfile"

// TestDetect compares with the Dockerfiles in testdata: a new version of a base
// image changes them all, and shows there. Write them with -update.
func TestDetect(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) < 20 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, tree := "", fstest.MapFS{}
			input := a.Files[:0:0]
			for _, f := range a.Files {
				if f.Name == golden {
					want = string(f.Data)
					continue
				}
				input = append(input, f)
				tree[f.Name] = &fstest.MapFile{Data: f.Data, Mode: 0o644}
			}
			p, err := Detect(tree)
			if err != nil {
				t.Fatal(err)
			}
			sound(t, p)
			if p.Dockerfile == want {
				return
			}
			if !*update {
				t.Fatalf("got\n%s\nwant\n%s", p.Dockerfile, want)
			}
			a.Files = append(input, txtar.File{Name: golden, Data: []byte(p.Dockerfile)})
			if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// sound checks what all generated Dockerfiles promise: they parse, no rule of
// BuildKit's finds anything, bases are pinned, nobody is root.
func sound(t *testing.T, p *Plan) {
	t.Helper()
	ast, err := parser.Parse(strings.NewReader(p.Dockerfile))
	if err != nil {
		t.Fatal(err)
	}
	stages, _, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		t.Fatal(err)
	}
	everything := "experimental=all"
	found, _, err := lint.Check([]byte(p.Dockerfile), lint.Options{
		All: true, Config: &everything, Platform: []string{"BUILDPLATFORM=linux/amd64", "TARGETPLATFORM=linux/amd64", "TARGETOS=linux", "TARGETARCH=amd64"},
		Base: func(string) (lint.Base, bool) { return lint.Base{}, true },
	})
	if err != nil || len(found) > 0 {
		t.Errorf("lint: %+v, %v\n%s", found, err, p.Dockerfile)
	}
	for _, st := range stages {
		if !regexp.MustCompile(`:[\w.-]+$`).MatchString(st.BaseName) || strings.HasSuffix(st.BaseName, ":latest") {
			t.Errorf("%s is not pinned", st.BaseName)
		}
	}
	user, port := "", false
	for _, cmd := range stages[len(stages)-1].Commands {
		switch cmd := cmd.(type) {
		case *instructions.UserCommand:
			user = cmd.User
		case *instructions.ExposeCommand:
			port = true
		}
	}
	if user == "" || strings.HasPrefix(user, "0") || strings.HasPrefix(user, "root") || !port || p.Port == 0 {
		t.Errorf("user %q, port %d", user, p.Port)
	}
	if len(p.Reasons) == 0 || p.Kind == "" || !strings.Contains(p.Ignore, "**/.env\n") {
		t.Errorf("%+v", p)
	}
}

// TestUnclear: what is not clear is said.
func TestUnclear(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"nothing":        {nil, "no Dockerfile, and nothing that"},
		"readme":         {map[string]string{"README.md": "x"}, "no Dockerfile, and nothing that"},
		"library":        {map[string]string{"go.mod": "module x", "x.go": "package x"}, "no package main"},
		"package only":   {map[string]string{"package.json": "{}"}, "nothing says how to start"},
		"broken package": {map[string]string{"package.json": "{"}, "package.json: unexpected end"},
		"broken toml":    {map[string]string{"pyproject.toml": "[x"}, "pyproject.toml: "},
		"python library": {map[string]string{"setup.py": "", "x/y.py": ""}, "nothing says how to start"},
		"django no wsgi": {map[string]string{"manage.py": ""}, "no wsgi.py"},
	} {
		tree := fstest.MapFS{}
		for file, text := range c.files {
			tree[file] = &fstest.MapFile{Data: []byte(text)}
		}
		if _, err := Detect(tree); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Detect(fstest.MapFS{}); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func TestRanges(t *testing.T) {
	for _, c := range [][3]string{
		{"24", ">=18", "true"}, {"24", "20.x", "false"}, {"20", "20.x", "true"}, {"18", "^18.17.0 || >=20", "true"}, {"18", "^20", "false"}, {"20", ">=18 <21", "true"}, {"22", ">=18 <21", "false"},
		{"22", "18 - 20", "false"}, {"20", "18 - 20", "true"}, {"24", "*", "true"}, {"24", "", "false"}, {"22", "v22", "true"}, {"22", "22.11.0", "false"}, {"20", "~20.11", "false"},
		{"3.12", ">=3.10,<3.13", "true"}, {"3.13", ">=3.10,<3.13", "false"}, {"3.13", "^3.10", "true"}, {"3.12", "~=3.11", "true"}, {"3.12", "~=3.11.2", "false"}, {"3.11", "==3.11.*", "true"}, {"3.12", "==3.11.*", "false"},
		{"3.9", "!=3.9.*,>=3.8", "false"}, {"3.10", "~3.10", "true"}, {"3.11", "~3.10", "false"}, {"3.12", "> 3.11", "true"}, {"3.11", ">3.11", "false"},
	} {
		if got := satisfies(c[0], c[1]); got != (c[2] == "true") {
			t.Errorf("%s in %q: %t", c[0], c[1], got)
		}
	}
	for _, c := range [][2]string{{">=18", "24"}, {"20.x", "20"}, {"22.11.0", "22.11.0"}, {"", "24"}, {"nonsense", "24"}, {">=99", "99"}} {
		if got := choose(nodeVersions, c[0], 3); got != c[1] {
			t.Errorf("%q: %s, want %s", c[0], got, c[1])
		}
	}
}

func TestCommands(t *testing.T) {
	for in, want := range map[string]string{
		"node a.js": `["node", "a.js"]`, "node a.js --port $PORT": `["sh", "-c", "exec node a.js --port $PORT"]`, "a && b": `["sh", "-c", "a && b"]`,
		"X=1 node a": `["sh", "-c", "exec X=1 node a"]`, `echo "<b>"`: `["sh", "-c", "exec echo \"<b>\""]`,
	} {
		if got, err := commandJSON(started(in)); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
	}
}

// TestHostileTree: links do not lead out, sizes are bounded, and what a tree
// says stays in a comment.
func TestHostileTree(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(dir, "Procfile")), os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"scripts": {"start": "evil\nRUN rm -rf /", "build": "x\nRUN y"}}`), 0o644)); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p, err := Detect(root.FS())
	if err != nil {
		t.Fatal(err)
	}
	sound(t, p)
	if strings.Contains(p.Dockerfile, "root:") || regexp.MustCompile(`(?m)^RUN (rm|y)`).MatchString(p.Dockerfile) {
		t.Error(p.Dockerfile)
	}
	big := fstest.MapFS{"go.mod": {Data: []byte("module x\n")}}
	for i := range 3 * maxEntries {
		big["d"+strings.Repeat("x", i%50)+"/"+strings.Repeat("y", i/50)+".go"] = &fstest.MapFile{}
	}
	big["index.html"] = &fstest.MapFile{Data: bytes.Repeat([]byte("x"), 2*maxFile)}
	if n := len(tree{big}.walk(".go", 4)); n > maxEntries {
		t.Errorf("walked %d", n)
	}
	if n := len(tree{big}.read("index.html")); n != maxFile {
		t.Errorf("read %d", n)
	}
	var _ fs.FS = big
}
