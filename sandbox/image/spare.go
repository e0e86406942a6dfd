package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/layer"
)

// Spare is what somebody who counts uses, a build cache, has no more use for.
type Spare struct {
	Images []digest.Digest // go if they have no name; not their layers
	Layers []digest.Digest // go if no image has them
	// Except is the caller's own hold: it does not protect what it gives away.
	Except *Hold
}

// Drop removes what is spare and nobody else needs: no grace is given. What was
// used since somebody else took a hold stays. freed counts bytes of layer tars
// and blobs.
func (s *Store) Drop(ctx context.Context, spare Spare) (freed int64, err error) {
	var doomed []record
	for _, id := range spare.Images {
		r, err := s.removeNameless(id)
		if err != nil {
			return 0, fmt.Errorf("drop images: %w", err)
		}
		doomed = append(doomed, record{ID: r.ID, Manifest: r.Manifest}) // others may count on its layers
	}
	doomed = append(doomed, record{Layers: spare.Layers})
	freed, err = s.collectFor(ctx, doomed, spare.Except)
	if err != nil {
		return freed, fmt.Errorf("drop layers: %w", err)
	}
	return freed, nil
}

func (s *Store) removeNameless(id digest.Digest) (r record, err error) {
	err = s.locked(unix.LOCK_EX, func() error {
		names, err := s.readNames()
		if err != nil || len(namesOf(id, names)) > 0 {
			return err
		}
		if r, err = s.readRecord(id); errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return ignoreMissing(os.Remove(s.imagePath(id)))
	})
	return r, err
}

// CheckLayer reads a whole layer that was committed here, and removes it if it
// is not what its name says: the error is then ErrLayerNotFound, and whoever can
// make the layer may make it again.
func (s *Store) CheckLayer(ctx context.Context, diffID digest.Digest) error {
	info, err := s.layerInfo(diffID)
	if err == nil {
		err = s.hashLayer(ctx, info)
	}
	if err == nil || errors.Is(err, ErrLayerNotFound) || ctx.Err() != nil {
		return err
	}
	w, workErr := s.newWorkspace()
	if workErr != nil {
		return workErr
	}
	if lockErr := s.locked(unix.LOCK_EX, func() error { return s.bury(w, s.layerPath(diffID)) }); lockErr != nil {
		return errors.Join(lockErr, w.remove())
	}
	return errors.Join(fmt.Errorf("layer %s is damaged (%w): %w", diffID, err, ErrLayerNotFound), w.remove())
}

// hashLayer packs a layer as Commit did.
func (s *Store) hashLayer(ctx context.Context, info layerInfo) error {
	out := newSink(nil)
	if err := layer.Pack(ctx, filepath.Join(s.layerPath(info.DiffID), "fs"), out); err != nil {
		return err
	}
	if out.digest() != info.DiffID {
		return fmt.Errorf("it is %s", out.digest())
	}
	return nil
}
