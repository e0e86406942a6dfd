package build

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"naru/sandbox/image"
)

// local is a directory that a caller has given a name (Options.Contexts).
type local struct {
	name string
	dir  string
	tree *root
	src  *source // opened when it is looked at
}

// contexts are the named contexts of one Build, for all of its platforms.
type contexts struct{ byName map[string]origin }

// layoutPrefix marks the image of a named context that is read from an OCI
// layout: what follows is PATH[:TAG] or PATH@DIGEST.
const layoutPrefix = "oci-layout://"

var urlContext = regexp.MustCompile(`^([a-zA-Z][a-zA-Z0-9+.-]*://|git@)`)

// openContexts reads what the names mean, and opens the directories.
func openContexts(given map[string]string) (c *contexts, err error) {
	c = &contexts{byName: map[string]origin{}}
	for name, value := range given {
		o, err := openContext(name, value)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("build context %s=%s: %w", name, value, err)
		}
		c.byName[contextName(name)] = o
	}
	return c, nil
}

func openContext(name, value string) (origin, error) {
	ref, isImage := strings.CutPrefix(value, "docker-image://")
	switch {
	case name == "":
		return origin{}, fmt.Errorf("it has no name")
	case isImage && ref == scratch:
		return origin{}, nil
	case isImage:
		_, err := image.FullName(ref)
		return origin{image: ref}, err
	case strings.HasPrefix(value, layoutPrefix):
		dir, _ := splitLayout(value)
		_, err := os.Stat(filepath.Join(dir, "index.json"))
		return origin{image: value}, err
	case urlContext.MatchString(value):
		return origin{}, fmt.Errorf("a named context from a URL is not supported: fetch it, and name the directory")
	}
	dir, err := filepath.Abs(value)
	if err != nil {
		return origin{}, err
	}
	tree, err := openRoot(dir)
	if err != nil {
		return origin{}, err
	}
	return origin{local: &local{name: name, dir: dir, tree: tree}}, nil
}

// splitLayout takes "oci-layout://PATH:TAG" apart; without a tag or digest it
// is the layout's only image, or its "latest".
func splitLayout(value string) (dir, ref string) {
	dir = strings.TrimPrefix(value, layoutPrefix)
	if at := strings.LastIndex(dir, "@"); at >= 0 {
		return dir[:at], dir[at+1:]
	}
	if at := strings.LastIndex(dir, ":"); at > strings.LastIndex(dir, "/") {
		return dir[:at], dir[at+1:]
	}
	return dir, ""
}

// contextName is the one spelling of a name: "alpine" and
// "docker.io/library/alpine:latest" are the same.
func contextName(name string) string {
	if full, err := image.FullName(strings.ToLower(name)); err == nil {
		return full
	}
	return strings.ToLower(name)
}

func (c *contexts) close() {
	for _, o := range c.byName {
		if o.local != nil {
			o.local.tree.Close()
		}
	}
}

// namedContext finds what a caller wants a name to mean.
func (b *build) namedContext(name string) (origin, bool) {
	if name == "" {
		return origin{}, false
	}
	o, ok := b.contexts.byName[contextName(name)]
	return o, ok
}

// localSource opens a named directory for reading, once.
func (b *build) localSource(l *local) (*source, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.src == nil {
		ignored, err := readIgnore(l.tree, ".dockerignore")
		if err != nil {
			return nil, err
		}
		l.src = &source{
			root: l.tree, context: true, ignore: ignored,
			sums: loadSums(b.cache.sumsFile(l.dir)), clock: clockOf(l.tree),
		}
	}
	return l.src, nil
}

// saveSums keeps what was learnt of the contexts' files.
func (b *session) saveSums() {
	list := []*source{b.context}
	for _, o := range b.contexts.byName {
		if o.local != nil {
			list = append(list, o.local.src)
		}
	}
	for _, src := range list {
		if src == nil {
			continue
		}
		if err := src.sums.save(); err != nil {
			b.out.warn(err.Error()) // the next build is slower, this one is good
		}
	}
}
