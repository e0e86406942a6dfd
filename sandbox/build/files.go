package build

import (
	"context"
	"fmt"
	"strconv"

	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"

	"naru/sandbox/image"
)

// files are the files of a transfer, looked for when they are needed.
type files struct {
	*build
	t      transfer
	layers []digest.Digest // that hold them; not for the context
	src    *source         // opened when it is looked at
	found  []pick          // nil: not looked for yet
	closed []func()        // what ends with this transfer
}

// files says where a transfer's files are.
func (r *stageRun) files(ctx context.Context, t transfer) (*files, error) {
	f := &files{build: r.build, t: t}
	switch {
	case t.from == nil:
		f.src = r.contextSource()
	case t.from.stage != nil:
		f.layers = r.done[t.from.stage].layers
	case t.from.local != nil:
		src, err := r.localSource(ctx, t.from.local)
		f.src = src
		return f, err
	default:
		v := r.out.begin("load image " + t.from.image)
		img, err := r.baseImage(ctx, baseKey{t.from.image, t.from.platform}, v)
		v.end(err)
		if err != nil {
			return nil, err
		}
		f.layers = img.Layers
	}
	return f, nil
}

// contextSource opens the build context, once.
func (b *build) contextSource() *source {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.context == nil {
		b.context = &source{root: b.tree, context: true, ignore: b.file.ignore}
		if !b.fetched {
			b.context.sums, b.context.clock = loadSums(b.cache.sumsFile(b.o.Context)), clockOf(b.tree)
		}
	}
	return b.context
}

// key is the key of the files' content. For files in layers, which never
// change, it is remembered.
func (f *files) key(ctx context.Context) (string, error) {
	if f.src != nil && !f.t.pinned() { // a context: it may have changed
		if err := f.find(ctx); err != nil {
			return "", err
		}
		return f.contentKey(), nil
	}
	k := newKey("where")
	if f.t.pinned() {
		k.field("pinned", f.t.checksum, fmt.Sprint(f.t.unpack != nil && *f.t.unpack, f.t.keepGit != nil && *f.t.keepGit))
	}
	k.layers(f.layers)
	k.field("sources", f.t.params.SourcePaths...)
	k.field("exclude", f.t.exclude...)
	k.field("parents", strconv.FormatBool(f.t.parents))
	where := k.key()
	if content, ok := f.cache.content(where); ok {
		f.noteContent(where, content)
		return content, nil
	}
	if err := f.find(ctx); err != nil {
		return "", err
	}
	content := f.contentKey()
	f.noteContent(where, content)
	return content, f.cache.putContent(where, content)
}

func (f *files) contentKey() string {
	k := newKey("files")
	k.feed(f.found)
	return k.key()
}

// find walks the sources and sums their files, once.
func (f *files) find(ctx context.Context) error {
	if f.found != nil {
		return nil
	}
	sel := selection{parents: f.t.parents}
	if len(f.t.exclude) > 0 {
		m, err := patternmatcher.New(f.t.exclude)
		if err != nil {
			return fmt.Errorf("--exclude: %w", err)
		}
		sel.exclude.matcher = m
	}
	found := []pick{}
	for _, arg := range f.t.params.SourcePaths {
		r, err := remoteOf(arg)
		if err != nil {
			return err
		}
		if r != nil {
			p, err := f.remote(ctx, arg, r)
			if err != nil {
				return err
			}
			found = append(found, p)
			continue
		}
		picks, err := f.local(ctx, arg, sel)
		if err != nil {
			return err
		}
		found = append(found, picks...)
	}
	f.found = found
	return nil
}

// local finds an argument that is no URL.
func (f *files) local(ctx context.Context, arg string, sel selection) ([]pick, error) {
	if err := f.open(); err != nil {
		return nil, err
	}
	if f.src.context {
		f.walking.Lock()
		defer f.walking.Unlock()
	}
	picks, err := f.src.pick(ctx, arg, sel)
	if err != nil {
		return nil, err
	}
	if len(picks) == 0 {
		f.out.warn(fmt.Sprintf("%s: nothing matches %q", f.t.name, arg))
	}
	for i := range picks {
		picks[i].unpack = f.t.unpack == nil || *f.t.unpack
	}
	return picks, nil
}

// open opens the layers that local files come from.
func (f *files) open() error {
	if f.src != nil {
		return nil
	}
	lower, err := f.store.Lower(image.Image{Layers: f.layers})
	if err != nil {
		return err
	}
	tree, err := f.viewOf(lower)
	if err != nil {
		return err
	}
	f.src = &source{root: tree}
	f.closed = append(f.closed, func() { _ = tree.Close() })
	return nil
}

func (f *files) close() {
	for _, end := range f.closed {
		end()
	}
}
