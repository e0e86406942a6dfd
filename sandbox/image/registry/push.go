package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
)

// Upload is a blob to push.
type Upload struct {
	Digest digest.Digest
	Size   int64
	// Open gives the content from its begin; it is called once for each attempt.
	Open func() (io.ReadCloser, error)
	// From are paths of repositories of the same registry that may have it.
	From []string
}

// HasBlob says whether the origin has a blob.
func (r *Repository) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	e := r.origin()
	res, err := e.send(ctx, http.MethodHead, e.url("blobs", d.String()), nil, nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusNotFound {
		return false, nil
	}
	return true, transport.CheckError(res, http.StatusOK)
}

// Mount asks the origin to take a blob over from the first of its repositories
// that has it. false: none has, or it does not do that.
func (r *Repository) Mount(ctx context.Context, d digest.Digest, from []string) (bool, error) {
	e := r.origin()
	for _, path := range from {
		query := url.Values{"mount": {d.String()}, "from": {path}}
		res, err := e.send(ctx, http.MethodPost, e.url("blobs", "uploads", "")+"?"+query.Encode(), nil, from)
		if err != nil {
			return false, err
		}
		_ = res.Body.Close()
		if res.StatusCode == http.StatusCreated {
			return true, nil
		}
		if res.StatusCode == http.StatusAccepted { // an upload was begun instead: give it up
			e.abandon(ctx, res)
		}
	}
	return false, nil
}

// abandon ends an upload; a registry that does not know DELETE ends it by itself.
func (e *endpoint) abandon(ctx context.Context, begun *http.Response) {
	location, err := e.location(begun)
	if err != nil {
		return
	}
	if res, err := e.send(ctx, http.MethodDelete, location, nil, nil); err == nil {
		_ = res.Body.Close()
	}
}

// Upload pushes a blob to the origin, again from its begin if it fails for a
// passing reason.
func (r *Repository) Upload(ctx context.Context, u Upload) error {
	for n := 1; ; n++ {
		err := r.origin().upload(ctx, u)
		if err == nil || n == attempts || ctx.Err() != nil || !temporary(err) {
			return err
		}
		wait := backoff(r.options.Backoff, n)
		r.options.Notify(fmt.Sprintf("%v; retrying", err))
		if err := Sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// temporary judges the error of an upload. What is wrong with our own file is
// not.
func temporary(err error) bool {
	var answer *transport.Error
	if errors.As(err, &answer) {
		return answer.StatusCode >= 500 || answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode == http.StatusRequestTimeout ||
			answer.StatusCode == http.StatusNotFound // the upload is not known any more, as after a restart of the registry
	}
	var sent *url.Error
	return errors.As(err, &sent) && passing(err)
}

// upload sends a blob in one piece (distribution-spec, "Pushing blobs": POST then PUT).
func (e *endpoint) upload(ctx context.Context, u Upload) error {
	res, err := e.send(ctx, http.MethodPost, e.url("blobs", "uploads", ""), nil, nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if err := transport.CheckError(res, http.StatusAccepted); err != nil {
		return err
	}
	location, err := e.location(res)
	if err != nil {
		return err
	}
	target, err := url.Parse(location)
	if err != nil {
		return err
	}
	query := target.Query()
	query.Set("digest", u.Digest.String())
	target.RawQuery = query.Encode()
	done, err := e.send(ctx, http.MethodPut, target.String(), &content{size: u.Size, open: u.Open, mediaType: "application/octet-stream"}, nil)
	if err != nil {
		return err
	}
	defer func() { _ = done.Body.Close() }()
	return transport.CheckError(done, http.StatusCreated, http.StatusAccepted)
}

// location resolves where an upload goes on; it may be relative.
func (e *endpoint) location(res *http.Response) (string, error) {
	value := res.Header.Get("Location")
	if value == "" {
		return "", errors.New("the registry did not say where to upload to")
	}
	base, err := url.Parse(e.url(""))
	if err != nil {
		return "", err
	}
	if res.Request != nil && res.Request.URL != nil {
		base = res.Request.URL
	}
	target, err := base.Parse(value)
	if err != nil {
		return "", fmt.Errorf("upload location %q: %w", value, err)
	}
	return target.String(), nil
}

// PutManifest pushes a manifest under a tag, or its own digest. The blobs it
// refers to must be there.
func (r *Repository) PutManifest(ctx context.Context, tagOrDigest string, doc Document) error {
	e := r.origin()
	body := &content{size: int64(len(doc.Data)), mediaType: doc.MediaType, open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(doc.Data)), nil
	}}
	res, err := e.send(ctx, http.MethodPut, e.url("manifests", tagOrDigest), body, nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if err := transport.CheckError(res, http.StatusCreated, http.StatusOK, http.StatusAccepted); err != nil {
		return err
	}
	if got := digest.Digest(res.Header.Get("Docker-Content-Digest")); got != "" && got.Algorithm() == digest.SHA256 && got != doc.Digest {
		return fmt.Errorf("the registry stored manifest %s as %s", doc.Digest, got)
	}
	return nil
}

// content is the body of a request.
type content struct {
	size      int64
	mediaType string
	open      func() (io.ReadCloser, error)
}

// send sends a request with the right to push, and to pull from other
// repositories.
func (e *endpoint) send(ctx context.Context, method, url string, body *content, from []string) (*http.Response, error) {
	scopes := []string{e.repo.Scope(transport.PushScope)}
	for _, path := range from {
		if other, err := name.NewRepository(e.repo.RegistryStr() + "/" + path); err == nil {
			scopes = append(scopes, other.Scope(transport.PullScope))
		}
	}
	client, err := e.client(ctx, scopes...)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	if body != nil {
		if req.Body, err = body.open(); err != nil {
			return nil, err
		}
		req.GetBody, req.ContentLength = body.open, body.size
		req.Header.Set("Content-Type", body.mediaType)
		if body.size == 0 {
			req.Body = http.NoBody
		}
	}
	return client.Do(req)
}
