package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image/layer"
)

// Import makes an image of one layer from the tar of a root file system, plain
// or compressed by gzip, zstd, xz or bzip2. cfg says how to run it; Created is now if nil.
// The one entry of its History, or one that is made, says where it came from.
// name may be empty.
func (s *Store) Import(ctx context.Context, r io.Reader, name string, cfg Config) (Image, error) {
	img, err := s.importLayer(ctx, r, name, cfg)
	if err != nil {
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	return img, nil
}

func (s *Store) importLayer(ctx context.Context, r io.Reader, name string, cfg Config) (img Image, err error) {
	var names []string
	if name != "" {
		names = append(names, name)
	}
	if _, err := shortNames(names); err != nil { // before the work
		return Image{}, err
	}
	hold, err := s.Hold()
	if err != nil {
		return Image{}, err
	}
	w, err := s.newWorkspace()
	if err != nil {
		return Image{}, errors.Join(err, hold.Release())
	}
	defer func() { err = errors.Join(err, w.remove(), hold.Release()) }()
	u, err := unpackVerified(ctx, w.path("fs"), r, "")
	if err != nil {
		return Image{}, err
	}
	s.step("import unpacked")
	// The layer gets the digest of the tar that Pack makes, so that the one
	// that came need not be kept.
	tar := newSink(nil)
	if err := layer.Pack(ctx, u.tree, tar); err != nil {
		return Image{}, err
	}
	u.info.DiffID, u.info.Size = tar.digest(), tar.n
	if err := s.publishLayer(w, u.tree, u.info); err != nil {
		return Image{}, err
	}
	if cfg.Created == nil {
		now := time.Now().UTC()
		cfg.Created = &now
	}
	if len(cfg.History) == 0 {
		cfg.History = []ocispec.History{{Comment: "Imported from -"}}
	}
	if cfg.History[0].Created == nil {
		cfg.History[0].Created = cfg.Created
	}
	return s.Put(ctx, cfg, []digest.Digest{u.info.DiffID}, names...)
}
