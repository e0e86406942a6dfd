package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image/registry"
)

// nameAnnotation is where containerd and Docker put the full name; the
// annotation of the OCI spec mostly holds the tag alone.
const nameAnnotation = "io.containerd.image.name"

// layout reads the OCI layout (image-spec, image-layout.md) in an archive.
type layout struct {
	archive *archive
	sources []source
	seen    []digest.Digest // of sources' manifests
}

// index reads index.json: each manifest in it is an image.
func (l *layout) index(name string) error {
	data, err := l.archive.document(name)
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	for _, desc := range index.Manifests {
		if l.archive.ref != "" && !isRef(desc, l.archive.ref) {
			continue
		}
		if err := l.descriptor(desc, annotatedNames(desc.Annotations), 0); err != nil {
			return err
		}
	}
	return nil
}

// descriptor adds the image that desc means; of an index, the one for this
// machine. What is not in the archive is left out: docker save writes the
// whole index of an image of which it has one platform.
func (l *layout) descriptor(desc ocispec.Descriptor, names []string, depth int) error {
	if err := checkDigest(desc.Digest); err != nil {
		return err
	}
	name := blobName(desc.Digest)
	if _, ok := l.archive.find(name); !ok || isAttestation(desc) {
		return nil
	}
	switch desc.MediaType {
	case ocispec.MediaTypeImageManifest, registry.DockerManifest:
		return l.manifest(desc.Digest, names)
	case ocispec.MediaTypeImageIndex, registry.DockerList:
	default: // an artifact, not an image
		return nil
	}
	const maxDepth = 4
	if depth > maxDepth {
		return errors.New("indexes within indexes")
	}
	data, err := l.verified(desc.Digest)
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("read index %s: %w", desc.Digest, err)
	}
	if child, ok := l.forMachine(index); ok {
		return l.descriptor(child, names, depth+1)
	}
	return nil
}

// forMachine chooses among the manifests that are in the archive.
func (l *layout) forMachine(index ocispec.Index) (ocispec.Descriptor, bool) {
	var present []ocispec.Descriptor
	for _, desc := range index.Manifests {
		if checkDigest(desc.Digest) != nil || isAttestation(desc) {
			continue
		}
		if _, ok := l.archive.find(blobName(desc.Digest)); !ok {
			continue
		}
		if desc.Platform != nil && l.archive.want.runs(platformOf(desc)) {
			return desc, true
		}
		present = append(present, desc)
	}
	if len(present) == 1 && !l.archive.insisted { // the archive was made for one machine, maybe not ours
		return present[0], true
	}
	return ocispec.Descriptor{}, false
}

func (l *layout) manifest(d digest.Digest, names []string) error {
	if i := slices.Index(l.seen, d); i >= 0 {
		l.sources[i].addNames(names...)
		return nil
	}
	data, err := l.verified(d)
	if err != nil {
		return err
	}
	m, err := parseManifest(data)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", d, err)
	}
	src := source{manifest: data}
	if src.config, err = l.verified(m.Config.Digest); err != nil {
		return err
	}
	for _, desc := range m.Layers {
		blob := l.archive.blob(blobName(desc.Digest))
		blob.desc = desc
		src.blobs = append(src.blobs, blob)
	}
	src.addNames(names...)
	l.sources, l.seen = append(l.sources, src), append(l.seen, d)
	return nil
}

// verified reads a document and checks its digest.
func (l *layout) verified(d digest.Digest) ([]byte, error) {
	data, err := l.archive.document(blobName(d))
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(data); got != d {
		return nil, fmt.Errorf("blob %s is %s", d, got)
	}
	return data, nil
}

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

func isAttestation(desc ocispec.Descriptor) bool {
	return desc.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		desc.Platform != nil && desc.Platform.OS == "unknown"
}

// annotatedNames gives the name in a descriptor's annotations, if it is a
// whole one: "latest", which skopeo and umoci write, names no image.
func annotatedNames(a map[string]string) []string {
	name := a[nameAnnotation]
	if ref := a[ocispec.AnnotationRefName]; name == "" && strings.ContainsAny(ref, ":/") {
		name = ref
	}
	if _, err := parseName(name); err != nil {
		return nil
	}
	return []string{name}
}

// isRef tells whether an entry of an index is what a tag, a name or a digest
// means.
func isRef(desc ocispec.Descriptor, ref string) bool {
	if desc.Digest.String() == ref {
		return true
	}
	for _, key := range []string{ocispec.AnnotationRefName, nameAnnotation} {
		name := desc.Annotations[key]
		if name == "" {
			continue
		}
		if name == ref {
			return true
		}
		if parsed, err := parseName(name); err == nil && strings.ContainsAny(name, ":/") && parsed.tag == ref {
			return true
		}
	}
	return false
}

func (s *source) addNames(names ...string) {
	for _, name := range names {
		if !slices.Contains(s.names, name) {
			s.names = append(s.names, name)
		}
	}
}

func indexOfConfig(sources []source, config []byte) int {
	return slices.IndexFunc(sources, func(s source) bool { return bytes.Equal(s.config, config) })
}

// checkNamedDigest compares a document with the digest in its file name, where
// that is one.
func checkNamedDigest(name string, data []byte) error {
	want := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimSuffix(path.Base(name), ".json"))
	if checkDigest(want) != nil {
		return nil
	}
	if got := digest.FromBytes(data); got != want {
		return fmt.Errorf("%s is %s", name, got)
	}
	return nil
}
