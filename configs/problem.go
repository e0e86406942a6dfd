package configs

import (
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"
)

// Problem is one thing that is wrong in a file.
type Problem struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // from 1; 0: the file as a whole
	Key     string `json:"key,omitempty"`  // "processes.web.port", "route.domains[1]"
	Message string `json:"message"`        // what is wrong and what is allowed
}

// String is "file:line: key: message", as editors and terminals link it.
func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s = fmt.Sprintf("%s:%d", s, p.Line)
	}
	if p.Key != "" {
		s += ": " + p.Key
	}
	return s + ": " + p.Message
}

// Problems is the error of Load and ParseApp: never empty, in the order of
// files and lines.
type Problems []Problem

// Error is one problem per line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// plain drops the operation and path of a file error: the Problem has the path.
func plain(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}

// sorted returns the decoder's problems by line.
func (d *decoder) sorted() Problems {
	sort.SliceStable(d.problems, func(i, j int) bool { return d.problems[i].Line < d.problems[j].Line })
	return d.problems
}

// problem notes what is wrong with a key; the line is that of the key or, when
// it is not in the file, of the nearest key above it.
func (d *decoder) problem(key, message string) {
	d.problems = append(d.problems, Problem{File: d.file, Line: d.line(key), Key: key, Message: message})
}

// given reports whether the file has the key.
func (d *decoder) given(key string) bool { return d.lines[key] > 0 }

// where is "file:line" of a key.
func (d *decoder) where(key string) string { return fmt.Sprintf("%s:%d", d.file, d.line(key)) }

func (d *decoder) line(key string) int {
	for {
		if line, ok := d.lines[key]; ok || key == "" {
			return line
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
}

// nearest returns the known name that looks most like name, or "" when none is
// near enough to be what was meant.
func nearest(name string, known []string) string {
	best, least := "", 1+max(1, len(name)/3)
	for _, k := range known {
		if n := distance(strings.ToLower(name), strings.ToLower(k)); n < least {
			best, least = k, n
		}
	}
	return best
}

// distance is the number of letters to insert, remove, replace or swap with
// their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a)
	}
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next := make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// didYouMean ends a message about an unknown word.
func didYouMean(word string, known []string) string {
	if near := nearest(word, known); near != "" {
		return fmt.Sprintf(", did you mean %q?", near)
	}
	return "; allowed: " + strings.Join(known, ", ")
}
