package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// fresh tells whether a stage takes nothing from the cache.
func (o Options) fresh(st *stage) bool {
	return o.NoCache || slices.ContainsFunc(o.NoCacheFilter, func(name string) bool {
		return strings.EqualFold(name, st.name) || name == fmt.Sprint(st.index)
	})
}

// room is what a build knows of the space that the cache takes.
type room struct {
	mu      sync.Mutex
	limit   int64 // 0: not looked at yet
	reserve int64 // of the file system, that stays free
	taken   int64 // when it was counted last, and what this build added since
	used    map[string]record
	content map[string]string // what files picked from layers are, by where
}

// noteUse remembers what this build needs, which must stay.
func (b *session) noteUse(key string, rec record) {
	b.room.mu.Lock()
	defer b.room.mu.Unlock()
	if b.room.used == nil {
		b.room.used = map[string]record{}
	}
	if _, known := b.room.used[key]; !known {
		b.room.used[key] = rec
		b.room.taken += rec.Disk
	}
}

func (b *session) noteContent(where, content string) {
	b.room.mu.Lock()
	defer b.room.mu.Unlock()
	if b.room.content == nil {
		b.room.content = map[string]string{}
	}
	b.room.content[where] = content
}

// madeNow tells whether this build has made or found a step already, for another
// platform or stage.
func (b *session) madeNow(key string) bool {
	b.room.mu.Lock()
	defer b.room.mu.Unlock()
	_, yes := b.room.used[key]
	return yes
}

// makeRoom lets the steps go that were not used for longest, until the cache has
// a quarter of its limit left and the file system its reserve. Nothing is done
// later or at leisure: a burst of builds would win against that. What is in use
// stays, so a step may still find too little room, and only then.
func (b *session) makeRoom(ctx context.Context) error {
	b.evicting.Lock()
	defer b.evicting.Unlock()
	b.room.mu.Lock()
	defer b.room.mu.Unlock()
	size, free, err := b.space()
	if err != nil {
		return err
	}
	first := b.room.limit == 0
	if first {
		b.room.limit, b.room.reserve = cacheLimit(b.o.CacheLimit, size), min(size/50, 1<<30)
	}
	goal := b.room.limit - b.room.limit/4
	if !first && b.room.taken <= goal && free > b.room.reserve {
		return nil
	}
	list, err := b.cache.entries()
	if err != nil {
		return err
	}
	list, steps, err := b.reclaimable(list)
	if err != nil {
		return err
	}
	mounts, err := diskOf(b.cache.mountsDir())
	if err != nil {
		return err
	}
	b.room.taken = steps + mounts
	need := max(b.room.taken-goal, b.room.reserve-free)
	if need <= 0 {
		return nil
	}
	keep := func(e kept) bool { _, used := b.room.used[e.Key]; return used }
	freed, err := b.evict(ctx, list, evicting{need: need, keep: keep, hold: b.hold})
	if err == nil && freed < need { // cache mounts last: nothing else knows what is in them
		_, more, mountErr := b.evictMounts(ctx, need-freed, func(c CacheMount) bool { return c.Used.After(b.begun) })
		freed, err = freed+more, mountErr
	}
	b.room.taken -= freed
	if _, free, spaceErr := b.space(); err == nil && spaceErr == nil && free < b.room.reserve {
		return fmt.Errorf("no space: %d MiB are left for the build, %d must stay free, and nothing in the build cache can go",
			free>>20, b.room.reserve>>20)
	}
	return err
}

func cacheLimit(asked, disk int64) int64 {
	if asked > 0 {
		return asked
	}
	return min(max(disk/10, 2<<30), 50<<30)
}

// space is the size of the store's file system, and what others than root may
// still take of it.
func (b *Builder) space() (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(b.cache.dir, &st); err != nil {
		return 0, 0, fmt.Errorf("look at free space: %w", err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// kept is a step that is remembered, or an image that a build made.
type kept struct {
	Key string
	record
	Image bool
	Used  time.Time
}

// entries lists what is remembered, that which was not used for longest first.
func (c cache) entries() ([]kept, error) {
	var list []kept
	err := filepath.WalkDir(filepath.Join(c.dir, "steps"), func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // it has just gone
		}
		rec, _ := readRecord(file) // a damaged one can go like any other
		list = append(list, kept{Key: d.Name(), record: rec, Used: info.ModTime()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list build cache: %w", err)
	}
	images, err := os.ReadDir(filepath.Join(c.dir, "images"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list build cache: %w", err)
	}
	for _, d := range images {
		if info, err := d.Info(); err == nil {
			list = append(list, kept{Key: d.Name(), Image: true, Used: info.ModTime()})
		}
	}
	slices.SortFunc(list, func(a, b kept) int { return a.Used.Compare(b.Used) })
	return list, nil
}

// evicting says what may go.
type evicting struct {
	need int64           // bytes: so much, or all that can
	keep func(kept) bool // entries that stay
	hold *image.Hold     // of the caller
}

// evict forgets entries, the first of the list first, and removes their layers
// where nothing else has them. Layers of images that stay are not in the list
// (see reclaimable).
func (b *Builder) evict(ctx context.Context, list []kept, e evicting) (freed int64, err error) {
	users := map[digest.Digest]int{}
	for _, x := range list {
		users[x.Layer]++
	}
	for len(list) > 0 && freed < e.need {
		if err := context.Cause(ctx); err != nil {
			return freed, err
		}
		var spare image.Spare
		sizes := map[digest.Digest]int64{}
		for hoped := int64(0); len(list) > 0 && freed+hoped < e.need; list = list[1:] { // few collections: each looks at the whole store
			x := list[0]
			gone, err := b.forget(x, e.keep)
			if err != nil {
				return freed, err
			}
			if !gone {
				continue
			}
			if x.Image {
				spare.Images = append(spare.Images, digest.NewDigestFromEncoded(digest.SHA256, x.Key))
			} else if users[x.Layer]--; x.Layer != "" && users[x.Layer] == 0 {
				spare.Layers, sizes[x.Layer] = append(spare.Layers, x.Layer), x.Disk
				hoped += x.Disk
			}
		}
		if len(spare.Images)+len(spare.Layers) > 0 {
			if err := b.drop(ctx, spare, e.hold); err != nil {
				return freed, err
			}
		}
		for _, id := range spare.Layers {
			if !b.store.HasLayer(id) {
				freed += sizes[id]
			}
		}
	}
	return freed, nil
}

// reclaimable takes from a list what images that stay have: those with a name,
// and those of containers. To forget those steps would free nothing. size is
// that of the rest, each layer once.
func (b *Builder) reclaimable(list []kept) (rest []kept, size int64, err error) {
	images, err := b.store.List()
	if err != nil {
		return nil, 0, err
	}
	pinned := map[digest.Digest]bool{}
	for _, img := range images {
		if len(img.Names) > 0 || b.inUse != nil && b.inUse(img) {
			for _, id := range append(img.Layers, img.ID) {
				pinned[id] = true
			}
		}
	}
	seen := map[digest.Digest]bool{"": true}
	for _, x := range list {
		id := x.Layer
		if x.Image {
			id = digest.NewDigestFromEncoded(digest.SHA256, x.Key)
		}
		if pinned[id] {
			continue
		}
		rest = append(rest, x)
		if !seen[id] {
			seen[id] = true
			size += x.Disk
		}
	}
	return rest, size, nil
}

func (b *Builder) drop(ctx context.Context, spare image.Spare, hold *image.Hold) error {
	spare.Except = hold
	_, err := b.store.Drop(ctx, spare)
	return err
}

// forget removes an entry's file, unless it has to stay.
func (b *Builder) forget(x kept, keep func(kept) bool) (gone bool, err error) {
	if keep(x) {
		return false, nil
	}
	file := b.cache.file("steps", x.Key)
	if x.Image {
		file = b.cache.imageFile(x.Key)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("prune build cache: %w", err)
	}
	return true, nil
}

// diskOf adds up what the files below a directory take.
func diskOf(dir string) (int64, error) {
	_, disk, err := shapeOf(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return disk, err
}
