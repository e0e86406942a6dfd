package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image/registry"
)

// PullOptions are the choices of one pull.
type PullOptions struct {
	// Out gets a line for each change of a layer's state, as Docker writes
	// them where there is no terminal; nil: nobody does.
	Out io.Writer
	// Progress gets every event instead of Out. It is called by one goroutine
	// at a time, often, and should return soon.
	Progress func(Event)
	// Insecure allows plain HTTP and certificates nobody signed. Registries on
	// a loopback address need it for neither.
	Insecure bool
	// Platform is "os/arch" or "os/arch/variant"; empty: this machine's.
	Platform string
	// Unnamed gives the image no name, so that the one of another platform keeps it.
	Unnamed bool
}

// Pull fetches an image from its registry and gives it the name ref, which may
// end in "@sha256:…". Layers that are here are not fetched again, and one that
// was cut off, also by the death of the process, goes on where it was. Every
// byte is checked against the digests of manifest and config. Credentials come
// from Docker's and Podman's files and helpers ($DOCKER_CONFIG/config.json,
// $REGISTRY_AUTH_FILE).
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	img, err := s.pull(ctx, ref, o)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	parsed, err := parseName(ref)
	if err != nil {
		return Image{}, err
	}
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return Image{}, err
	}
	out := newProgress(o.Progress, o.Out)
	repo, err := s.openRepository(parsed, o.Insecure, out)
	if err != nil {
		return Image{}, err
	}
	out.line("%s: Pulling from %s", parsed.tagOrDigest(), parsed.path)
	src, top, err := fetchSource(ctx, repo, parsed.tagOrDigest(), want)
	if err != nil {
		return Image{}, err
	}
	if err := checkPlatform(src.config, want, o.Platform != "", out); err != nil {
		return Image{}, err
	}
	if !o.Unnamed {
		src.names = []string{parsed.short()}
		src.digests = []string{parsed.withDigest(top).short()}
	}
	before, _ := s.Get(parsed.short())
	img, err := s.ingest(ctx, src, out)
	if err != nil {
		return Image{}, err
	}
	out.line("Digest: %s", top)
	if before.ID == img.ID {
		out.line("Status: Image is up to date for %s", parsed.short())
	} else {
		out.line("Status: Downloaded newer image for %s", parsed.short())
	}
	return img, nil
}

func (s *Store) openRepository(ref reference, insecure bool, out *progress) (*registry.Repository, error) {
	return registry.Open(ref.host, ref.path, registry.Options{
		Hosts: s.hosts, Insecure: insecure, Backoff: s.pause, Stall: s.stall, Notify: func(line string) { out.line("%s", line) },
	})
}

// fetchSource reads the manifest and the config of what a tag or digest means.
// top is the digest of the document it means itself: of the index, if it is one.
func fetchSource(ctx context.Context, repo *registry.Repository, tagOrDigest string, want platform) (src source, top digest.Digest, err error) {
	doc, err := repo.Manifest(ctx, tagOrDigest)
	if err != nil {
		return src, "", err
	}
	top = doc.Digest
	const maxDepth = 4
	for depth := 0; isIndex(doc); depth++ {
		if depth == maxDepth {
			return src, top, errors.New("indexes within indexes")
		}
		child, err := want.choose(doc.Data)
		if err != nil {
			return src, top, err
		}
		if doc, err = repo.Manifest(ctx, child.Digest.String()); err != nil {
			return src, top, err
		}
	}
	src, err = manifestSource(ctx, repo, doc)
	return src, top, err
}

// isIndex asks the document itself; registries get the header wrong.
func isIndex(doc registry.Document) bool {
	var kind struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Layers    []json.RawMessage `json:"layers"`
	}
	if json.Unmarshal(doc.Data, &kind) != nil {
		return false
	}
	switch kind.MediaType {
	case ocispec.MediaTypeImageIndex, registry.DockerList:
		return true
	case "": // OCI allows to leave it out
		return kind.Manifests != nil && kind.Layers == nil
	}
	return false
}

func manifestSource(ctx context.Context, repo *registry.Repository, doc registry.Document) (source, error) {
	m, err := parseManifest(doc.Data)
	if err != nil {
		return source{}, fmt.Errorf("manifest %s: %w", doc.Digest, err)
	}
	config, err := repo.Config(ctx, m.Config)
	if err != nil {
		return source{}, fmt.Errorf("read config: %w", err)
	}
	src := source{config: config, manifest: doc.Data}
	for _, desc := range m.Layers {
		if len(desc.URLs) > 0 { // Windows base layers; and a way to have us ask any server
			return source{}, fmt.Errorf("layer %s is to be fetched from elsewhere", desc.Digest)
		}
		src.blobs = append(src.blobs, blobSource{desc: desc, remote: repo})
	}
	return src, nil
}

// parseManifest reads the manifest of an image, which may come from anyone.
func parseManifest(data []byte) (m ocispec.Manifest, err error) {
	var both struct {
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := errors.Join(json.Unmarshal(data, &m), json.Unmarshal(data, &both)); err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	if both.Manifests != nil { // another reader may see an index (CVE-2021-41190)
		return m, errors.New("it is a manifest and an index at once")
	}
	switch m.MediaType {
	case ocispec.MediaTypeImageManifest, registry.DockerManifest, "":
	default:
		return m, fmt.Errorf("media type %q is not supported: want an OCI manifest or Docker's version 2, schema 2", m.MediaType)
	}
	if m.SchemaVersion != 2 {
		return m, fmt.Errorf("schemaVersion %d is not supported, only 2", m.SchemaVersion)
	}
	if kind := m.Config.MediaType; kind != "" && kind != ocispec.MediaTypeImageConfig && !strings.HasPrefix(kind, "application/vnd.docker.container.image.") {
		return m, fmt.Errorf("it is no container image: its config is %q", kind)
	}
	if err := checkDigest(m.Config.Digest); err != nil {
		return m, fmt.Errorf("config: %w", err)
	}
	for i, desc := range m.Layers {
		if err := checkDigest(desc.Digest); err != nil {
			return m, fmt.Errorf("layer %d: %w", i, err)
		}
		if desc.Size < 0 {
			return m, fmt.Errorf("layer %d: size %d", i, desc.Size)
		}
	}
	return m, nil
}
