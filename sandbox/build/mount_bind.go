package build

import (
	"context"
	"errors"
	"path"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"naru/sandbox/image"
)

// begins finds what a mount begins with: layers of a stage that is done or of an
// image, or a named context.
func (r *stageRun) begins(ctx context.Context, m *runMount, o origin) (err error) {
	switch {
	case o.stage != nil:
		m.layers, m.stage = r.done[o.stage].layers, true
	case o.local != nil:
		m.src, err = r.localSource(ctx, o.local)
	default:
		v := r.out.begin("load image " + o.image)
		img, imgErr := r.baseImage(ctx, baseKey{o.image, o.platform}, v)
		v.end(imgErr)
		m.layers, err = img.Layers, imgErr
	}
	return err
}

// source is the path in the tree that a bind or a cache begins at.
func (m *runMount) source() string { return strings.TrimPrefix(path.Join("/", m.Source), "/") }

// bindKey adds the content of what is bound, as COPY would: files of the context and
// of stages, so that a stage that was built again and made the same leads to a hit.
// An image never changes, so that its layers say as much without being read.
func (r *stageRun) bindKey(ctx context.Context, m *runMount, k *keyHash) error {
	if m.From == "" {
		m.src = r.contextSource()
	}
	if m.src != nil {
		return r.contextKey(ctx, m, k)
	}
	if !m.stage {
		k.layers(m.layers)
		k.field("source", m.source())
		return nil
	}
	where := newKey("bind")
	where.layers(m.layers)
	where.field("source", m.source())
	content, ok := r.cache.content(where.key())
	if !ok {
		tree, err := r.stack(m.layers)
		if err != nil {
			return err
		}
		defer tree.Close()
		src := &source{root: tree}
		p, err := src.whole(ctx, m.source())
		if err != nil {
			return m.errorf("source=%s: %w", m.Source, err)
		}
		content = contentOf(p)
		if err := r.cache.putContent(where.key(), content); err != nil {
			return err
		}
	}
	k.field("content", content)
	return nil
}

// contextKey finds what a mount takes from a context.
func (r *stageRun) contextKey(ctx context.Context, m *runMount, k *keyHash) error {
	p, err := r.contextPart(ctx, m.src, m.source())
	if err != nil {
		return m.errorf("source=%s: %w", m.Source, err)
	}
	m.tree = &contextTree{pick: p, key: contentOf(p)}
	k.field("content", m.tree.key)
	return nil
}

// contextPart is whole for a context, which is walked by one at a time.
func (r *stageRun) contextPart(ctx context.Context, src *source, p string) (pick, error) {
	r.walking.Lock()
	defer r.walking.Unlock()
	return src.whole(ctx, p)
}

// whole picks the file or the tree at a path, whose links are followed. There are no
// wildcards in it.
func (s *source) whole(ctx context.Context, p string) (pick, error) {
	w := walk{ctx: ctx, source: s}
	if err := w.from(p); err != nil {
		return pick{}, err
	}
	if err := s.sumFiles(ctx, w.entries); err != nil {
		return pick{}, err
	}
	return pick{src: s, name: path.Base(p), entries: w.entries}, nil
}

func contentOf(p pick) string {
	k := newKey("files")
	p.name = "" // where it is bound does not depend on it
	k.feed([]pick{p})
	return k.key()
}

// stack opens what layers show.
func (r *stageRun) stack(layers []digest.Digest) (*root, error) {
	lower, err := r.lower(layers)
	if err != nil {
		return nil, err
	}
	return r.viewOf(lower)
}

// lower are the directories of layers, and an empty one where there are none.
func (r *stageRun) lower(layers []digest.Digest) ([]string, error) {
	if len(layers) == 0 {
		return []string{r.emptyDir()}, nil
	}
	return r.store.Lower(image.Image{Layers: layers})
}

// openBind finds what is bound. Writes go to a layer that is thrown away.
func (r *stageRun) openBind(ctx context.Context, m *runMount, o *openMounts) error {
	s := &StepStack{Path: "/"}
	dir := true
	if m.tree != nil {
		lower, err := r.trees.make(ctx, r.store, m.tree)
		if err != nil {
			return err
		}
		s.Lower = []string{lower}
		if dir = m.tree.pick.isDir(); !dir {
			s.Path = "/" + treeFile
		}
	} else {
		var err error
		if s.Lower, err = r.lower(m.layers); err != nil {
			return err
		}
		tree, err := r.viewOf(s.Lower)
		if err != nil {
			return err
		}
		defer tree.Close()
		p, err := tree.resolve(m.source())
		if err != nil {
			return err
		}
		st, err := tree.lstat(p)
		if err != nil {
			return err
		}
		s.Path, dir = "/"+p, isDir(&st)
	}
	if !m.ReadOnly {
		l, err := r.store.NewLayer()
		if err != nil {
			return err
		}
		o.close = append(o.close, l.Discard)
		if _, err := inheritRoot(l.Upper, s.Lower[len(s.Lower)-1]); err != nil {
			return err
		}
		s.Upper, s.Work = l.Upper, l.Work
	}
	o.add(StepMount{Target: m.target, ReadOnly: m.ReadOnly, Stack: s, dir: dir})
	return nil
}

// contextTree is a part of the build context that a RUN binds: without what
// .dockerignore hides, and root's, as COPY would make it. What a RUN sees is a copy:
// the context has other owners, and may change while the step runs.
type contextTree struct {
	pick pick
	key  string
}

// treeFile is the name of a tree that is a single file.
const treeFile = "file"

// contextTrees are those of one build, made once.
type contextTrees struct {
	mu   sync.Mutex
	made map[string]*image.Layer // by key
}

// make returns the directory of a tree.
func (c *contextTrees) make(ctx context.Context, store *image.Store, t *contextTree) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.made[t.key]; l != nil {
		return l.Upper, nil
	}
	l, err := store.NewLayer()
	if err != nil {
		return "", err
	}
	if err := t.write(ctx, l.Upper); err != nil {
		return "", errors.Join(err, l.Discard())
	}
	if c.made == nil {
		c.made = map[string]*image.Layer{}
	}
	c.made[t.key] = l
	return l.Upper, nil
}

func (t *contextTree) write(ctx context.Context, dir string) error {
	tree, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer tree.Close()
	w := newWriter(ctx, tree)
	if !t.pick.isDir() {
		if err := w.entries(&t.pick, treeFile); err != nil {
			return err
		}
		return w.writeTo(tree)
	}
	if err := w.entries(&t.pick, ""); err != nil {
		return err
	}
	if err := w.writeTo(tree); err != nil {
		return err
	}
	return tree.setMeta("", w.meta(&t.pick, &t.pick.entries[0]))
}

func (c *contextTrees) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, l := range c.made {
		errs = append(errs, l.Discard())
	}
	c.made = nil
	return errors.Join(errs...)
}
