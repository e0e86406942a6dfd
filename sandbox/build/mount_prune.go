package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/diskuse"
)

// CacheMounts lists the directories of cache mounts with their sizes, that which was
// not used for longest first.
func (b *Builder) CacheMounts() ([]CacheMount, error) {
	bases, err := filepath.Glob(filepath.Join(b.cache.mountsDir(), "*"))
	if err != nil {
		return nil, fmt.Errorf("list cache mounts: %w", err)
	}
	var all []CacheMount
	for _, base := range bases {
		var info cacheInfo
		if data, err := os.ReadFile(filepath.Join(base, cacheInfoFile)); err == nil {
			_ = json.Unmarshal(data, &info) // for people only
		}
		dirs, err := filepath.Glob(filepath.Join(base, "[0-9]*"))
		if err != nil {
			return nil, fmt.Errorf("list cache mounts: %w", err)
		}
		for _, dir := range dirs {
			c := CacheMount{Owner: info.Owner, ID: info.ID}
			if c.Path, err = filepath.Rel(b.cache.dir, dir); err != nil {
				return nil, fmt.Errorf("list cache mounts: %w", err)
			}
			lock, err := tryLockDir(dir, unix.LOCK_EX)
			if c.InUse = errors.Is(err, unix.EWOULDBLOCK); err != nil && !c.InUse {
				return nil, fmt.Errorf("list cache mounts: %w", err)
			}
			if st, err := os.Stat(filepath.Join(dir, cacheLock)); err == nil {
				c.Used = st.ModTime()
			}
			if lock != nil {
				lock.Close()
			}
			use, err := diskuse.Of(context.Background(), dir, diskuse.Use{})
			if err != nil {
				return nil, fmt.Errorf("list cache mounts: %w", err)
			}
			c.Bytes = use.Bytes
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b CacheMount) int { return a.Used.Compare(b.Used) })
	return all, nil
}

// evictMounts removes cache mounts until need bytes are free, those that were not
// used for longest first, and spares what keep is true of.
func (b *Builder) evictMounts(ctx context.Context, need int64, keep func(CacheMount) bool) (n int, freed int64, err error) {
	left := need
	return b.pruneMounts(ctx, func(c CacheMount) bool {
		if left <= 0 || keep(c) {
			return true
		}
		left -= c.Bytes
		return false
	})
}

// PruneCacheMounts removes the cache mounts that no step uses and keep is not true
// of, and returns how many bytes that freed.
func (b *Builder) PruneCacheMounts(ctx context.Context, keep func(CacheMount) bool) (freed int64, err error) {
	_, freed, err = b.pruneMounts(ctx, keep)
	return freed, err
}

func (b *Builder) pruneMounts(ctx context.Context, keep func(CacheMount) bool) (n int, freed int64, err error) {
	if err := b.sweepMounts(); err != nil {
		return 0, 0, err
	}
	all, err := b.CacheMounts()
	if err != nil {
		return 0, 0, err
	}
	for _, c := range all {
		if err := context.Cause(ctx); err != nil {
			return n, freed, err
		}
		if c.InUse || keep(c) {
			continue
		}
		gone, err := b.removeMount(filepath.Join(b.cache.dir, c.Path))
		if err != nil {
			return n, freed, fmt.Errorf("prune cache mount %s: %w", c.ID, err)
		}
		if gone {
			n, freed = n+1, freed+c.Bytes
		}
	}
	return n, freed, nil
}

// removeMount removes a directory that no step uses.
func (b *Builder) removeMount(dir string) (gone bool, err error) {
	lock, err := tryLockDir(dir, unix.LOCK_EX)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil // a step was faster
	}
	if err != nil {
		return false, err
	}
	// Whoever waits for the lock finds that it is another one now.
	away := filepath.Join(filepath.Dir(dir), cacheGone+filepath.Base(dir))
	err = os.RemoveAll(away) // of somebody who was killed
	if err == nil {
		err = os.Rename(dir, away)
	}
	if err = errors.Join(err, os.RemoveAll(away), lock.Close()); err != nil {
		return false, err
	}
	_ = removeEmptyBase(filepath.Dir(dir)) // others may use it
	return true, nil
}

// sweepMounts removes what somebody who was killed has begun to remove.
func (b *Builder) sweepMounts() error {
	left, err := filepath.Glob(filepath.Join(b.cache.mountsDir(), "*", cacheGone+"*"))
	if err != nil {
		return fmt.Errorf("sweep cache mounts: %w", err)
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("sweep cache mounts: %w", err)
		}
		_ = removeEmptyBase(filepath.Dir(dir)) // others may use it
	}
	return nil
}

// removeEmptyBase removes what is left of a cache without directories.
func removeEmptyBase(base string) error {
	if dirs, err := filepath.Glob(filepath.Join(base, "[0-9]*")); err != nil || len(dirs) > 0 {
		return err
	}
	_ = os.Remove(filepath.Join(base, cacheInfoFile))
	return os.Remove(base)
}
