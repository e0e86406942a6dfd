package pipeline

import (
	"path"
	"strings"
)

// matchAny reports whether a file's path matches one of the patterns. "**" at
// a pattern's end or between slashes stands for any number of folders; the rest
// is path.Match. A leading slash is ignored, since users write it.
func matchAny(patterns []string, name string) bool {
	for _, p := range patterns {
		if match(strings.Split(strings.TrimPrefix(p, "/"), "/"), strings.Split(name, "/")) {
			return true
		}
	}
	return false
}

func match(pattern, name []string) bool {
	if len(pattern) == 0 {
		return len(name) == 0
	}
	if pattern[0] == "**" {
		for i := range len(name) + 1 {
			if match(pattern[1:], name[i:]) {
				return true
			}
		}
		return false
	}
	if len(name) == 0 {
		return false
	}
	ok, err := path.Match(pattern[0], name[0])
	return err == nil && ok && match(pattern[1:], name[1:])
}
