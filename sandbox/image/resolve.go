package image

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Remote is what a registry says an image is.
type Remote struct {
	ID     digest.Digest // of the config: the image's id once it is pulled
	Digest digest.Digest // of the index or manifest that the name means
	Config Config
}

// Resolve asks the registry for an image's config, and fetches no layer. What
// it says is right for the moment only: Pull may find another image, and the
// ids then differ.
func (s *Store) Resolve(ctx context.Context, ref string, o PullOptions) (Remote, error) {
	r, err := s.remote(ctx, ref, o)
	if err != nil {
		return Remote{}, fmt.Errorf("look up %s: %w", ref, err)
	}
	return r, nil
}

func (s *Store) remote(ctx context.Context, ref string, o PullOptions) (r Remote, err error) {
	parsed, err := parseName(ref)
	if err != nil {
		return r, err
	}
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return r, err
	}
	out := newProgress(o.Progress, o.Out)
	repo, err := s.openRepository(parsed, o.Insecure, out)
	if err != nil {
		return r, err
	}
	src, top, err := fetchSource(ctx, repo, parsed.tagOrDigest(), want)
	if err != nil {
		return r, err
	}
	if err := checkPlatform(src.config, want, o.Platform != "", out); err != nil {
		return r, err
	}
	r.ID, r.Digest = digest.FromBytes(src.config), top
	return r, json.Unmarshal(src.config, &r.Config)
}
