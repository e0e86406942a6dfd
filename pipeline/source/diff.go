package source

import (
	"context"
	"errors"
	"path"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"
)

// changed compares the trees of two commits.
func (m *mirror) changed(ctx context.Context, from, to string) ([]string, error) {
	var trees [2]plumbing.Hash
	for i, hash := range []string{from, to} {
		c, err := m.commit(hash)
		if missing, ok := errors.AsType[*missingError](err); ok {
			return nil, missing.Unwrap() // unknown is an answer here: no clone is wasted on it
		}
		if err != nil {
			return nil, err
		}
		trees[i] = c.TreeHash
	}
	d := differ{ctx: ctx, objects: m.st}
	if err := d.directory("", trees[0], trees[1], 0); err != nil {
		return nil, err
	}
	slices.Sort(d.paths)
	return slices.Compact(d.paths), nil
}

// differ lists the files in which two trees differ. It is not go-git's DiffTree,
// which fails on names with control characters; equal subtrees are not read.
type differ struct {
	ctx     context.Context // of this one comparison
	objects storer.EncodedObjectStorer
	paths   []string
}

// directory compares the trees a and b, which are both at the path at; the zero
// hash is an empty tree.
func (d *differ) directory(at string, a, b plumbing.Hash, depth int) error {
	if a == b {
		return nil
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if depth > defaultLimits.depth {
		return refuse("%.200q is more than %d directories deep", at, defaultLimits.depth)
	}
	old, err := d.entries(a)
	if err != nil {
		return err
	}
	now, err := d.entries(b)
	if err != nil {
		return err
	}
	for name, entry := range old {
		if err := d.entry(path.Join(at, name), entry, now[name], depth); err != nil {
			return err
		}
		delete(now, name)
	}
	for name, entry := range now {
		if err := d.entry(path.Join(at, name), object.TreeEntry{}, entry, depth); err != nil {
			return err
		}
	}
	return nil
}

// entries is a tree by name.
func (d *differ) entries(hash plumbing.Hash) (map[string]object.TreeEntry, error) {
	if hash.IsZero() {
		return nil, nil
	}
	tree, err := object.GetTree(d.objects, hash)
	if err != nil {
		return nil, &corruptError{err}
	}
	all := make(map[string]object.TreeEntry, len(tree.Entries))
	for _, e := range tree.Entries {
		all[e.Name] = e
	}
	return all, nil
}

// entry compares one name of two directories; the zero entry is none.
func (d *differ) entry(name string, a, b object.TreeEntry, depth int) error {
	if a.Hash == b.Hash && a.Mode == b.Mode {
		return nil
	}
	var treeA, treeB plumbing.Hash
	for _, side := range []struct {
		entry object.TreeEntry
		tree  *plumbing.Hash
	}{{a, &treeA}, {b, &treeB}} {
		switch {
		case side.entry.Mode == filemode.Dir:
			*side.tree = side.entry.Hash
		case !side.entry.Hash.IsZero():
			d.paths = append(d.paths, name)
		}
	}
	return d.directory(name, treeA, treeB, depth+1)
}
