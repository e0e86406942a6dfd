package build

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"naru/internal/smallfile"
)

// ignore is a .dockerignore file.
type ignore struct {
	file    string
	data    []byte
	matcher *patternmatcher.PatternMatcher
}

// maxTextFile bounds what is read of Dockerfiles, ignore files and accounts.
const maxTextFile = 10 << 20

// readIgnore reads the first of these files that is there. Nil: none is.
func readIgnore(tree *root, names ...string) (*ignore, error) {
	for _, name := range names {
		data, err := tree.readFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		patterns, err := ignorefile.ReadAll(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		m, err := patternmatcher.New(patterns)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		return &ignore{file: name, data: data, matcher: m}, nil
	}
	return nil, nil
}

// readFile reads a small regular file, following links inside the tree.
func (r *root) readFile(name string) ([]byte, error) {
	p, err := r.resolve(name)
	if err != nil {
		return nil, err
	}
	f, err := r.open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	return smallfile.Read(f, maxTextFile)
}

// why names the line that takes p out of the context; "" if none does.
func (i *ignore) why(p string) string {
	if i == nil {
		return ""
	}
	if out, err := i.matcher.MatchesOrParentMatches(p); err != nil || !out {
		return ""
	}
	where := i.file
	lines := bufio.NewScanner(bytes.NewReader(i.data))
	for n := 1; lines.Scan(); n++ {
		one, err := ignorefile.ReadAll(strings.NewReader(lines.Text()))
		if err != nil || len(one) != 1 || strings.HasPrefix(one[0], "!") {
			continue
		}
		if out, err := patternmatcher.MatchesOrParentMatches(p, one); err == nil && out {
			where = fmt.Sprintf("%s line %d", i.file, n) // the last one counts
		}
	}
	return where
}

// sieve decides which paths of a walk are left out, each below the answer for
// its directory. Its zero value leaves out nothing.
type sieve struct {
	matcher *patternmatcher.PatternMatcher
}

// out tells whether p is left out, given what was found for its directory.
func (s sieve) out(p string, dir patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	if s.matcher == nil || p == "" {
		return false, patternmatcher.MatchInfo{}, nil
	}
	return s.matcher.MatchesUsingParentResults(p, dir)
}

// outDeep is out for a path whose directory has not been walked.
func (s sieve) outDeep(p string) (bool, patternmatcher.MatchInfo, error) {
	if s.matcher == nil || p == "" {
		return false, patternmatcher.MatchInfo{}, nil
	}
	dir := path.Dir(p)
	if dir == "." {
		dir = ""
	}
	_, info, err := s.outDeep(dir)
	if err != nil {
		return false, info, err
	}
	return s.out(p, info)
}

// final tells that nothing below a left out directory can come back. As in
// BuildKit, and unlike in the classic builder, an exception may bring a file of
// an excluded directory back.
func (s sieve) final() bool { return s.matcher == nil || !s.matcher.Exclusions() }
