package build

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/moby/buildkit/util/suggest"
)

// missing says why p, to which arg leads, cannot be copied: it is hidden, or
// not there, and then what there is of a similar name.
func (s *source) missing(arg, p string, err error) error {
	if s.context {
		if why := s.ignore.why(p); why != "" {
			return fmt.Errorf("%q is excluded by %s: %w", arg, why, fs.ErrNotExist)
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	hint := ""
	if near := s.similar(p); near != "" {
		hint = fmt.Sprintf(" (did you mean %q?)", near)
	}
	if s.context {
		return fmt.Errorf("%q is not in the build context%s: %w", arg, hint, err)
	}
	return fmt.Errorf("%w%s", err, hint)
}

// similar finds a path that differs from p in one name and not much. What
// .dockerignore hides is no help.
func (s *source) similar(p string) string {
	dir, name := parentOf(p), path.Base(p)
	if dir != "" {
		if _, err := s.root.lstat(dir); err != nil {
			near := s.similar(dir)
			if near == "" {
				return ""
			}
			if _, err := s.root.lstat(path.Join(near, name)); err != nil {
				return ""
			}
			return path.Join(near, name)
		}
	}
	names, err := s.root.list(dir)
	if err != nil {
		return ""
	}
	match, ok := suggest.Search(name, names, true)
	for _, other := range names { // an exact match but for case comes first
		if strings.EqualFold(other, name) {
			match, ok = other, true
		}
	}
	if !ok {
		return ""
	}
	near := path.Join(dir, match)
	if seen, err := s.visible(near); err != nil || !seen {
		return ""
	}
	return near
}
