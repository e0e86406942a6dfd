package image

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// grace is how long something that no image refers to stays although nobody
// holds it: a killed pull that is tried again finds its layers, a build cache
// keeps what it uses from one day to the next.
const grace = 24 * time.Hour

// collector decides what may go. The store is locked exclusively while it
// lives.
type collector struct {
	used     map[string]bool // hex digests that images refer to
	doomed   map[string]bool // those that a removed image referred to: no grace
	heldFrom time.Time       // what was used later is held; zero: no hold
	exact    bool            // the doomed are what a Drop names, by times of this machine's own
	now      time.Time
}

func (c *collector) mayGo(hex string, used time.Time) bool {
	// A clock that was set back a little must not end a hold.
	slack := time.Minute
	if c.exact && c.doomed[hex] {
		slack = 0
	}
	if c.used[hex] || !c.heldFrom.IsZero() && used.After(c.heldFrom.Add(-slack)) {
		return false
	}
	return c.doomed[hex] || used.Before(c.now.Add(-grace))
}

// collect removes layers and blobs that nothing refers to. Under the lock they
// are only moved into a workspace; deleting comes after.
func (s *Store) collect(ctx context.Context, doomed []record) (freed int64, err error) {
	return s.collectFor(ctx, doomed, nil)
}

// collectFor collects for the owner of a hold, whose own it is no obstacle to.
func (s *Store) collectFor(ctx context.Context, doomed []record, own *Hold) (freed int64, err error) {
	w, err := s.newWorkspace()
	if err != nil {
		return 0, err
	}
	err = s.locked(unix.LOCK_EX, func() error {
		c, err := s.newCollector(doomed, own)
		if err != nil {
			return err
		}
		layers, err := s.collectLayers(ctx, w, c)
		if err != nil {
			return err
		}
		blobs, err := s.collectBlobs(w, c)
		if err != nil {
			return err
		}
		partials, err := s.collectPartials(c)
		freed = layers + blobs + partials
		return err
	})
	s.step("garbage moved")
	return freed, errors.Join(err, w.remove())
}

func (s *Store) newCollector(doomed []record, own *Hold) (*collector, error) {
	c := &collector{used: map[string]bool{}, doomed: map[string]bool{}, now: time.Now(), exact: own != nil}
	var err error
	if c.heldFrom, err = s.liveLeases(own); err != nil {
		return nil, err
	}
	records, err := s.readRecords()
	if err != nil {
		return nil, err
	}
	for _, r := range doomed {
		r.mark(c.doomed)
	}
	for _, r := range records {
		r.mark(c.used)
	}
	return c, nil
}

func (r record) mark(set map[string]bool) {
	for _, d := range append([]digest.Digest{r.ID, r.Manifest}, r.Layers...) {
		if checkDigest(d) == nil {
			set[d.Encoded()] = true
		}
	}
}

func (s *Store) collectLayers(ctx context.Context, w *workspace, c *collector) (freed int64, err error) {
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		st, err := e.Info()
		if err != nil {
			return freed, err
		}
		info, blob := s.storedInfo(e.Name())
		if !c.mayGo(e.Name(), st.ModTime()) {
			if blob != nil {
				c.used[blob.Digest.Encoded()] = true
			}
			continue
		}
		if blob != nil {
			c.doomed[blob.Digest.Encoded()] = true
		}
		if err := s.bury(w, s.path("layers", e.Name())); err != nil {
			return freed, err
		}
		freed += info.Size
	}
	return freed, nil
}

// storedInfo reads layer.json even if the layer cannot be relied on.
func (s *Store) storedInfo(hex string) (info layerInfo, blob *ocispec.Descriptor) {
	data, err := os.ReadFile(s.path("layers", hex, "layer.json"))
	if err != nil || json.Unmarshal(data, &info) != nil || info.Blob == nil || checkDigest(info.Blob.Digest) != nil {
		return info, nil
	}
	return info, info.Blob
}

func (s *Store) collectBlobs(w *workspace, c *collector) (freed int64, err error) {
	entries, err := os.ReadDir(s.path("blobs", "sha256"))
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // a temporary file of atomicfile
		}
		if err != nil {
			return freed, err
		}
		if !c.mayGo(e.Name(), st.ModTime()) {
			continue
		}
		if err := s.bury(w, s.path("blobs", "sha256", e.Name())); err != nil {
			return freed, err
		}
		freed += st.Size()
	}
	return freed, nil
}

// collectPartials removes what pulls that were cut off left, if nobody went on
// with it for long.
func (s *Store) collectPartials(c *collector) (freed int64, err error) {
	entries, err := os.ReadDir(s.path("partial"))
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		f, err := os.OpenFile(s.path("partial", e.Name()), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return freed, err
		}
		st, err := f.Stat()
		if err == nil && st.ModTime().Before(c.now.Add(-grace)) && flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = ignoreMissing(os.Remove(f.Name()))
			freed += st.Size()
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return freed, err
		}
	}
	return freed, nil
}
