// Package words puts the values of variables into the words of a Dockerfile, by
// BuildKit's lexer, and bounds what that may grow to: ENV A=$A$A forty times, one line
// of $A$A$A…, ${A//?/$B} or ten thousand long labels must not fill the memory of the
// process that builds. The lexer asks for each value before it makes room for it, so
// a word that is over its bound gets no further values, and ends as an error.
package words

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

const (
	// maxWord bounds what variables add to a word, in bytes, as the kernel bounds a
	// variable of a process (execve(2), MAX_ARG_STRLEN).
	maxWord = 128 << 10
	// maxReplaced bounds what one word with ${NAME//pattern/replacement} can become.
	maxReplaced = 16 << 20
	// maxAll bounds what variables add to all words of a file.
	maxAll = 16 << 20
)

// Lex expands words. It is for one goroutine.
type Lex struct {
	lex    *shell.Lex
	escape rune
	taken  *atomic.Int64 // by all words of the file
}

// New returns a lexer for a file with that escape character.
func New(escape rune) *Lex {
	return &Lex{lex: shell.NewLex(escape), escape: escape, taken: new(atomic.Int64)}
}

// Fork returns a lexer of the same file for another goroutine.
func (l *Lex) Fork() *Lex { return &Lex{shell.NewLex(l.escape), l.escape, l.taken} }

// Raw returns a lexer for texts of heredocs, which keep their quotes.
func (l *Lex) Raw() *Lex {
	lex := shell.NewLex('\\')
	lex.SkipProcessQuotes = true
	return &Lex{lex, '\\', l.taken}
}

// ProcessWord returns a word with the values of its variables, and the names that
// have none.
func (l *Lex) ProcessWord(word string, env shell.EnvGetter) (string, map[string]struct{}, error) {
	r, err := l.ProcessWordWithMatches(word, env)
	return r.Result, r.Unmatched, err
}

// ProcessWordWithMatches returns also the names that have a value.
func (l *Lex) ProcessWordWithMatches(word string, env shell.EnvGetter) (r shell.ProcessWordResult, err error) {
	err = l.bounded(word, env, func(env shell.EnvGetter) (err error) {
		r, err = l.lex.ProcessWordWithMatches(word, env)
		return err
	})
	return r, err
}

// ProcessWords returns the words that a word becomes.
func (l *Lex) ProcessWords(word string, env shell.EnvGetter) (list []string, err error) {
	err = l.bounded(word, env, func(env shell.EnvGetter) (err error) {
		list, err = l.lex.ProcessWords(word, env)
		return err
	})
	return list, err
}

func (l *Lex) bounded(word string, env shell.EnvGetter, expand func(shell.EnvGetter) error) error {
	if !strings.Contains(word, "$") {
		return expand(env)
	}
	g := &gauge{EnvGetter: env, taken: l.taken, limit: max(maxWord, len(word))}
	if n := replacements(word); n > 0 {
		g.limit = min(g.limit, mostReplaced(n))
		if len(word) > g.limit {
			return fmt.Errorf("a word of %d bytes replaces in variables; at most %d are possible", len(word), g.limit)
		}
	}
	err := expand(g)
	switch {
	case g.word > g.limit:
		return fmt.Errorf("a word has more than %d bytes with its variables", g.limit)
	case l.taken.Load() > maxAll:
		return fmt.Errorf("all words together have more than %d bytes with their variables", maxAll)
	}
	return err
}

// gauge counts the bytes that a word takes from variables.
type gauge struct {
	shell.EnvGetter
	taken       *atomic.Int64
	word, limit int
}

// Get returns nothing when the word has had enough.
func (g *gauge) Get(name string) (string, bool) {
	value, ok := g.EnvGetter.Get(name)
	if g.word += len(value); g.word > g.limit || g.taken.Add(int64(len(value))) > maxAll {
		return "", false
	}
	return value, ok
}

// replacements is how deep ${NAME//…} are nested at most: each level can multiply
// the length of what is inside.
func replacements(word string) (most int) {
	var open []bool // braces, and whether they replace
	depth := 0
	for i := 0; i < len(word); i++ {
		switch {
		case strings.HasPrefix(word[i:], "${"):
			name := strings.TrimLeft(word[i+2:], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@*#?-$!")
			replaces := strings.HasPrefix(name, "//")
			if open = append(open, replaces); replaces {
				depth++
				most = max(most, depth)
			}
			i++
		case word[i] == '}' && len(open) > 0:
			if open[len(open)-1] {
				depth--
			}
			open = open[:len(open)-1]
		}
	}
	return most
}

// mostReplaced is how long a word with its variables may be so that n nested
// replacements make no more than maxReplaced of it: they multiply n+1 parts of it.
func mostReplaced(n int) int {
	part := 1
	for power(part+1, n+1) <= maxReplaced {
		part++
	}
	return part * (n + 1)
}

func power(base, n int) int {
	p := 1
	for range n {
		if p *= base; p > maxReplaced {
			break
		}
	}
	return p
}
