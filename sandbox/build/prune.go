package build

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// CacheEntry is one step that is remembered.
type CacheEntry struct {
	ID          string        `json:"id"` // its key
	Layer       digest.Digest `json:"layer,omitempty"`
	Text        string        `json:"text"` // of the instruction
	Size        int64         `json:"size"` // bytes on disk
	Created     time.Time     `json:"created"`
	Used        time.Time     `json:"used"`        // last
	Reclaimable bool          `json:"reclaimable"` // no image that stays has the layer
}

// CacheUsage is what the cache takes.
type CacheUsage struct {
	Steps []CacheEntry `json:"steps"` // that which was not used for longest first
	// CacheMounts are the directories of cache mounts, that which was not used for
	// longest first, and Mounts the bytes in them. Total is of everything, each layer
	// once; what images have that stay is no part of Reclaimable, nor are mounts that
	// a step uses.
	CacheMounts []CacheMount `json:"cache_mounts"`
	Mounts      int64        `json:"mounts"`
	Total       int64        `json:"total"`
	Reclaimable int64        `json:"reclaimable"`
}

// Usage lists what is remembered.
func (b *Builder) Usage() (CacheUsage, error) {
	u := CacheUsage{Steps: []CacheEntry{}, CacheMounts: []CacheMount{}}
	list, err := b.cache.entries()
	if err != nil {
		return u, err
	}
	free, size, err := b.reclaimable(list)
	if err != nil {
		return u, err
	}
	mounts, err := b.CacheMounts()
	if err != nil {
		return u, err
	}
	u.CacheMounts, u.Reclaimable = append(u.CacheMounts, mounts...), size
	for _, m := range mounts {
		if u.Mounts += m.Bytes; !m.InUse {
			u.Reclaimable += m.Bytes
		}
	}
	spare := map[string]bool{}
	for _, x := range free {
		spare[x.Key] = true
	}
	seen := map[digest.Digest]bool{"": true}
	for _, x := range list {
		if x.Image {
			continue
		}
		u.Steps = append(u.Steps, CacheEntry{ID: x.Key, Layer: x.Layer, Text: x.Text, Size: x.Disk, Created: x.Created, Used: x.Used, Reclaimable: spare[x.Key]})
		if !seen[x.Layer] {
			seen[x.Layer] = true
			u.Total += x.Disk
		}
	}
	u.Total += u.Mounts
	return u, nil
}

// What the cache consists of, in BuildKit's words.
const (
	TypeStep       = "regular"
	TypeCacheMount = "exec.cachemount"
)

// PruneOptions say what of the cache goes.
type PruneOptions struct {
	// All forgets also the steps whose layers images have, and what is known of
	// contexts and files.
	All bool
	// Keep is how many bytes may stay; 0: nothing that need not.
	Keep int64
	// Until spares what was used in the last so long.
	Until time.Duration
	// Type is TypeStep or TypeCacheMount: only such; empty: all.
	Type string
	// IDs, if there are any, spare everything else: the beginning of a step's key,
	// at least 12 digits, or the whole id of a cache mount.
	IDs []string
}

// PruneReport is what has gone.
type PruneReport struct {
	Steps  int   `json:"steps"`
	Mounts int   `json:"mounts"` // directories of cache mounts
	Freed  int64 `json:"freed"`  // bytes on disk
}

// pruning is a Prune under way.
type pruning struct {
	PruneOptions
	limit time.Time // what was used after it stays
	PruneReport
}

// some tells whether the options choose from the cache.
func (o PruneOptions) some() bool {
	return o.Keep > 0 || o.Until > 0 || o.Type != "" || len(o.IDs) > 0
}

func (o PruneOptions) check() error {
	if o.Type != "" && o.Type != TypeStep && o.Type != TypeCacheMount {
		return fmt.Errorf("type %q: the build cache has %s and %s", o.Type, TypeStep, TypeCacheMount)
	}
	return nil
}

func (p *pruning) recent(used time.Time) bool { return p.Until > 0 && used.After(p.limit) }

// keepStep says what stays of the steps and images, and counts the others. An image
// goes with all: it has no id that people see here.
func (p *pruning) keepStep(x kept) bool {
	if p.Type == TypeCacheMount || p.recent(x.Used) || len(p.IDs) > 0 && (x.Image || !slices.ContainsFunc(p.IDs, x.isCalled)) {
		return true
	}
	if !x.Image {
		p.Steps++
	}
	return false
}

// keyDigits are how many digits of a key say which step is meant, at least.
const keyDigits = 12

func (x kept) isCalled(id string) bool { return len(id) >= keyDigits && strings.HasPrefix(x.Key, id) }

func (p *pruning) keepMount(c CacheMount) bool {
	return p.Type == TypeStep || p.recent(c.Used) || len(p.IDs) > 0 && !slices.Contains(p.IDs, c.ID)
}

// Prune removes what is remembered, that which was not used for longest first, and
// then cache mounts. What a build uses at this moment stays: layers are nobody's when
// it ends.
func (b *Builder) Prune(ctx context.Context, o PruneOptions) (r PruneReport, err error) {
	if err := o.check(); err != nil {
		return r, fmt.Errorf("prune build cache: %w", err)
	}
	hold, err := b.store.Hold()
	if err != nil {
		return r, fmt.Errorf("prune build cache: %w", err)
	}
	defer func() { err = errors.Join(err, hold.Release()) }()
	list, err := b.cache.entries()
	if err != nil {
		return r, err
	}
	spare, size, err := b.reclaimable(list)
	if err != nil {
		return r, err
	}
	if !o.All {
		list = spare
	}
	need := int64(math.MaxInt64)
	if o.Keep > 0 {
		mounts, err := diskOf(b.cache.mountsDir())
		if err != nil {
			return r, err
		}
		need = size + mounts - o.Keep
	}
	p := &pruning{PruneOptions: o, limit: time.Now().Add(-o.Until)}
	if p.Freed, err = b.evict(ctx, list, evicting{need: need, keep: p.keepStep, hold: hold}); err != nil {
		return p.PruneReport, err
	}
	n, freed, err := b.evictMounts(ctx, need-p.Freed, p.keepMount)
	p.Mounts, p.Freed = n, p.Freed+freed
	if err != nil || !o.All || o.some() {
		return p.PruneReport, err
	}
	for _, kind := range []string{"content", "sums", "bases"} {
		if err := os.RemoveAll(filepath.Join(b.cache.dir, kind)); err != nil {
			return p.PruneReport, fmt.Errorf("prune build cache: %w", err)
		}
	}
	return p.PruneReport, nil
}
