package image

import (
	"errors"
	"io/fs"
	"maps"
	"os"

	"github.com/opencontainers/go-digest"
)

// digests.json says which image a digest of a registry means: the digest of an
// index, which is in no image's own documents, of the last platform that was
// pulled by it. It is an aid to find an image, no root: it keeps none alive,
// and what points to an image that is gone means nothing.

func (s *Store) readDigests() (map[string]digest.Digest, error) {
	digests, err := s.readPointers("digests.json")
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(digests, func(_ string, id digest.Digest) bool {
		if checkDigest(id) != nil {
			return true
		}
		_, err := os.Stat(s.imagePath(id))
		return errors.Is(err, fs.ErrNotExist)
	})
	return digests, nil
}

// addDigests lets names with a digest point to an image; the store is locked
// exclusively.
func (s *Store) addDigests(id digest.Digest, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	digests, err := s.readDigests()
	if err != nil {
		return err
	}
	changed := false
	for _, name := range names {
		changed = changed || digests[name] != id
		digests[name] = id
	}
	if !changed {
		return nil
	}
	return s.writeDigests(digests)
}

func (s *Store) writeDigests(digests map[string]digest.Digest) error {
	return s.writePointers("digests.json", digests)
}

// dropDigests forgets what the repository of a name that was taken from an
// image calls it, unless the image has another name there. The store is locked
// exclusively.
func (s *Store) dropDigests(taken string, id digest.Digest, names map[string]digest.Digest) error {
	r, err := parseName(taken)
	if err != nil {
		return nil // it was an id
	}
	for _, name := range namesOf(id, names) {
		if other, err := parseName(name); err == nil && other.host == r.host && other.path == r.path {
			return nil
		}
	}
	digests, err := s.readDigests()
	if err != nil {
		return err
	}
	before := len(digests)
	maps.DeleteFunc(digests, func(name string, target digest.Digest) bool {
		other, err := parseName(name)
		return target == id && err == nil && other.host == r.host && other.path == r.path
	})
	if len(digests) == before {
		return nil
	}
	return s.writeDigests(digests)
}
