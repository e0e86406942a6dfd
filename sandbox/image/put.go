package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"naru/internal/decompress"
)

// Put makes an image of a config and layers of the store, bottom first, and
// gives it the names. Config.RootFS is filled; architecture and OS are this
// machine's if empty. The same config and layers give the same id. When it
// returns the image survives a power cut.
func (s *Store) Put(ctx context.Context, cfg Config, layers []digest.Digest, names ...string) (Image, error) {
	if cfg.Architecture == "" {
		cfg.Architecture = runtime.GOARCH
	}
	if cfg.OS == "" {
		cfg.OS = runtime.GOOS
	}
	cfg.RootFS.Type, cfg.RootFS.DiffIDs = "layers", append([]digest.Digest{}, layers...)
	config, err := json.Marshal(cfg)
	if err != nil {
		return Image{}, fmt.Errorf("put image: %w", err)
	}
	img, err := s.put(ctx, newImage{config: config, layers: layers, names: names})
	if err != nil {
		return Image{}, fmt.Errorf("put image: %w", err)
	}
	return img, nil
}

// newImage is an image whose layers are in the store already.
type newImage struct {
	config   []byte
	manifest []byte // as it came; nil: make one
	layers   []digest.Digest
	names    []string
	digests  []string // "repository@sha256:…", to find it by what a registry calls it
}

// put writes an image in the order that makes each step of it harmless alone:
// config and manifest, sync, record, names.
func (s *Store) put(ctx context.Context, n newImage) (Image, error) {
	names, err := shortNames(n.names)
	if err != nil {
		return Image{}, err
	}
	hold, err := s.Hold() // the layers must stay until the record names them
	if err != nil {
		return Image{}, err
	}
	defer func() { _ = hold.Release() }() // at worst it protects until the process ends
	infos, unsynced, err := s.useLayers(n.layers)
	if err != nil {
		return Image{}, err
	}
	if err := ctx.Err(); err != nil {
		return Image{}, err
	}
	r, err := s.putDocuments(n, infos)
	if err != nil {
		return Image{}, err
	}
	s.step("documents stored")
	if len(unsynced) > 0 {
		if err := s.syncFS(); err != nil {
			return Image{}, err
		}
	}
	s.step("layers synced")
	return s.register(r, unsynced, names, n.digests)
}

func shortNames(names []string) ([]string, error) {
	var short []string
	for _, name := range names {
		r, err := parseName(name)
		if err != nil {
			return nil, err
		}
		short = append(short, r.short())
	}
	return short, nil
}

// useLayers reads the infos of layers, and gives the marks of those that are
// not synced.
func (s *Store) useLayers(layers []digest.Digest) (infos []layerInfo, unsynced []string, err error) {
	err = s.locked(unix.LOCK_SH, func() error {
		for _, diffID := range layers {
			info, err := s.useLayer(diffID)
			if err != nil {
				return err
			}
			infos = append(infos, info)
			mark := filepath.Join(s.layerPath(diffID), "unsynced")
			if _, err := os.Stat(mark); err == nil {
				unsynced = append(unsynced, mark)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	return infos, unsynced, err
}

func (s *Store) putDocuments(n newImage, infos []layerInfo) (r record, err error) {
	r.Layers = n.layers
	for _, info := range infos {
		r.Size += info.Size
	}
	if r.ID, err = s.putBlob(n.config); err != nil {
		return r, err
	}
	if n.manifest == nil {
		if n.manifest, err = makeManifest(n.config, infos); err != nil {
			return r, err
		}
	}
	r.Manifest, err = s.putBlob(n.manifest)
	return r, err
}

// register makes the image visible.
func (s *Store) register(r record, unsynced, names, digests []string) (img Image, err error) {
	err = s.locked(unix.LOCK_EX, func() error {
		if err := s.writeRecord(r); err != nil {
			return err
		}
		s.step("record written")
		for _, mark := range unsynced { // the record says it too, so this need not be durable
			if err := ignoreMissing(os.Remove(mark)); err != nil {
				return err
			}
		}
		if err := s.addDigests(r.ID, digests...); err != nil {
			return err
		}
		index, err := s.readNames()
		if err != nil {
			return err
		}
		changed := false
		for _, name := range names {
			changed = changed || index[name] != r.ID
			index[name] = r.ID
		}
		if changed {
			if err := s.writeNames(index); err != nil {
				return err
			}
		}
		s.step("names written")
		img, err = s.completed(r, index)
		return err
	})
	return img, err
}

// makeManifest writes the manifest of an image as Save writes it.
func makeManifest(config []byte, infos []layerInfo) ([]byte, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    []ocispec.Descriptor{},
	}
	for _, info := range infos {
		m.Layers = append(m.Layers, info.descriptor())
	}
	return json.Marshal(m)
}

// descriptor describes the bytes that writeLayer writes: those that came where
// they were kept, else the plain tar that Pack makes. A layer that came as zstd
// is written plain too: Docker reads zstd since 23 only.
func (i layerInfo) descriptor() ocispec.Descriptor {
	if !i.asItCame() || i.Blob.MediaType == ocispec.MediaTypeImageLayerZstd {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: i.DiffID, Size: i.Size}
	}
	return *i.Blob
}

// asItCame says whether the layer can be given away in the form it came in: xz and
// bzip2 have no media type, and most that read images do not know them.
func (i layerInfo) asItCame() bool {
	return i.Blob != nil && i.Blob.MediaType != typeOf(decompress.XZ) && i.Blob.MediaType != typeOf(decompress.Bzip2)
}
