package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Remove takes a name from an image, and removes the image with the last one.
// A ref that is an id removes the image with its name; with several names only
// if force is set (ErrSeveralNames). Layers that no other image has go too,
// except those under a Hold. The caller makes sure that no container uses the
// image.
func (s *Store) Remove(ref string, force bool) error {
	var doomed []record
	err := s.locked(unix.LOCK_EX, func() error {
		x, err := s.readIndex()
		if err != nil {
			return err
		}
		names := x.names
		id, err := s.resolve(ref, x)
		if err != nil {
			return err
		}
		r, err := s.readRecord(id)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		r.ID = id
		last, err := untag(names, ref, id, force)
		if err != nil {
			return err
		}
		if err := s.writeNames(names); err != nil {
			return err
		}
		s.step("name removed")
		if last {
			doomed = append(doomed, r)
			return ignoreMissing(os.Remove(s.imagePath(id)))
		}
		return s.dropDigests(ref, id, names)
	})
	s.step("record removed")
	if err == nil && len(doomed) > 0 {
		_, err = s.collect(context.Background(), doomed)
	}
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	return nil
}

// untag takes from names what ref means, and says whether the image has none
// left.
func untag(names map[string]digest.Digest, ref string, id digest.Digest, force bool) (last bool, err error) {
	own := namesOf(id, names)
	if parsed, err := parseName(ref); err == nil && slices.Contains(own, parsed.short()) {
		delete(names, parsed.short())
		return len(own) == 1, nil
	}
	if len(own) > 1 && !force {
		return false, fmt.Errorf("%s: %w: %v", ref, ErrSeveralNames, own)
	}
	for _, name := range own {
		delete(names, name)
	}
	return true, nil
}

// namesOf gives the names of one image, sorted.
func namesOf(id digest.Digest, names map[string]digest.Digest) []string {
	var own []string
	for name, target := range names {
		if target == id {
			own = append(own, name)
		}
	}
	slices.Sort(own)
	return own
}

// Prune removes every image for which keep says false (nil: those without a
// name), then all layers and blobs that no image has, except those under a
// Hold, and those unused for less than an hour that no removed image had.
// freed counts bytes of layers and blobs. keep may use the store; an image
// that gets another name meanwhile stays.
func (s *Store) Prune(ctx context.Context, keep func(Image) bool) (freed int64, err error) {
	if keep == nil {
		keep = func(img Image) bool { return len(img.Names) > 0 }
	}
	images, err := s.List()
	if err != nil {
		return 0, fmt.Errorf("prune images: %w", err)
	}
	var doomed []record
	for _, img := range images {
		if keep(img) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("prune images: %w", err)
		}
		removed, err := s.removeUnchanged(img)
		if err != nil {
			return 0, fmt.Errorf("prune images: %w", err)
		}
		if removed {
			doomed = append(doomed, record{ID: img.ID, Manifest: img.Manifest, Layers: img.Layers})
		}
	}
	s.step("images pruned")
	freed, err = s.collect(ctx, doomed)
	if err != nil {
		return freed, fmt.Errorf("prune images: %w", err)
	}
	return freed, nil
}

// removeUnchanged removes an image with its names, unless they are not those
// of img any more.
func (s *Store) removeUnchanged(img Image) (removed bool, err error) {
	err = s.locked(unix.LOCK_EX, func() error {
		names, err := s.readNames()
		if err != nil {
			return err
		}
		own := namesOf(img.ID, names)
		if !slices.Equal(own, img.Names) {
			return nil
		}
		for _, name := range own {
			delete(names, name)
		}
		if len(own) > 0 {
			if err := s.writeNames(names); err != nil {
				return err
			}
		}
		removed = true
		return ignoreMissing(os.Remove(s.imagePath(img.ID)))
	})
	return removed, err
}
