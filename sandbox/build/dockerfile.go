package build

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// dockerfile is a parsed Dockerfile.
type dockerfile struct {
	name   string // as given
	stages []instructions.Stage
	args   []instructions.ArgCommand // before the first FROM
	lex    *shell.Lex                // for one goroutine
	escape rune
	text   []byte
	ignore *ignore
}

// lineError says which line of which file an error belongs to.
type lineError struct {
	file string
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("%s:%d: %v", e.file, e.line, e.err) }
func (e *lineError) Unwrap() error { return e.err }

// at puts an error to a place, unless it has one.
func (d *dockerfile) at(loc []parser.Range, err error) error {
	placed, failed := (*lineError)(nil), (*StepError)(nil)
	if err == nil || errors.As(err, &placed) || errors.As(err, &failed) {
		return err
	}
	return &lineError{d.name, lineOf(loc), err}
}

func lineOf(loc []parser.Range) int {
	if len(loc) == 0 {
		return 0
	}
	return loc[0].Start.Line
}

// load reads and parses the Dockerfile and its ignore file.
func (b *build) load() error {
	data, ignored, err := b.readDockerfile()
	if err != nil {
		return fmt.Errorf("read %s: %w", b.name(), err)
	}
	d := &dockerfile{name: b.name(), ignore: ignored, text: data}
	if err := d.parse(data, b.out.warn); err != nil {
		return err
	}
	b.file = d
	if b.globals, err = b.globalArgs(); err != nil {
		return err
	}
	return b.readEpoch()
}

// readDockerfile reads a file of the context through the context's root, and
// another one, which only a trusted caller can name, from where it is.
func (b *build) readDockerfile() ([]byte, *ignore, error) {
	name := b.name()
	if filepath.IsAbs(name) {
		if rel, err := filepath.Rel(b.o.Context, name); err == nil && filepath.IsLocal(rel) {
			name = rel
		}
	}
	if filepath.IsLocal(name) {
		data, err := b.tree.readFile(name)
		if err != nil {
			return nil, nil, err
		}
		ignored, err := readIgnore(b.tree, name+".dockerignore", ".dockerignore")
		return data, ignored, err
	}
	if !filepath.IsAbs(name) {
		return nil, nil, errors.New("is outside of the build context; such a path must be absolute")
	}
	dir, err := openRoot(filepath.Dir(name))
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	data, err := dir.readFile(filepath.Base(name))
	if err != nil {
		return nil, nil, err
	}
	ignored, err := readIgnore(dir, filepath.Base(name)+".dockerignore")
	if err == nil && ignored == nil {
		ignored, err = readIgnore(b.tree, ".dockerignore")
	}
	return data, ignored, err
}

func (d *dockerfile) parse(data []byte, warn func(string)) error {
	ast, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return d.syntax(err)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, msg string, loc []parser.Range) {
		warn(fmt.Sprintf("%s:%d: %s: %s", d.name, lineOf(loc), rule, msg))
	}})
	d.escape = ast.EscapeToken
	d.lex = shell.NewLex(d.escape)
	if d.stages, d.args, err = instructions.Parse(ast.AST, lint); err != nil {
		return d.syntax(err)
	}
	if len(d.stages) == 0 {
		return fmt.Errorf("%s has no FROM", d.name)
	}
	return nil
}

// syntax gives an error of the parser our form.
func (d *dockerfile) syntax(err error) error {
	var at *parser.LocationError
	if !errors.As(err, &at) || len(at.Locations) == 0 {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return d.at(at.Locations[0], at.Unwrap())
}

// readEpoch reads SOURCE_DATE_EPOCH (reproducible-builds.org).
func (b *build) readEpoch() error {
	const name = "SOURCE_DATE_EPOCH"
	value, ok := b.o.Args[name]
	if ok {
		b.takenArgs.add(name)
	} else if value, ok = b.globals.Get(name); !ok {
		return nil
	}
	if value == "" {
		return nil
	}
	sec, err := strconv.ParseInt(value, 10, 64)
	if err != nil || sec < 0 {
		return fmt.Errorf("%s: %s %q is no number of seconds", b.name(), name, value)
	}
	at := time.Unix(sec, 0).UTC()
	b.epoch = &at
	return nil
}
