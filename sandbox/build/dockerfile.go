package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"naru/sandbox/build/words"
)

// dockerfile is a parsed Dockerfile.
type dockerfile struct {
	name   string // as given
	stages []instructions.Stage
	args   []instructions.ArgCommand // before the first FROM
	lex    *words.Lex                // for one goroutine
	text   []byte
	ignore *ignore
}

// SourceError is an error of some lines of the Dockerfile.
type SourceError struct {
	File string // as given in Options
	Line int    // the first of them
	// Excerpt shows them and those around them, with numbers, and what is wrong
	// underlined; empty when the error belongs to no line.
	Excerpt string
	Err     error
}

// Error is one line: file, line, reason.
func (e *SourceError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap returns the reason.
func (e *SourceError) Unwrap() error { return e.Err }

// at puts an error to a place, unless it has one.
func (d *dockerfile) at(loc []parser.Range, err error) error {
	placed, failed := (*SourceError)(nil), (*StepError)(nil)
	if err == nil || errors.As(err, &placed) {
		return err
	}
	if errors.As(err, &failed) {
		if failed.Excerpt == "" {
			failed.Excerpt = d.excerpt(loc, "")
		}
		return err
	}
	return &SourceError{d.name, lineOf(loc), d.excerpt(loc, err.Error()), err}
}

// Explain is what a person wants to see of a failed build besides its error:
// the last output of the command, the lines of the Dockerfile, a hint. Empty
// when there is nothing to add.
func Explain(err error) string {
	var text strings.Builder
	if errors.Is(err, context.Canceled) {
		return "" // nobody's fault
	}
	if failed, ok := errors.AsType[*StepError](err); ok {
		if len(failed.Tail) > 0 {
			fmt.Fprintf(&text, "------\n > %s:\n%s\n------\n", failed.Instruction, strings.Join(failed.Tail, "\n"))
		}
		text.WriteString(failed.Excerpt)
		if failed.Hint != "" {
			fmt.Fprintf(&text, "hint: %s\n", failed.Hint)
		}
	} else if placed, ok := errors.AsType[*SourceError](err); ok {
		text.WriteString(placed.Excerpt)
	}
	return text.String()
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
	d := &dockerfile{name: b.name(), ignore: ignored}
	if err := d.parse(data); err != nil {
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
func (b *session) readDockerfile() ([]byte, *ignore, error) {
	name := b.name()
	if b.detected != nil {
		return b.detected.text, b.detected.ignore, nil
	}
	if b.o.Text != nil {
		ignored, err := readIgnore(b.tree, ".dockerignore")
		return b.o.Text, ignored, err
	}
	if filepath.IsAbs(name) {
		if rel, err := filepath.Rel(b.o.Context, name); err == nil && filepath.IsLocal(rel) {
			name = rel
		}
	}
	if filepath.IsLocal(name) {
		data, err := b.tree.readFile(name)
		if errors.Is(err, fs.ErrNotExist) && filepath.Base(name) == defaultDockerfile {
			lower := filepath.Join(filepath.Dir(name), strings.ToLower(defaultDockerfile)) // moby/moby#10858
			if other, otherErr := b.tree.readFile(lower); otherErr == nil {
				data, name, err = other, lower, nil
			}
		}
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

func (d *dockerfile) parse(data []byte) error {
	d.text = data
	ast, err := parser.Parse(bytes.NewReader(data))
	if err != nil {
		return d.syntax(err)
	}
	d.lex = words.New(ast.EscapeToken)
	if d.stages, d.args, err = instructions.Parse(ast.AST, nil); err != nil {
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
	err = at.Unwrap()
	unknown := (*instructions.UnknownInstructionError)(nil)
	switch {
	case err.Error() == "no build stage in current context":
		err = errors.New("only ARG may come before the first FROM")
	case errors.As(err, &unknown):
		err = unknown // the parser suggests ENV for RNU
		if match := nearest(strings.ToLower(unknown.Instruction), slices.Sorted(maps.Keys(command.Commands))); match != "" {
			err = fmt.Errorf("%w (did you mean %s?)", err, strings.ToUpper(match))
		}
	}
	return d.at(at.Locations[0], err)
}

// near suggests a stage for a name that is none.
func (d *dockerfile) near(name string) string {
	var names []string
	for _, st := range d.stages {
		if st.Name != "" {
			names = append(names, st.Name)
		}
	}
	if match := nearest(strings.ToLower(name), names); match != "" {
		return fmt.Sprintf(" (did you mean the stage %s?)", match)
	}
	return ""
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
