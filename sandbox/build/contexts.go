package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"naru/sandbox/image"
)

// local is a tree that a caller has given a name (Options.Contexts).
type local struct {
	name   string
	dir    string     // empty: it is remote
	remote *remoteArg // fetched when it is looked at

	mu   sync.Mutex
	tree *root   // nil: not fetched
	src  *source // nil: nobody has looked at it
}

// contexts are the named contexts of one Build, for all of its platforms.
type contexts struct{ byName map[string]origin }

// layoutPrefix marks the image of a named context that is read from an OCI
// layout: what follows is PATH[:TAG] or PATH@DIGEST.
const layoutPrefix = "oci-layout://"

// openContexts reads what the names mean, and opens the directories.
func openContexts(given map[string]string) (c *contexts, err error) {
	c = &contexts{byName: map[string]origin{}}
	for name, value := range given {
		o, err := openContext(name, value)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("build context %s=%s: %w", name, redacted(value), err)
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
	}
	remote, err := remoteContext(value)
	if remote != nil || err != nil {
		return origin{local: &local{name: name, remote: remote}}, err
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
		if o.local != nil && o.local.tree != nil {
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

// localSource opens a named tree for reading, once, and fetches it before if it
// is not here.
func (b *build) localSource(ctx context.Context, l *local) (*source, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.src != nil {
		return l.src, nil
	}
	if l.tree == nil {
		if err := b.fetchNamed(ctx, l); err != nil {
			return nil, err
		}
	}
	ignored, err := readIgnore(l.tree, ".dockerignore")
	if err != nil {
		return nil, err
	}
	l.src = &source{root: l.tree, context: true, ignore: ignored}
	if l.dir != "" {
		l.src.sums, l.src.clock = loadSums(b.cache.sumsFile(l.dir)), clockOf(l.tree)
	}
	return l.src, nil
}

func (b *session) fetchNamed(ctx context.Context, l *local) error {
	address := l.remote.url
	if l.remote.git != nil {
		address = l.remote.git.Remote
	}
	got, _, err := b.fetchContext(ctx, fmt.Sprintf("[context %s] load %s", l.name, redacted(address)), l.remote)
	if err != nil {
		return fmt.Errorf("build context %s: %w", l.name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closers = append(b.closers, got.layer.Discard) // close ends the tree
	l.tree = got.tree
	return nil
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
		if src == nil || src.sums == nil {
			continue
		}
		if err := src.sums.save(); err != nil {
			b.out.warn(err.Error()) // the next build is slower, this one is good
		}
	}
}
