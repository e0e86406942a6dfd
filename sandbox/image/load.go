package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"naru/internal/decompress"
	"naru/sandbox/image/layer"
	"naru/sandbox/image/registry"
)

// Load reads the images of an archive: an OCI layout in a tar (skopeo
// oci-archive, docker save since 25, Save) or a docker archive (docker save
// before). The archive may be compressed by gzip, zstd, xz or bzip2. Names in it are
// given to the images, also if others had them.
func (s *Store) Load(ctx context.Context, r io.Reader, o LoadOptions) ([]Image, error) {
	images, err := s.load(ctx, o, func(a *archive) error { return a.stage(ctx, r) })
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	return images, nil
}

// LoadOptions are the choices of one Load.
type LoadOptions struct {
	// Platform chooses from indexes: "os/arch" or "os/arch/variant"; empty:
	// this machine's, or the only one there is.
	Platform string
	// Ref loads the one image of an OCI layout that has this tag, name or
	// digest there, and gives it no name; empty: all images, with their names.
	Ref string
}

// LoadDir reads the images of an OCI layout, or an unpacked docker archive, in
// a directory. It changes nothing there.
func (s *Store) LoadDir(ctx context.Context, dir string, o LoadOptions) ([]Image, error) {
	images, err := s.load(ctx, o, func(a *archive) error { return a.directory(ctx, dir) })
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	return images, nil
}

func (s *Store) load(ctx context.Context, o LoadOptions, stage func(*archive) error) (images []Image, err error) {
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	w, err := s.newWorkspace()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.remove()) }()
	a := &archive{dir: w, want: want, insisted: o.Platform != "", ref: o.Ref, files: map[string]string{}, links: map[string]string{}}
	if err := stage(a); err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	s.step("archive staged")
	sources, err := a.sources()
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	for _, src := range sources {
		if o.Ref != "" {
			src.names = nil
		}
		if err := checkPlatform(src.config, want, o.Platform != "", newProgress(nil, nil)); err != nil {
			return nil, err
		}
		img, err := s.ingest(ctx, src, newProgress(nil, nil))
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}

// archive is the content of an image archive, each file of it under a number
// of ours in the workspace: no name in the archive ever becomes a path on
// disk.
type archive struct {
	dir      *workspace
	want     platform
	insisted bool              // on want
	ref      string            // the one image that is wanted; empty: all
	files    map[string]string // cleaned name → file on disk
	links    map[string]string // cleaned name → cleaned name; docker links equal layers
}

const maxArchiveEntries = 100_000

func (a *archive) stage(ctx context.Context, r io.Reader) error {
	count := &layer.Count{R: r}
	plain, _, err := decompress.Open(count)
	if err != nil {
		return err
	}
	defer func() { _ = plain.Close() }()
	tr := tar.NewReader(layer.DefaultLimits().Guard(plain, count))
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return err
		}
		if n > maxArchiveEntries {
			return fmt.Errorf("more than %d files", maxArchiveEntries)
		}
		if err := a.add(h, tr, n); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
}

func (a *archive) add(h *tar.Header, r io.Reader, n int) error {
	name := archiveName(h.Name)
	switch h.Typeflag {
	case tar.TypeSymlink:
		a.links[name] = archiveName(path.Join(path.Dir(name), h.Linkname))
	case tar.TypeLink:
		a.links[name] = archiveName(h.Linkname)
	case tar.TypeReg:
		file := a.dir.path("file-" + strconv.Itoa(n))
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, onlyReader{r}) // a sparse file must pass the guard byte by byte
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		a.files[name] = file
	}
	return nil // directories and the rest say nothing
}

// directory takes the regular files of a directory, links not among them.
func (a *archive) directory(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			return nil
		}
		if len(a.files) == maxArchiveEntries {
			return fmt.Errorf("more than %d files", maxArchiveEntries)
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		a.files[archiveName(name)] = path
		return nil
	})
}

type onlyReader struct{ io.Reader }

func archiveName(name string) string { return path.Clean("/" + name)[1:] }

// find gives the file on disk of a name in the archive.
func (a *archive) find(name string) (string, bool) {
	name = archiveName(name)
	for range 16 { // docker makes one hop; a cycle ends here
		if file, ok := a.files[name]; ok {
			return file, true
		}
		next, ok := a.links[name]
		if !ok {
			return "", false
		}
		name = next
	}
	return "", false
}

func (a *archive) open(name string) (io.ReadCloser, error) {
	file, ok := a.find(name)
	if !ok {
		return nil, fmt.Errorf("the archive has no file %q", name)
	}
	return os.Open(file)
}

// document reads a small file.
func (a *archive) document(name string) ([]byte, error) {
	f, err := a.open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, registry.MaxDocument+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > registry.MaxDocument {
		return nil, fmt.Errorf("%s has more than %d bytes", name, registry.MaxDocument)
	}
	return data, nil
}

// sources lists the images of the archive. Where it is an OCI layout and a
// docker archive at once, the layout says what the images are and both say how
// they are called.
func (a *archive) sources() ([]source, error) {
	var sources []source
	_, isOCI := a.find("index.json")
	_, isDocker := a.find("manifest.json")
	if !isOCI && !isDocker {
		return nil, errors.New("it has neither index.json (OCI) nor manifest.json (docker save)")
	}
	if isOCI {
		l := layout{archive: a}
		if err := l.index("index.json"); err != nil {
			return nil, err
		}
		sources = l.sources
	}
	if isDocker && (a.ref == "" || !isOCI) {
		return a.dockerSources(sources)
	}
	if len(sources) == 0 && a.ref != "" {
		return nil, fmt.Errorf("it has no image %s for %s", a.ref, a.want)
	}
	if len(sources) == 0 {
		return nil, fmt.Errorf("it has no image for %s", a.want)
	}
	return sources, nil
}

// dockerSources adds the images of manifest.json, or only their names to those
// that are known already.
func (a *archive) dockerSources(known []source) ([]source, error) {
	data, err := a.document("manifest.json")
	if err != nil {
		return nil, err
	}
	var list []dockerManifest
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read manifest.json: %w", err)
	}
	for _, m := range list {
		config, err := a.document(m.Config)
		if err != nil {
			return nil, err
		}
		i := indexOfConfig(known, config)
		if i < 0 {
			if err := checkNamedDigest(m.Config, config); err != nil {
				return nil, err
			}
			src := source{config: config}
			for _, name := range m.Layers {
				src.blobs = append(src.blobs, a.blob(name))
			}
			known = append(known, src)
			i = len(known) - 1
		}
		known[i].addNames(m.RepoTags...)
	}
	return known, nil
}

// dockerManifest is one entry of a docker archive's manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *archive) blob(name string) blobSource {
	return blobSource{open: func(context.Context) (io.ReadCloser, error) { return a.open(name) }}
}
