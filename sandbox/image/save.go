package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/internal/decompress"
	"naru/sandbox/image/layer"
)

// Save writes images to one archive that is an OCI layout and a docker archive
// at once: docker load, skopeo oci-archive and Load read it. An image that is
// asked for by name keeps this name, one by id has none, as with docker save.
// The same images give the same bytes.
func (s *Store) Save(ctx context.Context, w io.Writer, refs ...string) error {
	if err := s.save(ctx, w, refs); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	return nil
}

// SaveDir writes what Save writes into the new or empty directory dir: an OCI
// layout. After an error it holds a part.
func (s *Store) SaveDir(ctx context.Context, dir string, refs ...string) error {
	err := os.MkdirAll(dir, 0o755)
	if err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	if there, err := os.ReadDir(dir); err != nil || len(there) > 0 {
		return errors.Join(fmt.Errorf("save images: directory %s is not empty", dir), err)
	}
	r, w := io.Pipe()
	saved := make(chan error, 1)
	go func() {
		err := s.save(ctx, w, refs)
		saved <- err
		_ = w.CloseWithError(err) // never fails (io.PipeWriter)
	}()
	err = extract(r, dir)
	_ = r.CloseWithError(err)
	if err := errors.Join(<-saved, err); err != nil {
		return fmt.Errorf("save images: %w", err)
	}
	return nil
}

// extract writes the plain files and directories of our own archive.
func extract(r io.Reader, dir string) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = writeFrom(path, tr)
		}
		if err != nil {
			return err
		}
	}
}

func writeFrom(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

func (s *Store) save(ctx context.Context, w io.Writer, refs []string) (err error) {
	if len(refs) == 0 {
		return errors.New("no image named")
	}
	hold, err := s.Hold()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hold.Release()) }()
	e := &export{store: s, tar: tar.NewWriter(w), written: map[string]bool{}}
	for _, ref := range refs {
		if err := e.add(ref); err != nil {
			return err
		}
	}
	if err := e.index(); err != nil {
		return err
	}
	for _, img := range e.images {
		if err := e.blobs(ctx, img); err != nil {
			return err
		}
	}
	return e.tar.Close()
}

// export is one archive being written.
type export struct {
	store   *Store
	tar     *tar.Writer
	images  []*exported
	written map[string]bool
}

type exported struct {
	id       digest.Digest
	config   []byte
	manifest []byte
	names    []reference
	entry    map[string]string // annotations of the entry that names it
	layers   []layerInfo
}

// add prepares one image; one that is there already may get another name.
func (e *export) add(ref string) error {
	img, err := e.store.Get(ref)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(e.images, func(x *exported) bool { return x.id == img.ID })
	if i < 0 {
		x, err := e.prepare(img)
		if err != nil {
			return err
		}
		e.images, i = append(e.images, x), len(e.images)
	}
	if name, err := parseName(ref); err == nil && slices.Contains(img.Names, name.short()) {
		e.images[i].names = append(e.images[i].names, name)
	}
	return nil
}

func (e *export) prepare(img Image) (*exported, error) {
	x := &exported{id: img.ID}
	var err error
	if x.config, err = os.ReadFile(e.store.blobPath(img.ID)); err != nil {
		return nil, err
	}
	if x.layers, _, err = e.store.useLayers(img.Layers); err != nil {
		return nil, err
	}
	if x.manifest, err = e.store.manifestFor(img, x.config, x.layers); err != nil {
		return nil, err
	}
	return x, nil
}

// manifestFor gives the manifest the image came with, if it is in OCI's format
// and about the bytes that writeLayer writes; a layer may have come with
// another image in another compression. Otherwise it makes one.
func (s *Store) manifestFor(img Image, config []byte, layers []layerInfo) ([]byte, error) {
	data, err := os.ReadFile(s.blobPath(img.Manifest))
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", img.Manifest, err)
	}
	same := slices.EqualFunc(m.Layers, layers, func(desc ocispec.Descriptor, info layerInfo) bool {
		return desc.Digest == info.descriptor().Digest
	})
	if same && m.MediaType == ocispec.MediaTypeImageManifest && m.Config.MediaType == ocispec.MediaTypeImageConfig {
		return data, nil
	}
	return makeManifest(config, layers)
}

// index writes the files that say what the archive holds; first, so that a
// reader of the stream knows what to expect.
func (e *export) index() error {
	entries, docker := []ocispec.Descriptor{}, []dockerManifest{}
	for _, x := range e.images {
		entries = append(entries, x.descriptors()...)
		docker = append(docker, x.docker())
	}
	return e.layout(entries, archiveFile{"manifest.json", docker})
}

// archiveFile is a document of an archive, which becomes JSON.
type archiveFile struct {
	name    string
	content any
}

// layout writes what makes a tar an OCI layout (image-layout.md) with these entries,
// and more files behind that.
func (e *export) layout(entries []ocispec.Descriptor, more ...archiveFile) error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}
	files := []archiveFile{{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}, {ocispec.ImageIndexFile, index}}
	for _, file := range append(files, more...) {
		data, err := json.Marshal(file.content)
		if err != nil {
			return err
		}
		if err := e.bytes(file.name, data); err != nil {
			return err
		}
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := e.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	return nil
}

// descriptors gives one entry of the index for each name.
func (x *exported) descriptors() []ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(x.manifest), Size: int64(len(x.manifest))}
	return entriesOf(desc, x.names, x.entry)
}

// entriesOf is a document of an index under each of its names, or under none.
func entriesOf(desc ocispec.Descriptor, names []reference, annotations map[string]string) []ocispec.Descriptor {
	if len(names) == 0 {
		desc.Annotations = annotations
		return []ocispec.Descriptor{desc}
	}
	var all []ocispec.Descriptor
	for _, name := range names {
		desc.Annotations = name.annotations(annotations)
		all = append(all, desc)
	}
	return all
}

func (x *exported) docker() dockerManifest {
	m := dockerManifest{Config: blobName(x.id), RepoTags: []string{}, Layers: []string{}}
	for _, name := range x.names {
		if name.digest == "" {
			m.RepoTags = append(m.RepoTags, name.short())
		}
	}
	for _, info := range x.layers {
		m.Layers = append(m.Layers, blobName(info.descriptor().Digest))
	}
	return m
}

func (e *export) blobs(ctx context.Context, x *exported) error {
	for _, data := range [][]byte{x.config, x.manifest} {
		if err := e.bytes(blobName(digest.FromBytes(data)), data); err != nil {
			return err
		}
	}
	for _, info := range x.layers {
		if err := e.layer(ctx, info); err != nil {
			return fmt.Errorf("layer %s: %w", info.DiffID, err)
		}
	}
	return nil
}

func (e *export) layer(ctx context.Context, info layerInfo) error {
	desc := info.descriptor()
	if ok, err := e.begin(blobName(desc.Digest), desc.Size); !ok || err != nil {
		return err
	}
	return e.store.writeLayer(ctx, info, e.tar)
}

func (e *export) bytes(name string, data []byte) error {
	if ok, err := e.begin(name, int64(len(data))); !ok || err != nil {
		return err
	}
	_, err := io.Copy(e.tar, bytes.NewReader(data))
	return err
}

// begin writes the header of a file; false: the file is in the archive.
func (e *export) begin(name string, size int64) (bool, error) {
	if e.written[name] {
		return false, nil
	}
	e.written[name] = true
	return true, e.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	})
}

// writeLayer writes the bytes that info.descriptor describes. It fails if they
// are not the ones they were, that is if somebody changed the store.
func (s *Store) writeLayer(ctx context.Context, info layerInfo, w io.Writer) (err error) {
	want := info.descriptor()
	out := newSink(w)
	if info.Blob == nil {
		err = layer.Pack(ctx, filepath.Join(s.layerPath(info.DiffID), "fs"), out)
	} else {
		err = s.copyBlob(*info.Blob, want, out)
	}
	if err != nil {
		return err
	}
	if out.digest() != want.Digest {
		return fmt.Errorf("it was changed on disk: %s instead of %s", out.digest(), want.Digest)
	}
	return nil
}

// writePlain writes a layer's uncompressed tar.
func (s *Store) writePlain(ctx context.Context, info layerInfo, w io.Writer) error {
	if info.Blob == nil {
		return layer.Pack(ctx, filepath.Join(s.layerPath(info.DiffID), "fs"), w)
	}
	return s.copyBlob(*info.Blob, ocispec.Descriptor{Digest: info.DiffID}, w)
}

// copyBlob writes a kept blob as it is, or decompressed if that is wanted.
func (s *Store) copyBlob(kept, want ocispec.Descriptor, w io.Writer) error {
	f, err := os.Open(s.blobPath(kept.Digest))
	if err != nil {
		return err
	}
	r := io.NopCloser(f)
	if want.Digest != kept.Digest {
		if r, _, err = decompress.Open(f); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, r.Close(), f.Close())
}
