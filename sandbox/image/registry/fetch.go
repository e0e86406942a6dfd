package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxDocument bounds manifests and configs: registries need not accept
// manifests above 4 MiB (distribution-spec), configs of real images have a few
// kilobytes.
const MaxDocument = 4 << 20

// The media types of Docker's image manifest, version 2, schema 2.
const (
	DockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	DockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Document is a manifest or an index with the digest of its bytes.
type Document struct {
	Data      []byte
	MediaType string
	Digest    digest.Digest
}

// Manifest fetches a manifest or an index by tag or digest. What comes for a
// digest has it.
func (r *Repository) Manifest(ctx context.Context, tagOrDigest string) (doc Document, err error) {
	err = r.each(ctx, func(e *endpoint) (err error) {
		doc, err = e.manifest(ctx, tagOrDigest)
		return err
	})
	return doc, err
}

func (e *endpoint) manifest(ctx context.Context, tagOrDigest string) (doc Document, err error) {
	accept := strings.Join([]string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, DockerManifest, DockerList}, ", ")
	res, err := e.get(ctx, e.url("manifests", tagOrDigest), http.Header{"Accept": {accept}})
	if err != nil {
		return doc, err
	}
	if doc.Data, err = readDocument(res.Body); err != nil {
		return doc, fmt.Errorf("manifest %s: %w", tagOrDigest, err)
	}
	doc.Digest = digest.FromBytes(doc.Data)
	doc.MediaType, _, _ = strings.Cut(res.Header.Get("Content-Type"), ";")
	want := digest.Digest(tagOrDigest)
	if want.Validate() != nil {
		want = digest.Digest(res.Header.Get("Docker-Content-Digest"))
	}
	if want != "" && want.Algorithm() == digest.SHA256 && want != doc.Digest {
		return doc, fmt.Errorf("manifest %s: got %s instead of %s", tagOrDigest, doc.Digest, want)
	}
	return doc, nil
}

// Config fetches a small blob as a whole and checks its digest.
func (r *Repository) Config(ctx context.Context, desc ocispec.Descriptor) (data []byte, err error) {
	if desc.Size > MaxDocument {
		return nil, fmt.Errorf("its config has %d bytes, more than %d", desc.Size, MaxDocument)
	}
	err = r.each(ctx, func(e *endpoint) error {
		res, err := e.get(ctx, e.url("blobs", desc.Digest.String()), nil)
		if err != nil {
			return err
		}
		if data, err = readDocument(res.Body); err != nil {
			return err
		}
		if got := digest.FromBytes(data); got != desc.Digest {
			return fmt.Errorf("config is %s instead of %s", got, desc.Digest)
		}
		return nil
	})
	return data, err
}

func readDocument(body io.ReadCloser) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(body, MaxDocument+1))
	if err := errors.Join(err, body.Close()); err != nil {
		return nil, err
	}
	if len(data) > MaxDocument {
		return nil, fmt.Errorf("more than %d bytes", MaxDocument)
	}
	return data, nil
}

// get gives the answer of a request that succeeded; partial content is one.
func (e *endpoint) get(ctx context.Context, url string, header http.Header) (*http.Response, error) {
	client, err := e.pull(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(res, http.StatusOK, http.StatusPartialContent); err != nil {
		return nil, errors.Join(err, res.Body.Close())
	}
	return res, nil
}

// Blob is the content of a blob from an offset on.
type Blob struct {
	io.ReadCloser
	// Endpoint sent it.
	Endpoint string
}

// Blob streams a blob from offset on, unverified. A server that cannot send
// ranges sends all of it; what was not asked for is then read and dropped.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor, offset int64) (blob Blob, err error) {
	err = r.each(ctx, func(e *endpoint) error {
		body, err := e.blob(ctx, desc, offset, r.options.Stall)
		blob = Blob{ReadCloser: body, Endpoint: e.name()}
		return err
	})
	return blob, err
}

func (e *endpoint) blob(ctx context.Context, desc ocispec.Descriptor, offset int64, stall time.Duration) (io.ReadCloser, error) {
	url, header := e.url("blobs", desc.Digest.String()), http.Header{"Accept-Encoding": {"identity"}}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, desc.Size-1))
	}
	ctx, cancel := context.WithCancel(ctx)
	res, err := e.get(ctx, url, header)
	if refused := new(transport.Error); errors.As(err, &refused) && refused.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		header.Del("Range")
		res, err = e.get(ctx, url, header)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	body := &watched{body: res.Body, cancel: cancel, stall: stall}
	skip := int64(0)
	if res.StatusCode == http.StatusOK {
		skip = offset
	} else if err := checkRange(res.Header.Get("Content-Range"), offset); err != nil {
		return nil, errors.Join(err, body.Close())
	}
	if _, err := io.CopyN(io.Discard, body, skip); err != nil {
		return nil, errors.Join(fmt.Errorf("skip %d bytes: %w", skip, err), body.Close())
	}
	return body, nil
}

// checkRange says whether partial content begins where it was asked to. A
// server may leave the header out only where it would be obvious; take it then.
func checkRange(value string, offset int64) error {
	if value == "" || strings.HasPrefix(value, "bytes "+strconv.FormatInt(offset, 10)+"-") {
		return nil
	}
	return fmt.Errorf("asked for bytes from %d on, got %q", offset, value)
}

// watched ends a transfer that stands still.
type watched struct {
	body   io.ReadCloser
	cancel context.CancelFunc
	stall  time.Duration

	mu      sync.Mutex
	stalled bool
}

func (w *watched) Read(p []byte) (int, error) {
	timer := time.AfterFunc(w.stall, func() {
		w.mu.Lock()
		w.stalled = true
		w.mu.Unlock()
		w.cancel()
	})
	n, err := w.body.Read(p)
	timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && w.stalled {
		err = fmt.Errorf("nothing came for %s", w.stall)
	}
	return n, err
}

func (w *watched) Close() error {
	err := w.body.Close()
	w.cancel()
	return err
}
