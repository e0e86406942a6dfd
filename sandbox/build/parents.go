package build

import (
	"fmt"
	"path"
	"strings"

	"github.com/moby/patternmatcher"
)

// include decides which paths of a walk are taken, each below the answer for its
// directory. Its zero value takes all.
type include struct {
	matcher *patternmatcher.PatternMatcher
	fixed   string // the elements of the pattern before its first wildcard
	literal bool   // fixed is the whole pattern
}

// splitParents reads an argument of COPY --parents: what comes before "/./" is
// where the copied paths begin, what comes after it is a pattern with "**".
func splitParents(arg string) (from string, i include, err error) {
	from, pattern, pivot := strings.Cut(arg, "/./")
	if !pivot {
		from, pattern = "", arg
	}
	if from == "" {
		from = "/"
	}
	if pattern = strings.TrimPrefix(path.Join("/", pattern), "/"); pattern == "" {
		return from, include{}, nil
	}
	if i.matcher, err = patternmatcher.New([]string{pattern}); err != nil {
		return "", i, fmt.Errorf("--parents %s: %w", arg, err)
	}
	if strings.HasPrefix(pattern, "!") {
		return from, i, nil // means all but this; nothing can be skipped
	}
	fixed, rest := splitWildcards("/" + pattern)
	i.fixed, i.literal = fixed, rest == ""
	return from, i, nil
}

// takes tells whether rel is taken, given what was found for its directory.
func (i include) takes(rel string, dir patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	if i.matcher == nil {
		return true, patternmatcher.MatchInfo{}, nil
	}
	return i.matcher.MatchesUsingParentResults(rel, dir)
}

// leadsTo tells whether something below the directory rel may be taken.
func (i include) leadsTo(rel string) bool {
	return i.fixed == "" || strings.HasPrefix(i.fixed+"/", rel+"/") || strings.HasPrefix(rel+"/", i.fixed+"/")
}
