// Package lint finds what is legal in a Dockerfile and probably not meant. The
// rules, their names and their words are BuildKit's (frontend/dockerfile/linter);
// BuildKit raises most of them while it converts a Dockerfile, and this package
// goes through one in the same order without building anything.
//
// One check: the text is parsed into commands of its own, so that words can be
// expanded in place; the rules that need the text alone run over it (rules.go);
// then each stage is walked with the variables that its base image, its ARGs and
// its ENVs would give it (stage.go). What the check says is configured by
// "# check=skip=Rule,...;error=true" in the text, above one instruction for that
// one, or by the caller.
package lint

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"

	"naru/sandbox/build/words"
)

// Finding is one thing that was found.
type Finding struct {
	Rule        string // such as UndefinedVar
	Description string // of the rule
	URL         string // more about it; may be empty
	Text        string // what it says here
	Lines       []parser.Range
}

// Base is what the rules look at of a base image.
type Base struct {
	Env, Shell, OnBuild []string
	Platform            string // os/architecture[/variant]; empty: not known
}

// Options say how to check.
type Options struct {
	// Config replaces "# check=" of the text (BUILDKIT_DOCKERFILE_CHECK); nil: does not.
	Config *string
	// Target is the stage whose needs are checked; empty: the last one. All
	// checks every stage.
	Target string
	All    bool
	// Args are the build arguments; Platform the predefined ones, KEY=value.
	Args     map[string]string
	Platform []string
	// Base describes an image; false: nobody knows it, and then the variables of
	// its stages are not checked.
	Base func(ref string) (Base, bool)
	// Valid tells whether an image can have this name. Nil: all are.
	Valid func(ref string) error
	// Ignored is .dockerignore; nil: nothing is.
	Ignored *patternmatcher.PatternMatcher
}

// Check returns what it found, by line. The error is the text's: what comes
// after it was not looked at. failed is not nil when something was found and
// the text or Config asks for an error then.
func Check(text []byte, o Options) (found []Finding, failed, err error) {
	c := &checker{Options: o}
	if c.lint, err = newLinter(text, o.Config, &found); err != nil {
		return nil, nil, err
	}
	err = c.check(text)
	slices.SortStableFunc(found, func(a, b Finding) int { return cmp.Compare(line(a.Lines), line(b.Lines)) })
	if c.lint.Error() != nil {
		var rules []string
		for _, f := range found {
			rules = append(rules, f.Rule)
		}
		slices.Sort(rules)
		failed = fmt.Errorf("lint violation found for rules: %s", strings.Join(slices.Compact(rules), ", "))
	}
	return found, failed, err
}

func line(lines []parser.Range) int {
	if len(lines) == 0 {
		return 0
	}
	return lines[0].Start.Line
}

func newLinter(text []byte, config *string, found *[]Finding) (*linter.Linter, error) {
	where, value := "BUILDKIT_DOCKERFILE_CHECK", ""
	if config != nil {
		value = *config
	} else {
		where = "# check"
		value, _, _, _ = parser.ParseDirective("check", text)
	}
	cfg, err := linter.ParseLintOptions(value)
	if err != nil {
		return nil, fmt.Errorf("%s=%s: %w", where, value, err)
	}
	seen := map[string]bool{}
	cfg.Warn = func(rule, description, url, text string, lines []parser.Range) {
		// A stage that others are FROM, or a word that stands twice in an
		// instruction, is not worth saying twice.
		if id := fmt.Sprint(rule, "\x00", text, "\x00", lines); !seen[id] {
			seen[id] = true
			*found = append(*found, Finding{rule, description, url, text, lines})
		}
	}
	return linter.New(cfg), nil
}

// checker is one check.
type checker struct {
	Options
	lint    *linter.Linter
	lex     *words.Lex
	stages  []*stage
	globals env             // the platform's and the ARGs before the first FROM
	known   map[string]bool // their names, with and without value
}

func (c *checker) check(text []byte) error {
	ast, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return err
	}
	for _, w := range ast.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL {
			c.lint.Run(&linter.RuleNoEmptyContinuation, []parser.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	stages, args, err := instructions.Parse(ast.AST, c.lint)
	if err != nil {
		return err
	}
	c.lex = words.New(ast.EscapeToken)
	stageNames(stages, c.lint)
	casing(stages, c.lint)
	c.defaultNames(stages, args)
	if c.globals, err = c.metaArgs(args, c.Args); err != nil {
		return err
	}
	if err := c.begin(stages); err != nil {
		return err
	}
	for _, st := range c.needed() {
		if err := c.walk(st); err != nil {
			return err
		}
	}
	return nil
}

// metaArgs are the variables of FROM, with build arguments or without.
func (c *checker) metaArgs(args []instructions.ArgCommand, given map[string]string) (env, error) {
	vars := env{}
	for _, kv := range c.Platform {
		vars.add(kv)
	}
	c.known = map[string]bool{}
	for _, cmd := range args {
		for _, a := range cmd.Args {
			c.known[a.Key] = true
			value, ok := given[a.Key]
			if !ok && a.Value != nil {
				var err error
				if value, _, err = c.lex.ProcessWord(*a.Value, vars); err != nil {
					return vars, parser.WithLocation(err, cmd.Location())
				}
				ok = true
			}
			if ok {
				vars.set(a.Key, value)
			}
		}
	}
	for _, name := range vars.Keys() {
		c.known[name] = true
	}
	return vars, nil
}
