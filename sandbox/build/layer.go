package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// step is an instruction that makes a layer.
type step struct {
	key     *keyHash // everything that the layer depends on
	text    string   // for the progress
	history string
	// write fills the layer. lower are the layers below it.
	write func(ctx context.Context, l *image.Layer, lower []string, v *vertex) error
}

// step finds the layer of an instruction, or makes it.
func (r *stageRun) step(ctx context.Context, s step) error {
	v := r.out.begin(r.title(s.text))
	if r.epoch != nil {
		s.key.field("epoch", r.epoch.String())
	}
	key := s.key.key()
	rec, hit := r.cached(ctx, key)
	if !hit {
		var err error
		rec, hit, err = r.makeOnce(ctx, key, s, v)
		if err != nil {
			v.end(err)
			return err
		}
	}
	if hit {
		v.cached()
	} else {
		v.end(nil)
	}
	r.cache.touch(key)
	if rec.Layer != "" {
		r.layers = append(r.layers, rec.Layer)
		r.created = rec.Created
	}
	r.history(s.history, rec.Layer != "")
	return nil
}

// cached looks a step up, and keeps what it finds from being evicted. A layer
// that is gone, or is not what it was, is a miss.
func (r *stageRun) cached(ctx context.Context, key string) (record, bool) {
	r.evicting.RLock()
	defer r.evicting.RUnlock()
	if r.fresh && !r.madeNow(key) {
		return record{}, false
	}
	rec, ok := r.cache.step(key)
	if !ok {
		return record{}, false
	}
	if err := r.whole(ctx, key, rec); err != nil {
		if !errors.Is(err, image.ErrLayerNotFound) || strings.Contains(err.Error(), "damaged") {
			r.out.warn(fmt.Sprintf("build cache: %v; the step is done again", err))
		}
		return record{}, false
	}
	r.noteUse(key, rec)
	return rec, true
}

// makeOnce makes a step unless somebody else makes it, in this process or
// another: then it waits, and finds it.
func (r *stageRun) makeOnce(ctx context.Context, key string, s step, v *vertex) (rec record, hit bool, err error) {
	unlock, err := r.cache.lock(ctx, key)
	if err != nil {
		return rec, false, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if rec, hit = r.cached(ctx, key); hit {
		return rec, true, nil
	}
	if err := r.makeRoom(ctx); err != nil {
		return rec, false, err
	}
	rec, err = r.make(ctx, key, s, v)
	return rec, false, err
}

// make runs a step and remembers its layer. A step that changed nothing has
// none.
func (r *stageRun) make(ctx context.Context, key string, s step, v *vertex) (rec record, err error) {
	lower, err := r.store.Lower(image.Image{Layers: r.layers})
	if err != nil {
		return rec, err
	}
	l, err := r.store.NewLayer()
	if err != nil {
		return rec, err
	}
	defer func() { err = errors.Join(err, l.Discard()) }() // after Commit it does nothing
	before, err := inheritRoot(l.Upper, lower[len(lower)-1])
	if err != nil {
		return rec, err
	}
	if err := s.write(ctx, l, lower, v); err != nil {
		return rec, err
	}
	if err := r.budget.charge(ctx, l.Upper); err != nil {
		return rec, err
	}
	if err := context.Cause(ctx); err != nil {
		return rec, err
	}
	rec.Created, rec.Text = time.Now().UTC().Truncate(time.Second), s.text
	empty, err := r.finish(l.Upper, before)
	if err != nil {
		return rec, err
	}
	r.evicting.RLock() // between the layer and its record, nobody knows whose it is
	defer r.evicting.RUnlock()
	if !empty {
		if rec.Layer, err = r.store.Commit(ctx, l); err != nil {
			return rec, err
		}
		dir, err := r.store.LayerDir(rec.Layer)
		if err != nil {
			return rec, err
		}
		if rec.Shape, rec.Disk, err = shapeOf(dir); err != nil {
			return rec, err
		}
	}
	r.noteUse(key, rec)
	return rec, r.cache.putStep(key, rec)
}

// inheritRoot gives a new layer's root directory the looks of the one below:
// overlayfs shows those of the topmost layer.
func inheritRoot(upper, below string) (before unix.Stat_t, err error) {
	from, err := openRoot(below)
	if err != nil {
		return before, err
	}
	defer from.Close()
	to, err := openRoot(upper)
	if err != nil {
		return before, err
	}
	defer to.Close()
	st, err := from.lstat("")
	if err != nil {
		return before, err
	}
	m := meta{mode: st.Mode & 0o7777, uid: int(st.Uid), gid: int(st.Gid), mtime: st.Mtim}
	if err := to.setMeta("", m); err != nil {
		return before, err
	}
	return to.lstat("")
}

// finish bounds the times in a layer by SOURCE_DATE_EPOCH, and tells whether
// there is nothing in it.
func (r *stageRun) finish(upper string, before unix.Stat_t) (empty bool, err error) {
	tree, err := openRoot(upper)
	if err != nil {
		return false, err
	}
	defer tree.Close()
	if r.epoch != nil {
		if err := clampTimes(tree, "", *r.epoch); err != nil {
			return false, err
		}
	}
	after, err := tree.lstat("")
	if err != nil {
		return false, err
	}
	if after.Mode != before.Mode || after.Uid != before.Uid || after.Gid != before.Gid {
		return false, nil
	}
	f, err := tree.open("")
	if err != nil {
		return false, err
	}
	defer f.Close() // read only: nothing can be lost
	if _, err = f.Readdirnames(1); err == io.EOF {
		return true, nil
	}
	if err != nil {
		err = fmt.Errorf("read layer: %w", err)
	}
	return false, err
}

// clampTimes makes no file of a tree younger than limit.
func clampTimes(tree *root, p string, limit time.Time) error {
	st, err := tree.lstat(p)
	if err != nil {
		return err
	}
	if isDir(&st) {
		names, err := tree.list(p)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := clampTimes(tree, path.Join(p, name), limit); err != nil {
				return err
			}
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return nil // a whiteout: shared by many names, and its time is not kept
	}
	if !time.Unix(st.Mtim.Unix()).After(limit) {
		return nil
	}
	ts, err := unix.TimeToTimespec(limit)
	if err != nil {
		return err
	}
	return tree.setTime(p, ts)
}

// view opens a layer that is being written over those below.
func view(l *image.Layer, lower []string) (*root, error) { return mountView(lower, l.Upper, l.Work) }

// viewOf opens what a stack of layers shows, for reading. It always has
// emptyDir at its bottom, as overlayfs wants two directories when none is for
// writing.
func (b *Builder) viewOf(lower []string) (*root, error) {
	return mountView(append([]string{b.emptyDir()}, lower...), "", "")
}
