package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/registry"
)

// Statement is an in-toto statement about an image.
type Statement struct {
	PredicateType string
	Data          []byte // JSON
}

// Part is one image of a bundle.
type Part struct {
	Image Image
	// Attest makes the statements to attach, given the digest of the manifest
	// that they are about; nil: none.
	Attest func(manifest digest.Digest) ([]Statement, error)
	Annotated
}

// Annotated is what is written down about a document, but in no image: the
// annotations of a manifest or an index itself, and those of the entry that names it.
type Annotated struct{ Annotations, Entry map[string]string }

// Bundle is what travels under one name: an image, or an index of images for
// several platforms and of the statements about them, as BuildKit attaches them
// (its docs/attestations/attestation-storage.md).
type Bundle struct {
	Parts []Part
	Names []string // in an archive
	// Index makes an index of a single image without statements, too.
	Index bool
	// Annotated is about the index, if there is one.
	Annotated
}

func (b Bundle) plain() bool { return len(b.Parts) == 1 && b.Parts[0].Attest == nil && !b.Index }

// place takes documents and blobs of a bundle to where it goes.
type place interface {
	image(ctx context.Context, part Part) (ocispec.Descriptor, error)
	document(ctx context.Context, data []byte, mediaType string) (ocispec.Descriptor, error)
}

// send sends the parts, and gives the entry of what stands for them all.
func (b Bundle) send(ctx context.Context, to place) (ocispec.Descriptor, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	index.Annotations = b.Annotations
	var about []ocispec.Descriptor
	for _, part := range b.Parts {
		desc, err := to.image(ctx, part)
		if err != nil {
			return desc, err
		}
		if b.plain() {
			return desc, nil
		}
		c := part.Image.Config
		desc.Platform = &ocispec.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
		desc.Annotations = part.Entry
		index.Manifests = append(index.Manifests, desc)
		if part.Attest == nil {
			continue
		}
		statements, err := part.Attest(desc.Digest)
		if err != nil {
			return desc, err
		}
		attached, err := attach(ctx, to, desc.Digest, statements)
		if err != nil {
			return desc, err
		}
		about = append(about, attached)
	}
	index.Manifests = append(index.Manifests, about...)
	return sendJSON(ctx, to, index, ocispec.MediaTypeImageIndex)
}

func sendJSON(ctx context.Context, to place, v any, mediaType string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return to.document(ctx, data, mediaType)
}

const inTotoType = "application/vnd.in-toto+json"

// attach sends statements as an image of their own that no platform runs.
func attach(ctx context.Context, to place, about digest.Digest, statements []Statement) (desc ocispec.Descriptor, err error) {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "unknown", Architecture: "unknown"}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, s := range statements {
		l, err := to.document(ctx, s.Data, inTotoType)
		if err != nil {
			return desc, err
		}
		l.Annotations = map[string]string{"in-toto.io/predicate-type": s.PredicateType}
		m.Layers, config.RootFS.DiffIDs = append(m.Layers, l), append(config.RootFS.DiffIDs, l.Digest)
	}
	if m.Config, err = sendJSON(ctx, to, config, ocispec.MediaTypeImageConfig); err != nil {
		return desc, err
	}
	if desc, err = sendJSON(ctx, to, m, ocispec.MediaTypeImageManifest); err != nil {
		return desc, err
	}
	desc.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	desc.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": about.String()}
	return desc, nil
}

// SaveBundle writes a bundle as an OCI layout in a tar, and gives the entry of
// what its names mean. A single image is a docker archive too. The same bundle
// gives the same bytes.
func (s *Store) SaveBundle(ctx context.Context, w io.Writer, b Bundle) (top ocispec.Descriptor, err error) {
	hold, err := s.Hold()
	if err != nil {
		return top, fmt.Errorf("save images: %w", err)
	}
	defer func() { err = errors.Join(err, hold.Release()) }()
	a := &archiving{export: &export{store: s, tar: tar.NewWriter(w), written: map[string]bool{}}}
	if top, err = a.write(ctx, b); err != nil {
		return top, fmt.Errorf("save images: %w", err)
	}
	return top, nil
}

// archiving is a bundle on its way into an archive. The documents wait: the
// index comes first, and the layers, which are large, last.
type archiving struct {
	*export
	docs [][]byte
}

func (a *archiving) image(_ context.Context, part Part) (ocispec.Descriptor, error) {
	x, err := a.prepare(part.Image)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if x.manifest, err = annotate(x.manifest, part.Annotations); err != nil {
		return ocispec.Descriptor{}, err
	}
	x.entry = part.Entry
	a.images = append(a.images, x)
	return x.descriptors()[0], nil
}

func (a *archiving) document(_ context.Context, data []byte, mediaType string) (ocispec.Descriptor, error) {
	a.docs = append(a.docs, data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, nil
}

func (a *archiving) write(ctx context.Context, b Bundle) (top ocispec.Descriptor, err error) {
	if top, err = b.send(ctx, a); err != nil {
		return top, err
	}
	names, err := parseNames(b.Names)
	if err != nil {
		return top, err
	}
	if b.plain() {
		a.images[0].names = names
		err = a.index()
	} else {
		err = a.layout(entriesOf(top, names, b.Entry))
	}
	if err != nil {
		return top, err
	}
	for _, data := range a.docs {
		if err := a.bytes(blobName(digest.FromBytes(data)), data); err != nil {
			return top, err
		}
	}
	for _, x := range a.images {
		if err := a.blobs(ctx, x); err != nil {
			return top, err
		}
	}
	return top, a.tar.Close()
}

func parseNames(list []string) ([]reference, error) {
	var names []reference
	for _, name := range list {
		r, err := parseName(name)
		if err != nil {
			return nil, err
		}
		names = append(names, r)
	}
	return names, nil
}

// PushBundle sends a bundle to a registry under a name, and gives the entry of
// what the name means there.
func (s *Store) PushBundle(ctx context.Context, name string, b Bundle, o PushOptions) (top ocispec.Descriptor, err error) {
	if top, err = s.pushBundle(ctx, name, b, o); err != nil {
		return top, fmt.Errorf("push %s: %w", name, err)
	}
	return top, nil
}

func (s *Store) pushBundle(ctx context.Context, name string, b Bundle, o PushOptions) (top ocispec.Descriptor, err error) {
	parsed, err := parseName(name)
	if err != nil {
		return top, err
	}
	if parsed.digest != "" {
		return top, errors.New("a push needs a tag, not a digest")
	}
	out := newProgress(o.Progress, o.Out)
	repo, err := s.openRepository(parsed, o.Insecure, out)
	if err != nil {
		return top, err
	}
	hold, err := s.Hold()
	if err != nil {
		return top, err
	}
	w, err := s.newWorkspace()
	if err != nil {
		return top, errors.Join(err, hold.Release())
	}
	defer func() { err = errors.Join(err, w.remove(), hold.Release()) }()
	out.line("The push refers to repository [%s/%s]", parsed.host, parsed.path)
	p := &bundlePush{pushing: &pushing{store: s, work: w, repo: repo, out: out, compression: o.Compression}, docs: map[digest.Digest]registry.Document{}}
	if p.sources, err = s.mountSources(parsed); err != nil {
		return top, err
	}
	if top, err = b.send(ctx, p); err != nil {
		return top, err
	}
	if err := repo.PutManifest(ctx, parsed.tag, p.docs[top.Digest]); err != nil {
		return top, err
	}
	out.line("%s: digest: %s size: %d", parsed.tag, top.Digest, top.Size)
	return top, s.locked(unix.LOCK_EX, func() error {
		return s.addDigests(b.Parts[0].Image.ID, parsed.withDigest(top.Digest).short())
	})
}

// bundlePush is a bundle on its way to a registry. Manifests are put by digest
// before an index names them.
type bundlePush struct {
	*pushing
	docs map[digest.Digest]registry.Document
}

func (p *bundlePush) image(ctx context.Context, part Part) (ocispec.Descriptor, error) {
	doc, err := p.pushing.image(ctx, part.Image)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(part.Annotations) > 0 {
		if doc.Data, err = annotate(doc.Data, part.Annotations); err != nil {
			return ocispec.Descriptor{}, err
		}
		doc.MediaType, doc.Digest = ocispec.MediaTypeImageManifest, digest.FromBytes(doc.Data)
	}
	return p.put(ctx, doc)
}

func (p *bundlePush) put(ctx context.Context, doc registry.Document) (ocispec.Descriptor, error) {
	p.docs[doc.Digest] = doc
	desc := ocispec.Descriptor{MediaType: doc.MediaType, Digest: doc.Digest, Size: int64(len(doc.Data))}
	return desc, p.repo.PutManifest(ctx, doc.Digest.String(), doc)
}

func (p *bundlePush) document(ctx context.Context, data []byte, mediaType string) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if mediaType == ocispec.MediaTypeImageManifest || mediaType == ocispec.MediaTypeImageIndex {
		return p.put(ctx, registry.Document{Data: data, MediaType: mediaType, Digest: desc.Digest})
	}
	return desc, p.blob(ctx, registry.Upload{Digest: desc.Digest, Size: desc.Size, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}})
}

// annotate adds annotations to a manifest. One in Docker's format, which knows
// none, becomes OCI's: the kinds of layers have names of their own there.
func annotate(manifest []byte, more map[string]string) ([]byte, error) {
	if len(more) == 0 {
		return manifest, nil
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, fmt.Errorf("annotate manifest: %w", err)
	}
	m.MediaType, m.Config.MediaType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
	for i := range m.Layers {
		if strings.HasPrefix(m.Layers[i].MediaType, "application/vnd.docker.image.rootfs.diff.tar") {
			m.Layers[i].MediaType = strings.Replace(strings.Replace(m.Layers[i].MediaType, "application/vnd.docker.image.rootfs.diff.tar", ocispec.MediaTypeImageLayer, 1), ".gzip", "+gzip", 1)
		}
	}
	m.Annotations = union(m.Annotations, more)
	return json.Marshal(m)
}

// union is the union of two maps, the second one's values over the first one's.
func union(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, b)
	return all
}

// annotations are those by which readers of a layout know a name, with others.
func (r reference) annotations(more map[string]string) map[string]string {
	return union(more, map[string]string{nameAnnotation: r.full(), ocispec.AnnotationRefName: r.short()})
}
