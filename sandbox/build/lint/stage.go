package lint

import (
	"errors"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/util/suggest"

	"naru/sandbox/build/words"
)

// stage is a FROM and what its instructions have come to.
type stage struct {
	*instructions.Stage
	base  string // expanded
	from  *stage // the earlier stage that base is
	image Base

	env      env
	unknown  bool            // so are the variables of the base
	declared map[string]bool // ARGs, with and without value
	shell    bool            // SHELL was given
	workdir  bool            // WORKDIR was given
	triggers []string        // ONBUILD

	cmd, entrypoint, healthcheck instructions.Command // the last ones
}

// begin expands every FROM.
func (c *checker) begin(stages []instructions.Stage) error {
	for i := range stages {
		st := &stage{Stage: &stages[i]}
		lint := c.lint.WithMergedConfigFromComments(st.Comments)
		res, err := c.lex.ProcessWordWithMatches(st.BaseName, c.globals)
		c.undeclared(res.Unmatched, st.Location, lint)
		if err == nil && res.Result == "" {
			err = errors.New("base name (" + st.BaseName + ") should not be blank")
		}
		if err != nil {
			return parser.WithLocation(err, st.Location)
		}
		st.base = res.Result
		st.from = c.named(st.base)
		c.stages = append(c.stages, st)
		if st.Platform == "" {
			continue
		}
		if res, err = c.lex.ProcessWordWithMatches(st.Platform, c.globals); err != nil {
			return parser.WithLocation(err, st.Location)
		}
		c.undeclared(res.Unmatched, st.Location, lint)
		c.fromPlatform(st.Stage, res, lint)
	}
	return nil
}

// named finds the latest stage of a name.
func (c *checker) named(name string) *stage {
	for _, st := range slices.Backward(c.stages) {
		if st.Name != "" && strings.EqualFold(st.Name, name) {
			return st
		}
	}
	return nil
}

// needed are the stages to walk, in order.
func (c *checker) needed() []*stage {
	if c.All || len(c.stages) == 0 {
		return c.stages
	}
	target := c.stages[len(c.stages)-1]
	if c.Target != "" {
		if target = c.find(c.Target); target == nil {
			return nil // an error of the plan's
		}
	}
	need := map[*stage]bool{}
	c.reach(target, need)
	return slices.DeleteFunc(slices.Clone(c.stages), func(st *stage) bool { return !need[st] })
}

func (c *checker) find(name string) *stage {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n < len(c.stages) {
		return c.stages[n]
	}
	return c.named(name)
}

func (c *checker) reach(st *stage, need map[*stage]bool) {
	if st == nil || need[st] {
		return
	}
	need[st] = true
	c.reach(st.from, need)
	for _, cmd := range st.Commands {
		switch cmd := cmd.(type) {
		case *instructions.CopyCommand:
			c.reach(c.find(cmd.From), need)
		case *instructions.RunCommand:
			for _, m := range instructions.GetMounts(cmd) {
				c.reach(c.find(m.From), need)
			}
		}
	}
}

// walk goes through a stage as a build would.
func (c *checker) walk(st *stage) error {
	triggers := c.inherit(st)
	var commands []instructions.Command
	for _, t := range triggers {
		ast, err := parser.Parse(strings.NewReader(t))
		if err != nil || len(ast.AST.Children) != 1 {
			continue // an error of the build's
		}
		if cmd, err := instructions.ParseCommand(ast.AST.Children[0]); err == nil {
			commands = append(commands, trigger{cmd, st.Location})
		}
	}
	for _, cmd := range append(commands, st.Commands...) {
		if err := c.command(st, cmd); err != nil {
			if st.unknown {
				return nil // ${VAR:?} of a variable that the base may have
			}
			return parser.WithLocation(err, cmd.Location())
		}
	}
	return nil
}

// trigger is an instruction of an ONBUILD, shown at the FROM that sets it off.
type trigger struct {
	instructions.Command
	lines []parser.Range
}

func (t trigger) Location() []parser.Range { return t.lines }

// inherit takes over what the base gives, and returns its ONBUILD.
func (c *checker) inherit(st *stage) (triggers []string) {
	st.env, st.declared = env{}, map[string]bool{}
	switch {
	case st.from != nil:
		if st.from.env == nil { // not walked: its target needs nothing of it
			st.unknown = true
			return nil
		}
		st.env, st.declared = maps.Clone(st.from.env), maps.Clone(st.from.declared)
		st.unknown, st.shell, st.workdir = st.from.unknown, st.from.shell, st.from.workdir
		return st.from.triggers
	case st.base != scratch:
		known := false
		if c.Base != nil {
			st.image, known = c.Base(st.base)
		}
		st.unknown = !known
		for _, kv := range st.image.Env {
			st.env.add(kv)
		}
		st.shell = len(st.image.Shell) > 0
		if want := c.globals["TARGETPLATFORM"]; known && st.Platform == "" && st.image.Platform != "" && want != "" && !samePlatform(st.image.Platform, want) {
			c.lint.Run(&linter.RuleInvalidBaseImagePlatform, st.Location, linter.RuleInvalidBaseImagePlatform.Format(st.base, want, st.image.Platform))
		}
	}
	if _, ok := st.env["PATH"]; !ok {
		st.env.set("PATH", "")
	}
	return st.image.OnBuild
}

// samePlatform compares os and architecture.
func samePlatform(a, b string) bool {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	return slices.Equal(x[:min(2, len(x))], y[:min(2, len(y))])
}

func (c *checker) command(st *stage, cmd instructions.Command) error {
	lint := c.lint.WithMergedConfigFromComments(cmd.Comments())
	lines := cmd.Location()
	if t, ok := cmd.(trigger); ok {
		cmd = t.Command
	}
	if err := c.expand(st, cmd, lines, lint); err != nil {
		return err
	}
	switch cmd := cmd.(type) {
	case *instructions.EnvCommand:
		legacy(cmd.Name(), cmd.Env, lines, lint)
		for _, kv := range cmd.Env {
			secret("ENV", kv.Key, lines, lint)
			st.env.set(kv.Key, kv.Value)
		}
	case *instructions.ArgCommand:
		return c.arg(st, cmd, lines, lint)
	case *instructions.LabelCommand:
		legacy(cmd.Name(), cmd.Labels, lines, lint)
	case *instructions.WorkdirCommand:
		if !st.workdir && !path.IsAbs(cmd.Path) {
			lint.Run(&linter.RuleWorkdirRelativePath, lines, linter.RuleWorkdirRelativePath.Format(cmd.Path))
		}
		st.workdir = true
	case *instructions.CmdCommand:
		once(cmd, &st.cmd, lint)
		st.execForm(cmd.Name(), cmd.ShellDependantCmdLine, lines, lint)
	case *instructions.EntrypointCommand:
		once(cmd, &st.entrypoint, lint)
		st.execForm(cmd.Name(), cmd.ShellDependantCmdLine, lines, lint)
	case *instructions.HealthCheckCommand:
		once(cmd, &st.healthcheck, lint)
	case *instructions.ShellCommand:
		st.shell = len(cmd.Shell) > 0
	case *instructions.OnbuildCommand:
		st.triggers = append(st.triggers, cmd.Expression)
	case *instructions.ExposeCommand:
		for _, w := range cmd.Ports {
			words, err := c.lex.ProcessWords(w, st.env)
			if err != nil {
				return err
			}
			ports(words, lines, lint)
		}
	case *instructions.CopyCommand:
		if cmd.From == "" {
			c.ignored("Copy", cmd.SourcePaths, lines, lint)
		}
	case *instructions.AddCommand:
		c.ignored("Add", cmd.SourcePaths, lines, lint)
	}
	return nil
}

// execForm wants the exec form of a program that has to get signals.
func (st *stage) execForm(name string, line instructions.ShellDependantCmdLine, lines []parser.Range, lint *linter.Linter) {
	if line.PrependShell && !st.shell {
		lint.Run(&linter.RuleJSONArgsRecommended, lines, linter.RuleJSONArgsRecommended.Format(name))
	}
}

// expand puts the values of variables into the words of an instruction, and
// reports those that are not there.
func (c *checker) expand(st *stage, cmd instructions.Command, lines []parser.Range, lint *linter.Linter) error {
	word := func(lex *words.Lex) instructions.SingleWordExpander {
		return func(w string) (string, error) {
			w, unmatched, err := lex.ProcessWord(w, st.env)
			c.undefined(st, unmatched, lines, lint)
			return w, err
		}
	}
	if _, isArg := cmd.(*instructions.ArgCommand); isArg {
		return nil
	}
	if x, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		if err := x.Expand(word(c.lex)); err != nil {
			return err
		}
	}
	x, ok := cmd.(instructions.SupportsSingleWordExpansionRaw)
	if !ok {
		return nil
	}
	return x.ExpandRaw(word(c.lex.Raw()))
}

// notEnv are ARGs that are no variables: they speak to the builder.
var notEnv = map[string]bool{"BUILDKIT_SBOM_SCAN_CONTEXT": true, "BUILDKIT_SBOM_SCAN_STAGE": true}

func (c *checker) undefined(st *stage, unmatched map[string]struct{}, lines []parser.Range, lint *linter.Linter) {
	if st.unknown {
		return
	}
	for _, name := range sorted(unmatched) {
		if !st.declared[name] && !notEnv[name] {
			near, _ := suggest.Search(name, st.env.Keys(), true)
			lint.Run(&linter.RuleUndefinedVar, lines, linter.RuleUndefinedVar.Format(name, near))
		}
	}
}

func (c *checker) arg(st *stage, cmd *instructions.ArgCommand, lines []parser.Range, lint *linter.Linter) error {
	for _, a := range cmd.Args {
		secret("ARG", a.Key, lines, lint)
		value, ok := c.Args[a.Key]
		if !ok && a.Value != nil {
			w, unmatched, err := c.lex.ProcessWord(*a.Value, st.env)
			c.undefined(st, unmatched, lines, lint)
			if err != nil {
				return err
			}
			value, ok = w, true
		}
		if !ok {
			value, ok = c.globals.Get(a.Key)
		}
		if ok && !notEnv[a.Key] {
			st.env.set(a.Key, value)
		}
		st.declared[a.Key] = true
	}
	return nil
}

func sorted(set map[string]struct{}) []string { return slices.Sorted(maps.Keys(set)) }
