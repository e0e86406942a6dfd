package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
)

// record is what images/H.json holds. Its existence says that the config and
// all layers are in the store and were synced.
type record struct {
	ID       digest.Digest   `json:"id"`
	Manifest digest.Digest   `json:"manifest"`
	Layers   []digest.Digest `json:"layers"`
	Size     int64           `json:"size"`
}

func (s *Store) readNames() (map[string]digest.Digest, error) { return s.readPointers("names.json") }

// readPointers reads a file that leads from names to images; a missing one is empty.
func (s *Store) readPointers(file string) (map[string]digest.Digest, error) {
	index := map[string]digest.Digest{}
	data, err := os.ReadFile(s.path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return index, nil
}

// writeNames writes the index; the store is locked exclusively.
func (s *Store) writeNames(names map[string]digest.Digest) error {
	return s.writePointers("names.json", names)
}

func (s *Store) writePointers(file string, index map[string]digest.Digest) error {
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(s.path(file), data, 0o600)
}

func (s *Store) readRecord(id digest.Digest) (record, error) {
	var r record
	data, err := os.ReadFile(s.imagePath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%s: %w", id, ErrNotFound)
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read record of image %s: %w", id, err)
	}
	return r, nil
}

func (s *Store) writeRecord(r record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteFile(s.imagePath(r.ID), data, 0o600)
}

func (s *Store) readRecords() ([]record, error) {
	entries, err := os.ReadDir(s.path("images"))
	if err != nil {
		return nil, err
	}
	var records []record
	for _, e := range entries {
		hex, ok := strings.CutSuffix(e.Name(), ".json")
		id := digest.NewDigestFromEncoded(digest.SHA256, hex)
		if !ok || checkDigest(id) != nil { // a temporary file of atomicfile
			continue
		}
		r, err := s.readRecord(id)
		if errors.Is(err, ErrNotFound) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

// index is what refers to images from outside.
type index struct {
	names, digests map[string]digest.Digest
}

func (s *Store) readIndex() (x index, err error) {
	if x.names, err = s.readNames(); err != nil {
		return x, err
	}
	x.digests, err = s.readDigests()
	return x, err
}

// completed reads the rest of the index for a record.
func (s *Store) completed(r record, names map[string]digest.Digest) (Image, error) {
	digests, err := s.readDigests()
	if err != nil {
		return Image{}, err
	}
	return s.image(r, index{names, digests})
}

// image completes a record.
func (s *Store) image(r record, x index) (Image, error) {
	img := Image{ID: r.ID, Manifest: r.Manifest, Layers: r.Layers, Size: r.Size}
	data, err := os.ReadFile(s.blobPath(r.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return img, fmt.Errorf("%s: %w", r.ID, ErrNotFound)
	}
	if err != nil {
		return img, err
	}
	if err := json.Unmarshal(data, &img.Config); err != nil {
		return img, fmt.Errorf("read config of image %s: %w", r.ID, err)
	}
	img.Names, img.Digests = namesOf(r.ID, x.names), namesOf(r.ID, x.digests)
	return img, nil
}

// List gives all images, ordered by their first name, those without a name last.
func (s *Store) List() ([]Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	records, err := s.readRecords()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var images []Image
	for _, r := range records {
		img, err := s.image(r, x)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(sortKey(a), sortKey(b)) })
	return images, nil
}

func sortKey(img Image) string {
	if len(img.Names) > 0 {
		return "0" + img.Names[0]
	}
	return "1" + img.ID.String()
}

// Get finds an image by its name ("web:12", "debian" means debian:latest), its id, a prefix of at
// least two digits of its id that no other image has, or the digest of its
// manifest ("sha256:…" or "name@sha256:…"). A name wins over an id prefix.
// The error is ErrNotFound or ErrAmbiguous if it can be none.
func (s *Store) Get(ref string) (Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return Image{}, fmt.Errorf("get image: %w", err)
	}
	id, err := s.resolve(ref, x)
	if err != nil {
		return Image{}, fmt.Errorf("get image: %w", err)
	}
	r, err := s.readRecord(id)
	if err != nil {
		return Image{}, fmt.Errorf("get image: %w", err)
	}
	return s.image(r, x)
}

// resolve finds the id that ref means.
func (s *Store) resolve(ref string, x index) (digest.Digest, error) {
	parsed, nameErr := parseName(ref)
	if nameErr == nil && !strings.HasPrefix(ref, "sha256:") {
		if id, ok := x.names[parsed.short()]; ok {
			return id, nil
		}
		if id, ok := x.digests[parsed.short()]; ok {
			return id, nil
		}
	}
	byID := isID(ref)
	if !byID && nameErr != nil {
		return "", nameErr
	}
	if !byID && parsed.digest == "" {
		return "", fmt.Errorf("%s: %w", parsed.short(), ErrNotFound)
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if !byID {
		hex = parsed.digest.Encoded()
	}
	return s.resolveHex(ref, hex, byID, x)
}

// resolveHex finds an image by the digest of its config, its manifest or the
// index it was pulled by, or, if prefix is set, by the begin of its id.
func (s *Store) resolveHex(ref, hex string, prefix bool, x index) (digest.Digest, error) {
	records, err := s.readRecords()
	if err != nil {
		return "", err
	}
	found := map[digest.Digest]bool{}
	for _, r := range records {
		exact := len(hex) == 64 && (r.Manifest.Encoded() == hex || r.ID.Encoded() == hex)
		if exact || prefix && strings.HasPrefix(r.ID.Encoded(), hex) {
			found[r.ID] = true
		}
	}
	if len(found) == 0 && len(hex) == 64 {
		for name, id := range x.digests {
			if strings.HasSuffix(name, "@sha256:"+hex) {
				found[id] = true
			}
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%s: %w", ref, ErrNotFound)
	case 1:
		return slices.Collect(maps.Keys(found))[0], nil
	}
	return "", fmt.Errorf("%s: %w", ref, ErrAmbiguous)
}

// Tag lets name point to the image ref. An image that had the name keeps its
// id and its other names.
func (s *Store) Tag(ref, name string) error {
	parsed, err := parseName(name)
	if err != nil {
		return fmt.Errorf("tag image: %w", err)
	}
	if parsed.digest != "" {
		return fmt.Errorf("tag image: %q: a name to give has no digest", name)
	}
	err = s.locked(unix.LOCK_EX, func() error {
		x, err := s.readIndex()
		if err != nil {
			return err
		}
		names := x.names
		id, err := s.resolve(ref, x)
		if err != nil {
			return err
		}
		if _, err := s.readRecord(id); err != nil {
			return err
		}
		if names[parsed.short()] == id {
			return nil
		}
		names[parsed.short()] = id
		return s.writeNames(names)
	})
	if err != nil {
		return fmt.Errorf("tag image: %w", err)
	}
	return nil
}
