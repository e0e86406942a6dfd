package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"naru/sandbox/image/layer"
)

// source is an image somewhere else: in a registry or an archive. The
// documents' digests were checked by who made the source.
type source struct {
	config   []byte
	manifest []byte // nil: none came with it
	blobs    []blobSource
	names    []string
}

// blobSource is one layer as it comes.
type blobSource struct {
	desc ocispec.Descriptor // Digest "": unknown, the diff id alone vouches for it
	open func(ctx context.Context) (io.ReadCloser, error)
}

// ingest brings an image into the store.
func (s *Store) ingest(ctx context.Context, src source, out *progress) (img Image, err error) {
	diffIDs, err := parseDiffIDs(src.config)
	if err != nil {
		return Image{}, err
	}
	if len(diffIDs) != len(src.blobs) {
		return Image{}, fmt.Errorf("the config has %d layers, the manifest %d", len(diffIDs), len(src.blobs))
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
	in := &ingestion{store: s, work: w, out: out, adopt: make([]*unpacked, len(diffIDs))}
	if err := in.layers(ctx, diffIDs, src.blobs); err != nil {
		return Image{}, err
	}
	if err := in.publishAdopted(diffIDs); err != nil {
		return Image{}, err
	}
	return s.put(ctx, newImage{config: src.config, manifest: src.manifest, layers: diffIDs, names: src.names})
}

// parseDiffIDs reads the layers of a config that may come from anyone.
func parseDiffIDs(config []byte) ([]digest.Digest, error) {
	var cfg Config
	if err := json.Unmarshal(config, &cfg); err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	for _, d := range cfg.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, fmt.Errorf("read image config: diff id: %w", err)
		}
	}
	return cfg.RootFS.DiffIDs, nil
}

// ingestion is one image's layers on their way in.
type ingestion struct {
	store *Store
	work  *workspace
	out   *progress
	// adopt holds, by place in the image, layers that need the metadata of
	// lower ones and so wait for them. Each goroutine has its own place.
	adopt []*unpacked
}

// unpacked is a verified layer in the workspace.
type unpacked struct {
	tree    string
	info    layerInfo
	implied []string
	blob    ocispec.Descriptor // the layer as it came
}

// layers fetches and unpacks what is missing, several at once: each directory
// is independent of the others. Twice the processors, since half of the time
// one waits for the network or the disk.
func (in *ingestion) layers(ctx context.Context, diffIDs []digest.Digest, blobs []blobSource) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.GOMAXPROCS(0))
	seen := map[digest.Digest]bool{}
	for i, diffID := range diffIDs {
		if seen[diffID] {
			continue
		}
		seen[diffID] = true
		if in.store.HasLayer(diffID) {
			in.out.printf("%s: already here\n", shortDigest(diffID))
			continue
		}
		group.Go(func() error {
			if err := in.layer(ctx, i, diffID, blobs[i]); err != nil {
				return fmt.Errorf("layer %s: %w", diffID, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// layer fetches one layer, again if the transport failed, and publishes it
// unless it has to wait for lower ones.
func (in *ingestion) layer(ctx context.Context, i int, diffID digest.Digest, blob blobSource) error {
	const attempts = 3
	var u *unpacked
	for n := 1; ; n++ {
		var err error
		var broken *transportError
		if u, err = in.fetch(ctx, diffID, blob); err == nil {
			break
		}
		if n == attempts || ctx.Err() != nil || !errors.As(err, &broken) {
			return err
		}
		in.out.printf("%s: %v; trying again\n", shortDigest(diffID), err)
	}
	in.out.printf("%s: done, %s\n", shortDigest(diffID), humanSize(u.info.Size))
	if len(u.implied) > 0 && i > 0 {
		in.adopt[i] = u
		return nil
	}
	return in.store.publishLayer(in.work, u.tree, u.info)
}

// publishAdopted finishes the layers that waited, bottom first.
func (in *ingestion) publishAdopted(diffIDs []digest.Digest) error {
	for i, u := range in.adopt {
		if u == nil {
			continue
		}
		lower, err := in.store.Lower(Image{Layers: diffIDs[:i]})
		if err != nil {
			return err
		}
		if err := layer.AdoptImplied(u.tree, u.implied, lower); err != nil {
			return fmt.Errorf("layer %s: %w", diffIDs[i], err)
		}
		if err := in.store.publishLayer(in.work, u.tree, u.info); err != nil {
			return fmt.Errorf("layer %s: %w", diffIDs[i], err)
		}
	}
	return nil
}

// fetch streams one layer: download → hash and keep → decompress → hash →
// unpack. Nothing of it is visible before both digests are right.
func (in *ingestion) fetch(ctx context.Context, diffID digest.Digest, blob blobSource) (u *unpacked, err error) {
	dir, err := in.work.mkdir("fetch-", 0o700)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	raw, err := blob.open(ctx)
	if err != nil {
		return nil, &transportError{err}
	}
	defer func() { _ = raw.Close() }() // what was read is verified; a late complaint changes nothing
	path := filepath.Join(dir, "blob")
	kept, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	got := newSink(kept)
	stream := &transport{raw}
	limited := io.Reader(stream)
	if blob.desc.Digest != "" {
		limited = io.LimitReader(stream, blob.desc.Size+1) // one more shows that it is too long
	}
	u, err = unpackVerified(ctx, filepath.Join(dir, "fs"), io.TeeReader(limited, got), diffID)
	if err = errors.Join(err, kept.Close()); err != nil {
		return nil, err
	}
	u.blob.Digest, u.blob.Size = got.digest(), got.n
	if want := blob.desc; want.Digest != "" && (u.blob.Digest != want.Digest || u.blob.Size != want.Size) {
		return nil, fmt.Errorf("got %s of %d bytes instead of %s of %d", u.blob.Digest, u.blob.Size, want.Digest, want.Size)
	}
	in.store.step("layer unpacked")
	if u.info.Blob, err = in.keep(ctx, u, path); err != nil {
		return nil, err
	}
	return u, nil
}

// keep stores the layer's bytes as they came, unless Pack can make them again:
// the plain tars that Save writes need no second copy.
func (in *ingestion) keep(ctx context.Context, u *unpacked, path string) (*ocispec.Descriptor, error) {
	if u.blob.Digest == u.info.DiffID {
		again := newSink(nil)
		err := layer.Pack(ctx, u.tree, again)
		if err == nil && again.digest() == u.info.DiffID {
			return nil, os.Remove(path)
		}
		if ctx.Err() != nil {
			return nil, err
		}
	}
	if err := in.store.adoptBlob(path, u.blob.Digest); err != nil {
		return nil, err
	}
	in.store.step("layer blob kept")
	return &u.blob, nil
}
