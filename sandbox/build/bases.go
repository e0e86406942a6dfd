package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"naru/sandbox/image"
)

// bases are the images that one Build starts from or copies from. Each is looked
// up once, so that all stages and platforms see the same one whatever happens to
// its name meanwhile.
type bases struct {
	mu   sync.Mutex
	list map[baseKey]*base
}

type baseKey struct {
	ref      string
	platform target
}

// base is one image. Its config is known before its files are here.
type base struct {
	baseKey
	mu      sync.Mutex
	id      digest.Digest // of the config; "": not known yet
	digest  digest.Digest // of what the name means in its registry; "": made here
	config  image.Config
	img     image.Image
	present bool // img is set
}

func (s *bases) get(k baseKey) *base {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list[k] == nil {
		if s.list == nil {
			s.list = map[baseKey]*base{}
		}
		s.list[k] = &base{baseKey: k}
	}
	return s.list[k]
}

// known is the config of an image that was looked up, for whatever platform.
func (s *bases) known(ref string) (image.Config, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, x := range s.list {
		if k.ref == ref && x.id != "" {
			return x.config, true
		}
	}
	return image.Config{}, false
}

// baseConfig finds out what an image is, without fetching its layers.
func (b *build) baseConfig(ctx context.Context, k baseKey) (image.Config, error) {
	x := b.bases.get(k)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.id != "" {
		return x.config, nil
	}
	v := b.out.begin("[internal] load metadata for " + k.ref)
	err := b.lookUp(ctx, x, v)
	v.end(err)
	return x.config, err
}

// lookUp asks the store, and then the registry. A name that nobody knows may be
// that of a stage, misspelt.
func (b *build) lookUp(ctx context.Context, x *base, out io.Writer) error {
	err := b.ask(ctx, x, out)
	if near := b.file.near(x.ref); err != nil && near != "" {
		return fmt.Errorf("%w%s", err, near)
	}
	return err
}

func (b *build) ask(ctx context.Context, x *base, out io.Writer) error {
	if strings.HasPrefix(x.ref, layoutPrefix) {
		return b.loadLayout(ctx, x)
	}
	other := ""
	if !b.o.Pull {
		img, err := b.stored(x.baseKey)
		if err == nil && x.platform.fits(img.Config) {
			x.take(img)
			return nil
		}
		if err == nil {
			other = fmt.Sprintf("%s in the store is for %s/%s, not %s: ", x.ref, img.Config.OS, img.Config.Architecture, x.platform)
		} else if !errors.Is(err, image.ErrNotFound) {
			return err
		}
	}
	if b.offline {
		return nil // its id stays unknown
	}
	r, err := b.store.Resolve(ctx, x.ref, b.pulling(x.baseKey, out))
	if err != nil {
		return fmt.Errorf("%s%w", other, err)
	}
	x.id, x.digest, x.config = r.ID, r.Digest, r.Config
	if img, err := b.store.Get(string(r.ID)); err == nil {
		x.img, x.present = img, true
	}
	return nil
}

func (x *base) take(img image.Image) {
	x.id, x.config, x.img, x.present = img.ID, img.Config, img, true
	for _, name := range img.Digests {
		if _, at, ok := strings.Cut(name, "@"); ok {
			x.digest = digest.Digest(at)
		}
	}
}

// pulling are the options of a pull. Only this machine's image gets the name:
// whoever runs it does not want that of another platform.
func (b *build) pulling(k baseKey, out io.Writer) image.PullOptions {
	o := image.PullOptions{Out: out, Platform: k.platform.String()}
	o.Unnamed = !native().fits(image.Config{OS: k.platform.os, Architecture: k.platform.arch, Variant: k.platform.variant})
	return o
}

// stored finds an image in the store: by its name, or, for another platform
// than this machine's, by what the name meant when it was pulled.
func (b *build) stored(k baseKey) (image.Image, error) {
	img, err := b.store.Get(k.ref)
	if err == nil && k.platform.fits(img.Config) {
		return img, nil
	}
	id, readErr := os.ReadFile(b.foreignFile(k))
	if readErr != nil {
		return img, err
	}
	if foreign, getErr := b.store.Get(strings.TrimSpace(string(id))); getErr == nil && foreign.ID.String() == strings.TrimSpace(string(id)) {
		return foreign, nil
	}
	return img, err
}

func (b *build) foreignFile(k baseKey) string {
	h := newKey("base")
	h.field("name", contextName(k.ref), k.platform.String())
	return filepath.Join(b.cache.dir, "bases", h.key())
}

// loadLayout brings an image of an OCI layout into the store, without a name.
func (b *build) loadLayout(ctx context.Context, x *base) error {
	dir, ref := splitLayout(x.ref)
	if ref == "" {
		ref = "latest"
	}
	list, err := b.store.LoadDir(ctx, dir, image.LoadOptions{Platform: x.platform.String(), Ref: ref})
	if err != nil {
		return err
	}
	x.take(list[0])
	x.digest = list[0].Manifest
	return nil
}

// baseImage is an image with its files.
func (b *build) baseImage(ctx context.Context, k baseKey, out io.Writer) (image.Image, error) {
	x := b.bases.get(k)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.id == "" {
		if err := b.lookUp(ctx, x, out); err != nil {
			return image.Image{}, err
		}
	}
	if x.present {
		return x.img, nil
	}
	o := b.pulling(k, out)
	img, err := b.store.Pull(ctx, k.ref, o)
	if err != nil {
		return image.Image{}, err
	}
	if img.ID != x.id {
		return image.Image{}, fmt.Errorf("image %s changed in its registry during the build: it was %s and is %s", k.ref, x.id, img.ID)
	}
	if o.Unnamed {
		if err := writeCacheFile(b.foreignFile(k), []byte(img.ID)); err != nil {
			return image.Image{}, err
		}
	}
	x.img, x.present = img, true
	return img, nil
}

// Base is an image that a build was made from.
type Base struct {
	Name     string        `json:"name"`
	Platform string        `json:"platform"`
	ID       digest.Digest `json:"id"`               // of its config
	Digest   digest.Digest `json:"digest,omitempty"` // in its registry; empty: it has none
}

// used lists the images that were used, by name.
func (s *bases) used() []Base {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Base
	for k, x := range s.list {
		list = append(list, Base{Name: k.ref, Platform: k.platform.String(), ID: x.id, Digest: x.digest})
	}
	slices.SortFunc(list, func(a, b Base) int { return strings.Compare(a.Name+" "+a.Platform, b.Name+" "+b.Platform) })
	return list
}
