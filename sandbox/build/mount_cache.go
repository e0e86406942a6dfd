package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
)

// Cache mounts lie in <cache dir>/mounts/<key>/<n>/: lock, which is held as long as a
// step uses it, and data, which the step sees. The key is a digest of owner, id and
// what the cache began with, so that no id is ever part of a path (CVE-2024-9675) and
// no owner can fill another's. With sharing=private, n counts the steps that have
// used the cache at once; otherwise it is 0. Beside them lies info.json for people.

// CacheMount is one directory of a cache mount.
type CacheMount struct {
	Owner string    `json:"owner,omitempty"` // Options.Owner
	ID    string    `json:"id"`
	Path  string    `json:"path"` // below the cache directory
	Bytes int64     `json:"bytes"`
	Used  time.Time `json:"used"` // last
	InUse bool      `json:"in_use,omitempty"`
}

const (
	cacheInfoFile = "info.json"
	cacheLock     = "lock"
	cacheData     = "data"
	cacheNew      = "new"     // data that is being filled
	cacheFilling  = "filling" // a lock for that
	cacheGone     = ".rm-"    // being removed
)

type cacheInfo struct {
	Owner string `json:"owner,omitempty"`
	ID    string `json:"id"`
}

func (m *runMount) cacheID() string {
	if m.CacheID != "" {
		return m.CacheID
	}
	return m.target
}

// cacheKey names a cache: caches that begin with other files or another owner are
// others.
func (r *stageRun) cacheKey(m *runMount) string {
	k := newKey("cache mount")
	k.field("id", r.o.Owner, m.cacheID())
	k.layers(m.layers)
	if m.src != nil {
		k.field("context", m.From) // not its content: a cache lives on when that changes
	}
	k.field("source", m.source())
	if m.source() == "" {
		k.field("ids", m.ids())
	}
	return k.key()
}

func (c cache) mountsDir() string { return filepath.Join(c.dir, "mounts") }

// cacheDir is one that a step uses.
type cacheDir struct {
	data *os.File
	lock *os.File
}

func (d *cacheDir) Close() error { return errors.Join(d.data.Close(), d.lock.Close()) }

// openCaches opens all caches of a step, each once, in the order of their keys: two
// steps that wait for the same locked caches never wait for each other.
func (r *stageRun) openCaches(ctx context.Context, list []*runMount, o *openMounts, v *vertex) error {
	var caches []*runMount
	for _, m := range list {
		if m.Type == instructions.MountTypeCache {
			caches = append(caches, m)
		}
	}
	slices.SortStableFunc(caches, func(a, b *runMount) int { return strings.Compare(r.cacheKey(a), r.cacheKey(b)) })
	for _, m := range caches {
		key := r.cacheKey(m)
		if o.caches[key] != nil {
			continue
		}
		d, err := r.openCache(ctx, m, key, v)
		if err != nil {
			return m.errorf("%w", err)
		}
		o.caches[key] = d
		o.close = append(o.close, d.Close)
	}
	return nil
}

func (r *stageRun) openCache(ctx context.Context, m *runMount, key string, v *vertex) (*cacheDir, error) {
	base := filepath.Join(r.cache.mountsDir(), key)
	info, err := json.Marshal(cacheInfo{Owner: r.o.Owner, ID: m.cacheID()})
	if err != nil {
		return nil, err
	}
	lock, dir, err := m.lockCache(ctx, base, v)
	if err != nil {
		return nil, err
	}
	d := &cacheDir{lock: lock}
	// Whoever prunes takes away a base without directories, so not before the lock.
	err = atomicfile.Replace(filepath.Join(base, cacheInfoFile), info, 0o600)
	if err == nil {
		err = r.fillCache(ctx, m, dir)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	now := time.Now()
	err = os.Chtimes(filepath.Join(dir, cacheLock), now, now) // when it was used
	if err == nil {
		d.data, err = os.Open(filepath.Join(dir, cacheData))
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

// lockCache takes the directory that the sharing mode leads to.
func (m *runMount) lockCache(ctx context.Context, base string, v *vertex) (lock *os.File, dir string, err error) {
	switch m.CacheSharing {
	case instructions.MountSharingPrivate:
		for n := 0; ; n++ {
			dir = filepath.Join(base, strconv.Itoa(n))
			lock, err = tryLockDir(dir, unix.LOCK_EX)
			if !errors.Is(err, unix.EWOULDBLOCK) {
				return lock, dir, err
			}
		}
	case instructions.MountSharingLocked:
		lock, err = waitLockDir(ctx, filepath.Join(base, "0"), unix.LOCK_EX, func() {
			_, _ = fmt.Fprintf(v, "waiting for the cache %s, which another step has locked\n", m.cacheID())
		})
	default:
		lock, err = waitLockDir(ctx, filepath.Join(base, "0"), unix.LOCK_SH, func() {
			_, _ = fmt.Fprintf(v, "waiting for the cache %s, which another step has locked\n", m.cacheID())
		})
	}
	return lock, filepath.Join(base, "0"), err
}

// tryLockDir makes a directory with a lock in it and takes that, or returns
// EWOULDBLOCK. A lock file that was pruned meanwhile is none.
func tryLockDir(dir string, how int) (*os.File, error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(filepath.Join(dir, cacheLock), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, err
		}
		have, err := f.Stat()
		now, errNow := os.Stat(f.Name())
		if err == nil && errNow == nil && os.SameFile(have, now) {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// waitLockDir is tryLockDir with patience; waiting is called when there is need for it.
func waitLockDir(ctx context.Context, dir string, how int, waiting func()) (*os.File, error) {
	pause := time.Millisecond
	for said := false; ; {
		f, err := tryLockDir(dir, how)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		if pause > 20*time.Millisecond && !said {
			waiting()
			said = true
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// fillCache makes the content of a new cache: empty, or a copy of what from has.
func (r *stageRun) fillCache(ctx context.Context, m *runMount, dir string) error {
	data := filepath.Join(dir, cacheData)
	if _, err := os.Lstat(data); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Several may share the lock: one fills, the others wait for it.
	filling, err := waitLockDir(ctx, filepath.Join(dir, cacheFilling), unix.LOCK_EX, func() {})
	if err != nil {
		return err
	}
	defer filling.Close()
	if _, err := os.Lstat(data); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := filepath.Join(dir, cacheNew)
	if err := os.RemoveAll(fresh); err != nil { // of somebody who was killed
		return err
	}
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	tree, err := openRoot(fresh)
	if err != nil {
		return err
	}
	defer tree.Close()
	mode, uid, gid := m.owned(dirMode)
	if err := tree.setMeta("", meta{mode: mode, uid: uid, gid: gid, mtime: unix.NsecToTimespec(time.Now().UnixNano())}); err != nil {
		return err
	}
	if len(m.layers) > 0 || m.tree != nil {
		if err := r.copyInto(ctx, m, tree); err != nil {
			return fmt.Errorf("source=%s: %w", m.Source, err)
		}
	}
	return os.Rename(fresh, data)
}

// copyInto copies the directory that a cache begins with.
func (r *stageRun) copyInto(ctx context.Context, m *runMount, to *root) error {
	if m.tree != nil {
		return r.seed(ctx, m, m.tree.pick, to)
	}
	from, err := r.stack(m.layers)
	if err != nil {
		return err
	}
	defer from.Close()
	p, err := (&source{root: from}).whole(ctx, m.source())
	if err != nil {
		return err
	}
	return r.seed(ctx, m, p, to)
}

func (r *stageRun) seed(ctx context.Context, m *runMount, p pick, to *root) error {
	if !p.isDir() {
		return errors.New("is no directory, as a cache must be")
	}
	w := newWriter(ctx, to)
	if err := w.entries(&p, ""); err != nil {
		return err
	}
	if err := w.writeTo(to); err != nil {
		return err
	}
	if m.source() == "" && (m.Mode != nil || m.UID != nil || m.GID != nil) {
		return nil // the root's were asked for
	}
	return to.setMeta("", w.meta(&p, &p.entries[0]))
}
