package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"naru/sandbox/image"
)

// carried is a cache on its way to another machine: an image whose layers are
// those of the steps, in no order, and whose config says which step each is of.
// So it is moved like any image, and every layer is checked by its digest.
type carried struct {
	Version string                 `json:"version"` // keyVersion: keys of another one mean nothing
	Steps   map[string]carriedStep `json:"steps"`
	Content map[string]string      `json:"content,omitempty"`
}

type carriedStep struct {
	Layer   digest.Digest `json:"layer,omitempty"`
	Created time.Time     `json:"created"`
	Text    string        `json:"text,omitempty"`
}

// move is one place where a cache comes from or goes to.
type move struct {
	text     string
	dir, ref string // one of them
	min      bool
}

type moves struct {
	from, to []move
	inline   bool
}

// caches reads CacheFrom and CacheTo.
func (o Options) caches() (m moves, err error) {
	for _, text := range o.CacheFrom {
		c, inline, err := parseMove(text, "src")
		if err == nil && inline {
			err = errors.New("an inline cache is in an image: use type=registry")
		}
		if err != nil {
			return m, fmt.Errorf("build: cache from %q: %w", text, err)
		}
		m.from = append(m.from, c)
	}
	for _, text := range o.CacheTo {
		c, inline, err := parseMove(text, "dest")
		if err != nil {
			return m, fmt.Errorf("build: cache to %q: %w", text, err)
		}
		if m.inline = m.inline || inline; !inline {
			m.to = append(m.to, c)
		}
	}
	return m, nil
}

func parseMove(text, place string) (m move, inline bool, err error) {
	m.text = text
	if !strings.Contains(text, "=") {
		m.ref = text
		return m, false, nil
	}
	kind := ""
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch {
		case key == "type":
			kind = value
		case key == place:
			m.dir = value
		case key == "ref":
			m.ref = value
		case key == "mode" && place == "dest" && (value == "min" || value == "max"):
			m.min = value == "min"
		default:
			return m, false, fmt.Errorf("%s is not supported", part)
		}
	}
	switch {
	case kind == "inline" && m.dir == "" && m.ref == "":
		return m, true, nil
	case kind == "local" && m.dir != "" && m.ref == "", kind == "registry" && m.ref != "" && m.dir == "":
		return m, false, nil
	case kind == "local":
		return m, false, fmt.Errorf("it needs a %s", place)
	case kind == "registry":
		return m, false, errors.New("it needs a ref")
	}
	return m, false, fmt.Errorf("type %q is not known: local, registry and, to leave one, inline are", kind)
}

// importCaches fetches caches and remembers what they hold. One that is not
// there is no reason to fail: the steps are made.
func (s *session) importCaches(ctx context.Context, list []move) error {
	for _, m := range list {
		v := s.out.begin("importing cache from " + m.text)
		n, err := s.importCache(ctx, m, v)
		if err == nil {
			_, _ = fmt.Fprintf(v, "%d steps\n", n)
		}
		v.end(err)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			s.out.warn(fmt.Sprintf("cache %s: %v", m.text, err))
		}
	}
	return nil
}

func (s *session) importCache(ctx context.Context, m move, v *vertex) (n int, err error) {
	var img image.Image
	if m.dir != "" {
		list, err := s.store.LoadDir(ctx, m.dir, image.LoadOptions{})
		if err != nil {
			return 0, err
		}
		img = list[0]
	} else if img, err = s.store.Pull(ctx, m.ref, image.PullOptions{Out: v, Unnamed: true}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.forgetCarrier(ctx, img)) }()
	var c carried
	if len(img.Config.BuildCache) == 0 {
		return 0, errors.New("there is no build cache in it")
	}
	if err := json.Unmarshal(img.Config.BuildCache, &c); err != nil {
		return 0, fmt.Errorf("read build cache: %w", err)
	}
	if c.Version != keyVersion {
		return 0, fmt.Errorf("it is of another version of the builder (%q)", c.Version)
	}
	for key, step := range c.Steps {
		if err := s.adopt(key, step, img.Layers); err != nil {
			return n, err
		}
		n++
	}
	for where, content := range c.Content {
		if isKey(where) && isKey(content) {
			if err := s.cache.putContent(where, content); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// adopt remembers a step of somebody else's, if its layer has come with it.
func (s *session) adopt(key string, step carriedStep, layers []digest.Digest) error {
	if !isKey(key) || step.Layer != "" && !slices.Contains(layers, step.Layer) {
		return fmt.Errorf("step %q: its layer %s is not in the cache", key, step.Layer)
	}
	if old, ok := s.cache.step(key); ok && (old.Layer == "" || s.store.HasLayer(old.Layer)) {
		return nil // our own is as good
	}
	r := record{Layer: step.Layer, Created: step.Created, Text: step.Text}
	if r.Layer != "" {
		dir, err := s.store.LayerDir(r.Layer)
		if err != nil {
			return err
		}
		if r.Shape, r.Disk, err = shapeOf(dir); err != nil {
			return err
		}
	}
	return s.cache.putStep(key, r)
}

// isKey tells whether a string from outside is one of our keys, before it
// becomes part of a path.
func isKey(s string) bool {
	return digest.NewDigestFromEncoded(digest.SHA256, s).Validate() == nil
}

// forgetCarrier removes the image that a cache came or went in, unless somebody
// uses it as an image. Its layers are the cache's.
func (s *session) forgetCarrier(ctx context.Context, img image.Image) error {
	if s.inUse != nil && s.inUse(img) || len(img.Names) > 0 {
		return nil
	}
	_, err := s.store.Drop(context.WithoutCancel(ctx), image.Spare{Images: []digest.Digest{img.ID}, Except: s.hold})
	return err
}

// carry packs what this build has used: all, or the steps of these layers.
func (s *session) carry(only []digest.Digest) (data []byte, layers []digest.Digest, err error) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	c := carried{Version: keyVersion, Steps: map[string]carriedStep{}}
	for key, rec := range s.room.used {
		if only != nil && rec.Layer != "" && !slices.Contains(only, rec.Layer) {
			continue
		}
		c.Steps[key] = carriedStep{Layer: rec.Layer, Created: rec.Created, Text: rec.Text}
		if rec.Layer != "" && !slices.Contains(layers, rec.Layer) {
			layers = append(layers, rec.Layer)
		}
	}
	slices.Sort(layers) // the same cache has the same digest
	if only == nil {
		c.Content = s.room.content
	}
	data, err = json.Marshal(c)
	return data, layers, err
}

func (s *session) exportCaches(ctx context.Context, list []move, images []image.Image) error {
	for _, m := range list {
		v := s.out.begin("exporting cache to " + m.text)
		err := s.exportCache(ctx, m, images, v)
		v.end(err)
		if err != nil {
			return fmt.Errorf("export cache to %s: %w", m.text, err)
		}
	}
	return nil
}

func (s *session) exportCache(ctx context.Context, m move, images []image.Image, v *vertex) (err error) {
	var only []digest.Digest
	if m.min {
		only = []digest.Digest{}
		for _, img := range images {
			only = append(only, img.Layers...)
		}
	}
	data, layers, err := s.carry(only)
	if err != nil {
		return err
	}
	img, err := s.store.Put(ctx, image.Config{BuildCache: data}, layers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.forgetCarrier(ctx, img)) }()
	if m.dir != "" {
		return s.saveCache(ctx, m.dir, img)
	}
	_, err = s.store.PushBundle(ctx, m.ref, image.Bundle{Parts: []image.Part{{Image: img}}}, image.PushOptions{Out: v})
	return err
}

// saveCache writes an OCI layout that takes the place of the one that is there.
func (s *session) saveCache(ctx context.Context, dir string, img image.Image) error {
	there, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "oci-layout")); len(there) > 0 && err != nil {
		return fmt.Errorf("%s is not empty and no cache", dir)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(filepath.Dir(dir), ".naru-cache-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if err := s.store.SaveDir(ctx, filepath.Join(fresh, "new"), img.ID.String()); err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(fresh, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(filepath.Join(fresh, "new"), dir)
}
