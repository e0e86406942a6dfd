package lint

import (
	"path"
	"regexp"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/suggest"
)

// scratch is the FROM of an image without anything below.
const scratch = "scratch"

func stageNames(stages []instructions.Stage, lint *linter.Linter) {
	seen := map[string]bool{}
	for _, st := range stages {
		if st.Name == "" {
			continue
		}
		if st.Name == scratch || st.Name == "context" {
			lint.Run(&linter.RuleReservedStageName, st.Location, linter.RuleReservedStageName.Format(st.Name))
		}
		if seen[st.Name] {
			lint.Run(&linter.RuleDuplicateStageName, st.Location, linter.RuleDuplicateStageName.Format(st.Name))
		}
		seen[st.Name] = true
	}
}

// casing compares each instruction with the majority; a mixed one agrees with
// neither.
func casing(stages []instructions.Stage, lint *linter.Linter) {
	type word struct {
		name  string
		lines []parser.Range
	}
	var all []word
	balance := 0 // above 0: more of them in lower case
	for _, st := range stages {
		all = append(all, word{st.OrigCmd, st.Location})
		for _, cmd := range st.Commands {
			all = append(all, word{cmd.Name(), cmd.Location()})
		}
	}
	for _, w := range all {
		switch w.name {
		case strings.ToLower(w.name):
			balance++
		case strings.ToUpper(w.name):
			balance--
		}
	}
	want, name := strings.ToUpper, "uppercase"
	if balance > 0 {
		want, name = strings.ToLower, "lowercase"
	}
	for _, w := range all {
		if w.name != want(w.name) {
			lint.Run(&linter.RuleConsistentInstructionCasing, w.lines, linter.RuleConsistentInstructionCasing.Format(w.name, name))
		}
	}
}

// defaultNames checks that FROM names an image when no build argument is given.
func (c *checker) defaultNames(stages []instructions.Stage, args []instructions.ArgCommand) {
	vars, err := c.metaArgs(args, nil)
	if err != nil || c.Valid == nil {
		return // the same error comes again, with its line
	}
	for _, st := range stages {
		name, _, err := c.lex.ProcessWord(st.BaseName, vars)
		if err != nil {
			return
		}
		if c.Valid(name) != nil {
			c.lint.Run(&linter.RuleInvalidDefaultArgInFrom, st.Location, linter.RuleInvalidDefaultArgInFrom.Format(st.BaseName))
		}
	}
}

// undeclared reports the variables of a FROM that no ARG before it declares.
func (c *checker) undeclared(unmatched map[string]struct{}, lines []parser.Range, lint *linter.Linter) {
	names := env{}
	for name := range c.known {
		names.set(name, "")
	}
	for _, name := range sorted(unmatched) {
		if !c.known[name] {
			near, _ := suggest.Search(name, names.Keys(), true)
			lint.Run(&linter.RuleUndefinedArgInFrom, lines, linter.RuleUndefinedArgInFrom.Format(name, near))
		}
	}
}

// fromPlatform checks FROM --platform.
func (c *checker) fromPlatform(st *instructions.Stage, res shell.ProcessWordResult, lint *linter.Linter) {
	const target = "TARGETPLATFORM"
	if _, ok := res.Matched[target]; ok && len(res.Matched) == 1 && len(res.Unmatched) == 0 && res.Result == c.globals[target] {
		lint.Run(&linter.RuleRedundantTargetPlatform, st.Location, linter.RuleRedundantTargetPlatform.Format(st.Platform))
	}
	if len(res.Matched) > 0 || len(res.Unmatched) > 0 {
		return
	}
	for _, part := range strings.Split(res.Result, "/")[:min(2, strings.Count(res.Result, "/")+1)] {
		if part != "" && strings.Contains(st.Name, part) {
			return // a stage that is named after its platform is meant
		}
	}
	lint.Run(&linter.RuleFromPlatformFlagConstDisallowed, st.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(res.Result))
}

var (
	secretName = regexp.MustCompile(`(?i)(_|^)(apikey|auth|credentials?|key|password|pword|passwd|secret|token)(_|$)`)
	publicName = regexp.MustCompile(`(?i)(_|^)(public|file|version)(_|$)`)
)

func secret(instruction, key string, lines []parser.Range, lint *linter.Linter) {
	if secretName.MatchString(key) && !publicName.MatchString(key) {
		lint.Run(&linter.RuleSecretsUsedInArgOrEnv, lines, linter.RuleSecretsUsedInArgOrEnv.Format(instruction, key))
	}
}

func legacy(name string, pairs instructions.KeyValuePairs, lines []parser.Range, lint *linter.Linter) {
	for _, kv := range pairs {
		if kv.NoDelim {
			lint.Run(&linter.RuleLegacyKeyValueFormat, lines, linter.RuleLegacyKeyValueFormat.Format(name))
		}
	}
}

// once reports the earlier of two instructions of which the last one counts.
func once(cmd instructions.Command, earlier *instructions.Command, lint *linter.Linter) {
	if *earlier != nil {
		lint.Run(&linter.RuleMultipleInstructionsDisallowed, (*earlier).Location(), linter.RuleMultipleInstructionsDisallowed.Format(cmd.Name()))
	}
	*earlier = cmd
}

// ports checks the words of an EXPOSE; those that are none at all fail the build.
func ports(words []string, lines []parser.Range, lint *linter.Linter) {
	for _, w := range words {
		parts := strings.Split(w, ":")
		if _, proto, _ := strings.Cut(parts[len(parts)-1], "/"); proto != strings.ToLower(proto) {
			lint.Run(&linter.RuleExposeProtoCasing, lines, linter.RuleExposeProtoCasing.Format(w))
		}
		if strings.Trim(strings.Join(parts[:len(parts)-1], ":"), ":") != "" {
			lint.Run(&linter.RuleExposeInvalidFormat, lines, linter.RuleExposeInvalidFormat.Format(w))
		}
	}
}

// remote is a source that is fetched, not copied.
var remote = regexp.MustCompile(`^([a-zA-Z][a-zA-Z0-9+.-]*://|[\w-]+@[\w.-]+:|github\.com/)`)

// ignored reports sources that .dockerignore takes out of the context. With
// exceptions in it, nobody can tell without the files.
func (c *checker) ignored(verb string, sources []string, lines []parser.Range, lint *linter.Linter) {
	if c.Ignored == nil || c.Ignored.Exclusions() {
		return
	}
	for _, src := range sources {
		if remote.MatchString(src) {
			continue
		}
		src = path.Clean(src)
		if src == "." || src == "/" {
			if !c.ignoresAll() {
				continue
			}
		}
		if out, err := c.Ignored.MatchesOrParentMatches(src); err == nil && out {
			lint.Run(&linter.RuleCopyIgnoredFile, lines, linter.RuleCopyIgnoredFile.Format(verb, src))
		}
	}
}

// ignoresAll tells whether a pattern takes out all that is in the context.
func (c *checker) ignoresAll() bool {
	for _, p := range c.Ignored.Patterns() {
		switch p.String() {
		case "*", "**", "**/*":
			return !p.Exclusion()
		}
	}
	return false
}
