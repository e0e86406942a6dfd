package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
	"naru/sandbox/image/registry"
)

// PushOptions are the choices of one push.
type PushOptions struct {
	Out      io.Writer   // as in PullOptions
	Progress func(Event) // as in PullOptions
	Insecure bool        // as in PullOptions
	// Compression is for all layers; empty: those that came from elsewhere go
	// as they came, those made here by gzip.
	Compression Compression
	// Platform refuses an image of another one; empty: any.
	Platform string
}

// Push sends an image to the registry and repository of its name, and gives
// the digest of its manifest there. An image that came from a registry and is
// sent with the layers as they came keeps its manifest, so its digest. Blobs
// that the repository has are not sent, those that another repository of the
// registry has are taken over from it.
func (s *Store) Push(ctx context.Context, name string, o PushOptions) (digest.Digest, error) {
	d, err := s.push(ctx, name, o)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", name, err)
	}
	return d, nil
}

func (s *Store) push(ctx context.Context, name string, o PushOptions) (d digest.Digest, err error) {
	parsed, err := parseName(name)
	if err != nil {
		return "", err
	}
	if parsed.digest != "" {
		return "", errors.New("a push needs a tag, not a digest")
	}
	img, err := s.byName(parsed)
	if err != nil {
		return "", err
	}
	out := newProgress(o.Progress, o.Out)
	if err := CheckPlatform(img, o.Platform); err != nil {
		return "", err
	}
	repo, err := s.openRepository(parsed, o.Insecure, out)
	if err != nil {
		return "", err
	}
	hold, err := s.Hold()
	if err != nil {
		return "", err
	}
	w, err := s.newWorkspace()
	if err != nil {
		return "", errors.Join(err, hold.Release())
	}
	defer func() { err = errors.Join(err, w.remove(), hold.Release()) }()
	out.line("The push refers to repository [%s/%s]", parsed.host, parsed.path)
	p := &pushing{store: s, work: w, repo: repo, out: out, compression: o.Compression}
	if p.sources, err = s.mountSources(parsed); err != nil {
		return "", err
	}
	doc, err := p.image(ctx, img)
	if err != nil {
		return "", err
	}
	s.step("blobs pushed")
	if err := repo.PutManifest(ctx, parsed.tag, doc); err != nil {
		return "", err
	}
	out.line("%s: digest: %s size: %d", parsed.tag, doc.Digest, len(doc.Data))
	return doc.Digest, s.locked(unix.LOCK_EX, func() error {
		return s.addDigests(img.ID, parsed.withDigest(doc.Digest).short())
	})
}

// byName finds the image that has exactly this name: no id is pushed by chance.
func (s *Store) byName(ref reference) (Image, error) {
	img, err := s.Get(ref.short())
	if err != nil {
		return img, err
	}
	if !slices.Contains(img.Names, ref.short()) {
		return img, fmt.Errorf("%s: %w: an image is pushed by its name", ref.short(), ErrNotFound)
	}
	return img, nil
}

// mountSources lists, by diff id, the repositories of the same registry that
// an image with this layer was pulled from or pushed to.
func (s *Store) mountSources(to reference) (map[digest.Digest][]string, error) {
	digests, err := s.readDigests()
	if err != nil {
		return nil, err
	}
	records, err := s.readRecords()
	if err != nil {
		return nil, err
	}
	sources := map[digest.Digest][]string{}
	for _, name := range slices.Sorted(maps.Keys(digests)) {
		from, err := parseName(name)
		if err != nil || from.host != to.host || from.path == to.path {
			continue
		}
		i := slices.IndexFunc(records, func(r record) bool { return r.ID == digests[name] })
		if i < 0 {
			continue
		}
		for _, diffID := range records[i].Layers {
			const enough = 3
			if list := sources[diffID]; len(list) < enough && !slices.Contains(list, from.path) {
				sources[diffID] = append(list, from.path)
			}
		}
	}
	return sources, nil
}

// pushing is one push under way.
type pushing struct {
	store       *Store
	work        *workspace
	repo        *registry.Repository
	out         *progress
	compression Compression
	sources     map[digest.Digest][]string
}

// image sends layers and config, and gives the manifest to put.
func (p *pushing) image(ctx context.Context, img Image) (doc registry.Document, err error) {
	config, err := os.ReadFile(p.store.blobPath(img.ID))
	if err != nil {
		return doc, err
	}
	infos, _, err := p.store.useLayers(img.Layers)
	if err != nil {
		return doc, err
	}
	layers, err := p.layers(ctx, infos)
	if err != nil {
		return doc, err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: img.ID, Size: int64(len(config))}
	if err := p.blob(ctx, registry.Upload{Digest: desc.Digest, Size: desc.Size, Open: opener(p.store.blobPath(img.ID))}); err != nil {
		return doc, fmt.Errorf("config: %w", err)
	}
	return p.manifest(img, desc, layers)
}

// manifest gives the one the image came with if it describes what was sent.
func (p *pushing) manifest(img Image, config ocispec.Descriptor, layers []ocispec.Descriptor) (doc registry.Document, err error) {
	if data, err := os.ReadFile(p.store.blobPath(img.Manifest)); err == nil {
		m, err := parseManifest(data)
		same := err == nil && m.Config.Digest == config.Digest && slices.EqualFunc(m.Layers, layers, func(a, b ocispec.Descriptor) bool {
			return a.Digest == b.Digest && a.Size == b.Size
		})
		if same {
			kind := m.MediaType
			if kind == "" {
				kind = ocispec.MediaTypeImageManifest
			}
			return registry.Document{Data: data, MediaType: kind, Digest: img.Manifest}, nil
		}
	}
	doc.MediaType = ocispec.MediaTypeImageManifest
	doc.Data, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: doc.MediaType, Config: config, Layers: layers,
	})
	doc.Digest = digest.FromBytes(doc.Data)
	return doc, err
}

// layers sends all layers, several at once, each once.
func (p *pushing) layers(ctx context.Context, infos []layerInfo) ([]ocispec.Descriptor, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(3, runtime.GOMAXPROCS(0)))
	layers := make([]ocispec.Descriptor, len(infos))
	first := map[digest.Digest]int{}
	for i, info := range infos {
		if _, ok := first[info.DiffID]; ok {
			continue
		}
		first[info.DiffID] = i
		p.out.status(info.DiffID, "Preparing")
		group.Go(func() (err error) {
			if layers[i], err = p.layer(ctx, info); err != nil {
				return fmt.Errorf("layer %s: %w", info.DiffID, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, info := range infos {
		layers[i] = layers[first[info.DiffID]]
	}
	return layers, nil
}

// layer sends one layer, if the repository does not have it. A layer that was
// made here is compressed for that, unless its compressed form is known and there.
func (p *pushing) layer(ctx context.Context, info layerInfo) (desc ocispec.Descriptor, err error) {
	compression := p.compression
	if compression == "" {
		compression = Gzip
	}
	kind, err := compression.mediaType()
	if err != nil {
		return desc, err
	}
	if info.asItCame() && (p.compression == "" || info.Blob.MediaType == kind) {
		desc = ocispec.Descriptor{MediaType: info.Blob.MediaType, Digest: info.Blob.Digest, Size: info.Blob.Size}
		return desc, p.send(ctx, info.DiffID, desc, p.store.blobPath(desc.Digest))
	}
	known, ok := p.store.pushedForm(info.DiffID, kind)
	if ok {
		there, err := p.there(ctx, info.DiffID, known.Digest)
		if there || err != nil {
			return known, err
		}
	}
	file, desc, err := p.compress(ctx, info, compression, kind)
	if err != nil {
		return desc, err
	}
	p.store.step("layer compressed")
	if desc.Digest != known.Digest {
		if err := p.store.rememberForm(info.DiffID, desc); err != nil {
			return desc, err
		}
	}
	return desc, errors.Join(p.send(ctx, info.DiffID, desc, file), os.Remove(file))
}

// there says whether the repository has a blob now: it had it, or could take it over.
func (p *pushing) there(ctx context.Context, diffID, d digest.Digest) (bool, error) {
	ok, err := p.repo.HasBlob(ctx, d)
	if ok || err != nil {
		if ok {
			p.out.status(diffID, "Layer already exists")
		}
		return ok, err
	}
	from := p.sources[diffID]
	if ok, err = p.repo.Mount(ctx, d, from); ok {
		p.out.status(diffID, "Mounted from "+strings.Join(from, " or "))
	}
	return ok, err
}

func (p *pushing) send(ctx context.Context, diffID digest.Digest, desc ocispec.Descriptor, file string) error {
	if ok, err := p.there(ctx, diffID, desc.Digest); ok || err != nil {
		return err
	}
	open := opener(file)
	err := p.blob(ctx, registry.Upload{Digest: desc.Digest, Size: desc.Size, Open: func() (io.ReadCloser, error) {
		f, err := open()
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{p.out.reader(f, "Pushing", Event{Layer: diffID, Total: desc.Size}), f}, nil
	}})
	if err == nil {
		p.out.status(diffID, "Pushed")
	}
	return err
}

// blob sends one blob that may be there.
func (p *pushing) blob(ctx context.Context, u registry.Upload) error {
	ok, err := p.repo.HasBlob(ctx, u.Digest)
	if ok || err != nil {
		return err
	}
	return p.repo.Upload(ctx, u)
}

func opener(file string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return os.Open(file) }
}

// compress writes a layer, compressed, to a file of the workspace.
func (p *pushing) compress(ctx context.Context, info layerInfo, c Compression, kind string) (file string, desc ocispec.Descriptor, err error) {
	p.out.status(info.DiffID, "Compressing")
	f, err := os.CreateTemp(p.work.dir, "push-")
	if err != nil {
		return "", desc, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	out := newSink(f)
	w, err := c.writer(out)
	if err != nil {
		return "", desc, err
	}
	plain := newSink(w)
	if err := errors.Join(p.store.writePlain(ctx, info, plain), w.Close()); err != nil {
		return "", desc, err
	}
	if got := plain.digest(); got != info.DiffID {
		return "", desc, fmt.Errorf("it was changed on disk: %s", got)
	}
	return f.Name(), ocispec.Descriptor{MediaType: kind, Digest: out.digest(), Size: out.n}, nil
}

// formsFile holds, beside a layer, what it was when it was pushed, by media
// type: it need not be compressed again to find out that a registry has it.
const formsFile = "pushed.json"

func (s *Store) pushedForm(diffID digest.Digest, kind string) (ocispec.Descriptor, bool) {
	var forms map[string]ocispec.Descriptor
	data, err := os.ReadFile(filepath.Join(s.layerPath(diffID), formsFile))
	if err != nil || json.Unmarshal(data, &forms) != nil || checkDigest(forms[kind].Digest) != nil {
		return ocispec.Descriptor{}, false // it is found out again
	}
	return forms[kind], true
}

func (s *Store) rememberForm(diffID digest.Digest, desc ocispec.Descriptor) error {
	return s.locked(unix.LOCK_EX, func() error {
		path, forms := filepath.Join(s.layerPath(diffID), formsFile), map[string]ocispec.Descriptor{}
		if data, err := os.ReadFile(path); err == nil {
			_ = json.Unmarshal(data, &forms) // a broken one is written anew
		}
		forms[desc.MediaType] = desc
		data, err := json.Marshal(forms)
		if err != nil {
			return err
		}
		return atomicfile.WriteFile(path, data, 0o600)
	})
}
