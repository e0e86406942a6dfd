package image

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxDocument bounds configs and manifests: registries need not accept
// manifests above 4 MiB (distribution-spec), configs of real images have a few
// kilobytes.
const maxDocument = 4 << 20

// PullOptions are the choices of one pull.
type PullOptions struct {
	// Out gets a line for each layer; nil: nobody does.
	Out io.Writer
	// Insecure allows plain HTTP and certificates nobody signed. Registries on
	// a loopback address need it for neither.
	Insecure bool
	// Platform is "os/arch" or "os/arch/variant"; empty: this machine's.
	Platform string
}

// Pull fetches an image from its registry and gives it the name ref, which may
// end in "@sha256:…". Layers that are here are not fetched again. Every byte is
// checked against the digests of manifest and config. Credentials come from
// Docker's and Podman's files and helpers ($DOCKER_CONFIG/config.json,
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
	r, err := newRemote(parsed, o)
	if err != nil {
		return Image{}, err
	}
	src, err := r.source(ctx)
	if err != nil {
		return Image{}, err
	}
	out := newProgress(o.Out)
	if err := checkPlatform(src.config, o.Platform, out); err != nil {
		return Image{}, err
	}
	src.names = []string{parsed.short()}
	img, err := s.ingest(ctx, src, out)
	if err != nil {
		return Image{}, err
	}
	out.printf("%s is %s\n", parsed.short(), img.ID)
	return img, nil
}

// remoteImage is an image in a registry.
type remoteImage struct {
	ref    name.Reference
	puller *remote.Puller
}

func newRemote(parsed reference, o PullOptions) (*remoteImage, error) {
	var nameOptions []name.Option
	if o.Insecure {
		nameOptions = append(nameOptions, name.Insecure)
	}
	ref, err := name.ParseReference(parsed.full(), nameOptions...)
	if err != nil {
		return nil, err
	}
	platform, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	puller, err := remote.NewPuller(
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithTransport(newTransport(o.Insecure)),
		remote.WithPlatform(platform),
		remote.WithUserAgent("naru"),
	)
	if err != nil {
		return nil, err
	}
	return &remoteImage{ref: ref, puller: puller}, nil
}

// source reads the manifest and the config. go-containerregistry bounds the
// manifest and checks the digest of what is asked for by digest, an index's
// child included.
func (r *remoteImage) source(ctx context.Context) (source, error) {
	desc, err := r.puller.Get(ctx, r.ref)
	if err != nil {
		return source{}, err
	}
	img, err := desc.Image()
	if err != nil {
		return source{}, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return source{}, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return source{}, fmt.Errorf("read manifest: %w", err)
	}
	if m.Config.Size > maxDocument {
		return source{}, fmt.Errorf("its config has %d bytes, more than %d", m.Config.Size, maxDocument)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return source{}, fmt.Errorf("read config: %w", err)
	}
	if got := digest.FromBytes(config); got != m.Config.Digest {
		return source{}, fmt.Errorf("its config is %s instead of %s", got, m.Config.Digest)
	}
	src := source{config: config, manifest: manifest}
	for _, desc := range m.Layers {
		if err := checkDigest(desc.Digest); err != nil {
			return source{}, err
		}
		if len(desc.URLs) > 0 { // Windows base layers; and a way to have us ask any server
			return source{}, fmt.Errorf("layer %s is to be fetched from elsewhere", desc.Digest)
		}
		src.blobs = append(src.blobs, blobSource{desc: desc, open: r.opener(desc.Digest)})
	}
	return src, nil
}

func (r *remoteImage) opener(d digest.Digest) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		l, err := r.puller.Layer(ctx, r.ref.Context().Digest(d.String()))
		if err != nil {
			return nil, err
		}
		return l.Compressed()
	}
}

func parsePlatform(platform string) (v1.Platform, error) {
	if platform == "" {
		platform = runtime.GOOS + "/" + runtime.GOARCH
	}
	p, err := v1.ParsePlatform(platform)
	if err != nil {
		return v1.Platform{}, fmt.Errorf("platform %q: %w", platform, err)
	}
	return *p, nil
}

// checkPlatform compares the config with what was asked for. An index was
// chosen from already, but a tag may name a single image of any platform: an
// error if the caller insisted on another, else a warning.
func checkPlatform(config []byte, platform string, out *progress) error {
	want, err := parsePlatform(platform)
	if err != nil {
		return err
	}
	var have Config
	if err := json.Unmarshal(config, &have); err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	if have.OS == want.OS && have.Architecture == want.Architecture {
		return nil
	}
	if platform != "" {
		return fmt.Errorf("it is for %s/%s, not %s", have.OS, have.Architecture, platform)
	}
	out.printf("warning: the image is for %s/%s, this machine is %s/%s\n", have.OS, have.Architecture, want.OS, want.Architecture)
	return nil
}

// newTransport refuses plain HTTP except to loopback. go-containerregistry
// itself would try it with every private address, and send credentials that
// way.
func newTransport(insecure bool) http.RoundTripper {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	if insecure {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // asked for; digests are still checked
		return t
	}
	return &tlsOnly{t}
}

type tlsOnly struct{ next http.RoundTripper }

func (t *tlsOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !isLoopback(req.URL.Hostname()) {
		return nil, errors.New("refused to use plain HTTP; say that the registry is insecure to allow it")
	}
	return t.next.RoundTrip(req)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
