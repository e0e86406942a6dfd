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
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"naru/sandbox/image/layer"
	"naru/sandbox/image/registry"
)

// source is an image somewhere else: in a registry or an archive. The
// documents' digests were checked by who made the source.
type source struct {
	config   []byte
	manifest []byte // nil: none came with it
	blobs    []blobSource
	names    []string
	digests  []string // "repository@sha256:…" that mean it, full
}

// blobSource is one layer as it comes.
type blobSource struct {
	desc ocispec.Descriptor // Digest "": unknown, the diff id alone vouches for it
	// open gives the bytes from an archive, remote those in a registry.
	open   func(ctx context.Context) (io.ReadCloser, error)
	remote *registry.Repository
}

// label is the digest that progress shows.
func (b blobSource) label(diffID digest.Digest) digest.Digest {
	if b.desc.Digest != "" {
		return b.desc.Digest
	}
	return diffID
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
	in := &ingestion{store: s, work: w, out: out, pause: s.pause, adopt: make([]*unpacked, len(diffIDs))}
	if err := in.layers(ctx, diffIDs, src.blobs); err != nil {
		return Image{}, err
	}
	if err := in.publishAdopted(diffIDs); err != nil {
		return Image{}, err
	}
	return s.put(ctx, newImage{config: src.config, manifest: src.manifest, layers: diffIDs, names: src.names, digests: src.digests})
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
	pause time.Duration // before a cut download goes on
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
	group.SetLimit(max(3, 2*runtime.GOMAXPROCS(0)))
	seen := map[digest.Digest]bool{}
	for i, diffID := range diffIDs {
		if seen[diffID] {
			continue
		}
		seen[diffID] = true
		label := blobs[i].label(diffID)
		if in.store.HasLayer(diffID) {
			in.out.status(label, "Already exists")
			continue
		}
		in.out.status(label, "Pulling fs layer")
		group.Go(func() error {
			if err := in.layer(ctx, i, diffID, blobs[i]); err != nil {
				return fmt.Errorf("layer %s: %w", label, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// layer brings one layer in, and publishes it unless it has to wait for lower
// ones.
func (in *ingestion) layer(ctx context.Context, i int, diffID digest.Digest, blob blobSource) error {
	obtain := in.fromArchive
	if blob.remote != nil {
		obtain = in.fromRegistry
	}
	label := blob.label(diffID)
	u, err := obtain(ctx, diffID, blob)
	if err != nil {
		return err
	}
	if u == nil {
		in.out.status(label, "Already exists")
		return nil
	}
	if len(u.implied) > 0 && i > 0 {
		in.adopt[i] = u
		in.out.status(label, "Extracting complete")
		return nil
	}
	if err := in.store.publishLayer(in.work, u.tree, u.info); err != nil {
		return err
	}
	in.out.status(label, "Pull complete")
	return nil
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
		in.out.status(u.label(), "Pull complete")
	}
	return nil
}

func (u *unpacked) label() digest.Digest {
	if u.info.Blob != nil {
		return u.info.Blob.Digest
	}
	return u.blob.Digest
}

// fromArchive unpacks a layer of a local file.
func (in *ingestion) fromArchive(ctx context.Context, diffID digest.Digest, blob blobSource) (u *unpacked, err error) {
	raw, err := blob.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = raw.Close() }() // read only
	dir, err := in.work.mkdir("blob-", 0o700)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "blob")
	kept, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	limited := io.Reader(raw)
	if blob.desc.Digest != "" {
		limited = io.LimitReader(raw, blob.desc.Size+1) // one more shows that it is too long
	}
	u, err = in.unpack(ctx, io.TeeReader(limited, kept), diffID, blob.desc)
	if err = errors.Join(err, kept.Close()); err != nil {
		return nil, err
	}
	u.info.Blob, err = in.keep(ctx, u, path)
	return u, err
}

// fromRegistry fetches a layer, from where an earlier pull was cut off if one
// was, and unpacks it meanwhile. No layer: another pull brought it while this
// one waited. What is not right is fetched once more without what was here
// before, and without the mirror that sent it.
func (in *ingestion) fromRegistry(ctx context.Context, diffID digest.Digest, blob blobSource) (u *unpacked, err error) {
	p, err := in.store.openPartial(ctx, blob.desc, func() { in.out.status(blob.desc.Digest, "Waiting") })
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if in.store.HasLayer(diffID) {
		return nil, nil
	}
	for {
		resumed := p.have
		u, from, err := in.fetch(ctx, diffID, blob, p)
		if err == nil {
			if p.stored {
				u.info.Blob = &u.blob
				return u, nil
			}
			u.info.Blob, err = in.keep(ctx, u, p.file.Name())
			return u, err
		}
		var cut *transportError
		if ctx.Err() != nil || errors.As(err, &cut) || ours(err) {
			return nil, err // what came stays for the next pull
		}
		if resetErr := p.reset(); resetErr != nil {
			return nil, errors.Join(err, resetErr)
		}
		if resumed == 0 && !blob.remote.Distrust(from) {
			return nil, err
		}
		in.out.status(blob.desc.Digest, "Retrying")
	}
}

// fetch streams one layer: download → keep → hash → decompress → hash →
// unpack. Nothing of it is visible before both digests are right. from is the
// endpoint that was asked last.
func (in *ingestion) fetch(ctx context.Context, diffID digest.Digest, blob blobSource, p *partial) (u *unpacked, from string, err error) {
	r := &resuming{ctx: ctx, at: p.have, size: blob.desc.Size, pause: in.pause, again: func(err error) {
		in.out.status(blob.desc.Digest, fmt.Sprintf("Retrying (%v)", err))
	}}
	r.open = func(ctx context.Context, offset int64) (b registry.Blob, err error) {
		b, err = blob.remote.Blob(ctx, blob.desc, offset)
		from = b.Endpoint
		in.store.step("layer asked for")
		return b, err
	}
	event := Event{Layer: blob.desc.Digest, Current: p.have, Total: blob.desc.Size}
	counted := in.out.reader(r, "Downloading", event)
	u, err = in.unpack(ctx, p.reader(&stepReader{counted, in.store}), diffID, blob.desc)
	return u, from, errors.Join(err, r.Close())
}

// stepReader tells tests of each piece that came.
type stepReader struct {
	r io.Reader
	s *Store
}

func (r *stepReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.s.step("layer piece came")
	return n, err
}

// unpack unpacks a layer from r, in a directory of its own that goes if it is
// not what desc and diffID say.
func (in *ingestion) unpack(ctx context.Context, r io.Reader, diffID digest.Digest, desc ocispec.Descriptor) (u *unpacked, err error) {
	dir, err := in.work.mkdir("fetch-", 0o700)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	got := newSink(nil)
	if u, err = unpackVerified(ctx, filepath.Join(dir, "fs"), io.TeeReader(r, got), diffID); err != nil {
		return nil, err
	}
	u.blob.Digest, u.blob.Size = got.digest(), got.n
	if desc.Digest != "" && (u.blob.Digest != desc.Digest || u.blob.Size != desc.Size) {
		return nil, fmt.Errorf("got %s of %d bytes instead of %s of %d", u.blob.Digest, u.blob.Size, desc.Digest, desc.Size)
	}
	in.store.step("layer unpacked")
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
