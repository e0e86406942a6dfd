// Package detect writes a Dockerfile for a source tree that has none: for Go,
// Node.js, Python, Java and static sites. What it writes is what a careful
// person would: several stages, dependencies before sources, cache mounts, base
// images pinned by tag (versions.go), a user that is not root, a port.
//
// Detect looks at names and a few small files, decides, and fills the template
// of that kind (templates/). It says why, so that a person can disagree: the
// text is meant to be read, saved and changed. It runs nothing and trusts
// nothing: the tree belongs to whoever pushes, and its fs.FS must not follow
// links out of it (os.Root.FS does not).
package detect

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"text/template"
)

// Plan is how to build a tree.
type Plan struct {
	Kind       string   `json:"kind"`       // "Go", "Node.js", "Python", "Java" or "static site"
	Reasons    []string `json:"reasons"`    // what was seen, and what follows from it
	Dockerfile string   `json:"dockerfile"` // the whole text
	Ignore     string   `json:"ignore"`     // a .dockerignore, for a tree that has none
	Port       int      `json:"port"`       // what the program listens on; 0: none is known
}

// ErrUnknown says that nothing is known of such a tree.
var ErrUnknown = errors.New("no Dockerfile, and nothing that a Dockerfile can be made from: no go.mod, package.json, pom.xml, build.gradle, requirements.txt, pyproject.toml, Pipfile, manage.py or index.html")

// Detect decides how to build a tree. A tree that is almost clear, such as a
// package.json that says not how to start, is an error that says what is missing.
func Detect(files fs.FS) (*Plan, error) {
	t := tree{files}
	for _, kind := range []func(tree) (*Plan, error){golang, java, python, hugo, node, static} {
		p, err := kind(t)
		if err != nil {
			return nil, err
		}
		if p != nil {
			p.Ignore = ignore
			return p, nil
		}
	}
	return nil, ErrUnknown
}

// ignore keeps out of the context what no build wants, and secrets above all.
const ignore = `.git
.gitignore
.github
.dockerignore
Dockerfile
**/.DS_Store
**/.env
**/.env.local
**/.env.*.local
**/node_modules
**/__pycache__
**/*.pyc
.venv
venv
.pytest_cache
.gradle
.idea
.vscode
.next
`

//go:embed templates
var templates embed.FS

// fill writes a plan's Dockerfile from the template of a name. data has the
// plan in it for the head of the text.
func (p *Plan) fill(name string, data any) (*Plan, error) {
	funcs := template.FuncMap{"json": commandJSON, "join": strings.Join}
	t, err := template.New(name).Funcs(funcs).ParseFS(templates, "templates/*.tmpl")
	if err != nil {
		return nil, fmt.Errorf("detect: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# syntax=docker/dockerfile:1\n# Written by naru for a tree without a Dockerfile: %s.\n", p.Kind)
	for _, r := range p.Reasons {
		fmt.Fprintf(&b, "#  - %s\n", r)
	}
	b.WriteString("#\n") // so that none of this describes the first stage
	if err := t.ExecuteTemplate(&b, name, data); err != nil {
		return nil, fmt.Errorf("detect: %w", err)
	}
	p.Dockerfile = b.String()
	return p, nil
}

func (p *Plan) because(format string, args ...any) {
	p.Reasons = append(p.Reasons, oneLine(fmt.Sprintf(format, args...)))
}

// oneLine keeps a reason, which may quote a file of the tree, in its line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// commandJSON is the exec form of a command.
func commandJSON(args []string) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(args); err != nil {
		return "", err
	}
	return strings.ReplaceAll(strings.TrimSpace(b.String()), `","`, `", "`), nil
}

// tree is what is looked at.
type tree struct{ fs.FS }

// maxFile bounds what is read of a file; maxEntries what is walked of a tree.
const (
	maxFile    = 1 << 20
	maxEntries = 5000
)

// has tells whether a regular file is there.
func (t tree) has(name string) bool {
	info, err := fs.Stat(t.FS, name)
	return err == nil && info.Mode().IsRegular()
}

func (t tree) hasDir(name string) bool {
	info, err := fs.Stat(t.FS, name)
	return err == nil && info.IsDir()
}

// first is the first of these files that is there; "" if none is.
func (t tree) first(names ...string) string {
	for _, name := range names {
		if t.has(name) {
			return name
		}
	}
	return ""
}

// read returns the begin of a file, "" if there is none.
func (t tree) read(name string) string {
	if !t.has(name) {
		return ""
	}
	f, err := t.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close() // read only: nothing can be lost
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(string(data), "\ufeff")
}

// plainName is a path that can stand in a Dockerfile as it is.
var plainName = regexp.MustCompile(`^[\w@+][\w.@+/-]*$`)

// skipped are directories that hold no source of the tree's own.
var skipped = []string{"node_modules", "vendor", "testdata", "test", "tests", "venv", "env", "dist", "build", "target", "examples", "docs"}

// walk lists the files with a suffix, at most depth directories down, shallow
// ones first and then by name. Names that would need quoting are left out.
func (t tree) walk(suffix string, depth int) []string {
	var found []string
	seen := 0
	err := fs.WalkDir(t.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if seen++; err != nil || seen > maxEntries {
			return fs.SkipDir
		}
		name := d.Name()
		if d.IsDir() && p != "." && (strings.HasPrefix(name, ".") || slices.Contains(skipped, name) || strings.Count(p, "/") >= depth) {
			return fs.SkipDir
		}
		if d.Type().IsRegular() && strings.HasSuffix(name, suffix) && plainName.MatchString(p) {
			found = append(found, p)
		}
		return nil
	})
	if err != nil {
		return nil
	}
	slices.SortStableFunc(found, func(a, b string) int { return strings.Count(a, "/") - strings.Count(b, "/") })
	return found
}

// procfile is the command of the process web of a Procfile, "" without one.
func (t tree) procfile() string {
	for line := range strings.Lines(t.read("Procfile")) {
		if command, ok := strings.CutPrefix(line, "web:"); ok {
			return strings.TrimSpace(command)
		}
	}
	return ""
}

// words is a command that needs no shell, as arguments; nil if it needs one.
func words(command string) []string {
	if command == "" || strings.ContainsAny(command, "$&|;<>()`\\\"'*?[]{}~#!\n=") {
		return nil
	}
	return strings.Fields(command)
}

// started is the command that starts a program by a line of a shell: the shell
// is gone when it runs, so that signals reach it.
func started(line string) []string {
	if args := words(line); args != nil {
		return args
	}
	if strings.ContainsAny(line, "&|;") {
		return []string{"sh", "-c", line}
	}
	return []string{"sh", "-c", "exec " + line}
}
