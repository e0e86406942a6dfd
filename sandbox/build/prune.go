package build

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
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
	// Mounts are the bytes of cache mounts. Total is of everything, each layer
	// once; what images have that stay is no part of Reclaimable.
	Mounts      int64 `json:"mounts"`
	Total       int64 `json:"total"`
	Reclaimable int64 `json:"reclaimable"`
}

// Usage lists what is remembered.
func (b *Builder) Usage() (CacheUsage, error) {
	u := CacheUsage{Steps: []CacheEntry{}}
	list, err := b.cache.entries()
	if err != nil {
		return u, err
	}
	free, size, err := b.reclaimable(list)
	if err != nil {
		return u, err
	}
	if u.Mounts, err = diskOf(b.cache.mounts()); err != nil {
		return u, err
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
	u.Total, u.Reclaimable = u.Total+u.Mounts, size+u.Mounts
	return u, nil
}

// PruneOptions say what of the cache goes.
type PruneOptions struct {
	// All forgets also the steps whose layers images have, and what is known of
	// contexts and files.
	All bool
	// Keep is how many bytes may stay; 0: nothing that need not.
	Keep int64
	// Until spares what was used in the last so long.
	Until time.Duration
}

// PruneReport is what has gone.
type PruneReport struct {
	Steps int   `json:"steps"`
	Freed int64 `json:"freed"` // bytes on disk
}

// Prune removes what is remembered, that which was not used for longest first.
// Layers that a build uses at this moment stay, and are nobody's when it ends.
func (b *Builder) Prune(ctx context.Context, o PruneOptions) (r PruneReport, err error) {
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
		need = size - o.Keep
	}
	limit := time.Now().Add(-o.Until)
	keep := func(x kept) bool {
		stays := o.Until > 0 && x.Used.After(limit)
		if !stays && !x.Image {
			r.Steps++
		}
		return stays
	}
	if r.Freed, err = b.evict(ctx, list, evicting{need: need, keep: keep, hold: hold}); err != nil || !o.All || o.Keep > 0 || o.Until > 0 {
		return r, err
	}
	for _, kind := range []string{"content", "sums", "bases"} {
		if err := os.RemoveAll(filepath.Join(b.cache.dir, kind)); err != nil {
			return r, fmt.Errorf("prune build cache: %w", err)
		}
	}
	return r, nil
}
