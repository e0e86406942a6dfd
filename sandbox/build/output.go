package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image"
	"naru/sandbox/image/layer"
)

// Output is one place where an image goes.
type Output struct {
	// Type is "image" (the store), "docker" and "oci" (archives), "tar" (the
	// files) or "local" (the files, in a directory).
	Type string
	// Dest is the file or directory; "-": W.
	Dest string
	W    io.Writer
	// Names are given in place of Options.Tags.
	Names []string
	// Push sends an image to the registries of its names, NoStore leaves the
	// store's names as they are.
	Push, NoStore bool
	// Insecure allows registries without TLS, Compression is "gzip" or "zstd".
	Insecure    bool
	Compression image.Compression
	// Annotations are added to those of Options.
	Annotations []string
}

// ParseOutput reads the value of docker's --output: "type=oci,dest=FILE", or a
// directory, or "-" for a tar on stdout.
func ParseOutput(text string) (o Output, err error) {
	if text == "-" {
		return Output{Type: "tar", Dest: "-"}, nil
	}
	if !strings.Contains(text, "=") {
		return Output{Type: "local", Dest: text}, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		if text, ok := outputAnnotation(strings.TrimSpace(key), value); ok {
			o.Annotations = append(o.Annotations, text)
			continue
		}
		if err := o.set(strings.ToLower(strings.TrimSpace(key)), value); err != nil {
			return o, fmt.Errorf("output %q: %w", text, err)
		}
	}
	switch o.Type {
	case "":
		return o, fmt.Errorf("output %q: it has no type", text)
	case "registry":
		o.Type, o.Push, o.NoStore = "image", true, true
	case "local", "tar", "oci":
		if o.Dest == "" && o.Type == "local" {
			return o, fmt.Errorf("output %q: it has no dest", text)
		}
		if o.Dest == "" {
			o.Dest = "-"
		}
	case "docker":
		if o.Dest == "" {
			o.Type = "image"
		}
	case "image", "cacheonly":
	default:
		return o, fmt.Errorf("output %q: type %s is not known: image, registry, docker, oci, tar, local and cacheonly are", text, o.Type)
	}
	return o, nil
}

func (o *Output) set(key, value string) (err error) {
	switch key {
	case "type":
		o.Type = value
	case "dest", "output":
		o.Dest = value
	case "name":
		o.Names = append(o.Names, value)
	case "push":
		o.Push, err = parseBool(key, value)
		o.NoStore = o.Push
	case "store":
		var store bool
		store, err = parseBool(key, value)
		o.NoStore = !store
	case "registry.insecure":
		o.Insecure, err = parseBool(key, value)
	case "compression":
		if value != "gzip" && value != "zstd" {
			return fmt.Errorf("compression=%s: gzip and zstd are known", value)
		}
		o.Compression = image.Compression(value)
	default:
		return fmt.Errorf("%s is not supported", key)
	}
	return err
}

func parseBool(key, value string) (bool, error) {
	if value == "" {
		return true, nil
	}
	yes, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("%s=%s: want true or false", key, value)
	}
	return yes, nil
}

// Result is what a build has made.
type Result struct {
	// Image is this machine's, or the first one. Images has one for each
	// platform, in the order of Options.Platforms.
	Image  image.Image
	Images []image.Image
	// Digest is that of the manifest or index that was given out last.
	Digest     digest.Digest
	Descriptor ocispec.Descriptor
	Names      []string
	Bases      []Base
	parts      []image.Part
}

// Metadata is what docker buildx writes to --metadata-file.
func (r Result) Metadata() map[string]any {
	m := map[string]any{
		"containerimage.digest":        r.Digest,
		"containerimage.config.digest": r.Image.ID,
		"naru.bases":                   r.Bases,
	}
	if r.Descriptor.Digest != "" {
		m["containerimage.descriptor"] = r.Descriptor
	}
	if len(r.Names) > 0 {
		m["image.name"] = strings.Join(r.Names, ",")
	}
	return m
}

// check refuses what cannot be done with a result before it is made.
func (o Options) check() error {
	if o.Provenance != "" && o.Provenance != "min" && o.Provenance != "max" {
		return fmt.Errorf("build: provenance mode %q: min and max are known", o.Provenance)
	}
	index := len(o.Platforms) > 1 || o.Provenance != "" || o.SBOM
	if err := o.checkAnnotations(index); err != nil {
		return err
	}
	for _, out := range o.Outputs {
		switch {
		case out.Type == "docker" && index:
			return errors.New("build: output type=docker holds one image without statements: use type=oci")
		case out.Type == "tar" && len(o.Platforms) > 1:
			return errors.New("build: output type=tar holds one platform: use type=local")
		case out.Push && len(out.Names) == 0 && len(o.Tags) == 0:
			return errors.New("build: an image without a name cannot be pushed")
		case out.Dest == "-" && out.W == nil:
			return fmt.Errorf("build: output type=%s has no destination", out.Type)
		}
	}
	return nil
}

func (o Options) targets() ([]target, error) {
	if len(o.Platforms) == 0 {
		return []target{native()}, nil
	}
	var list []target
	for _, p := range o.Platforms {
		t, err := parseTarget(p)
		if err != nil {
			return nil, fmt.Errorf("build: %w", err)
		}
		if !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	return list, nil
}

// deliver takes the result to all its places, names in the store last.
func (s *session) deliver(ctx context.Context, r *Result) error {
	outputs := s.o.Outputs
	if len(outputs) == 0 {
		outputs = []Output{{Type: "image"}}
	}
	if (s.o.Provenance != "" || s.o.SBOM) && !slices.ContainsFunc(outputs, func(o Output) bool { return o.Type == "oci" || o.Push }) {
		s.out.warn("the store keeps no statements about images: provenance and SBOM go with -o type=oci and to registries")
	}
	if len(s.o.Annotations) > 0 && !slices.ContainsFunc(outputs, func(o Output) bool { return o.Type == "oci" || o.Type == "docker" || o.Push }) {
		s.out.warn("the store keeps no annotations: they go with -o type=oci or type=docker,dest= and to registries")
	}
	if n := len(r.Images); n > 1 && slices.ContainsFunc(outputs, func(o Output) bool { return o.Type == "image" && !o.NoStore }) {
		s.out.warn(fmt.Sprintf("the store's names mean one image: the one of %d for %s/%s; all go with -o type=oci and to registries",
			n, r.Image.Config.OS, r.Image.Config.Architecture))
	}
	var names []string
	for _, o := range outputs {
		if len(o.Names) == 0 {
			o.Names = s.o.Tags
		}
		r.Names = appendNew(r.Names, o.Names...)
		if o.Type == "image" && !o.NoStore {
			names = appendNew(names, o.Names...)
		}
		if err := s.put(ctx, o, r); err != nil {
			return err
		}
	}
	if len(names) == 0 {
		return nil
	}
	v := s.out.begin("naming the image")
	err := s.tagAll(r.Image, names, v)
	v.end(err)
	img, getErr := s.store.Get(r.Image.ID.String())
	if err == nil && getErr == nil {
		r.Image = img // with its names
	}
	return errors.Join(err, getErr)
}

func appendNew(list []string, more ...string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

func (s *session) tagAll(img image.Image, names []string, v *vertex) error {
	for _, name := range names {
		if err := s.store.Tag(img.ID.String(), name); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(v, "naming to %s\n", name)
	}
	return nil
}

// put takes the result to one place.
func (s *session) put(ctx context.Context, o Output, r *Result) (err error) {
	if o.Type == "cacheonly" || o.Type == "image" && !o.Push {
		return nil
	}
	title := "exporting to " + o.Type
	if o.Push {
		title = "pushing " + strings.Join(o.Names, ", ")
	}
	v := s.out.begin(title)
	defer func() { v.end(err) }()
	bundle, err := s.o.annotate(o, image.Bundle{Parts: r.parts, Names: o.Names})
	if err != nil {
		return err
	}
	switch o.Type {
	case "image":
		for _, name := range o.Names {
			r.Descriptor, err = s.store.PushBundle(ctx, name, bundle, image.PushOptions{Out: v, Insecure: o.Insecure, Compression: o.Compression})
			if err != nil {
				return err
			}
		}
		r.Digest = r.Descriptor.Digest
		return nil
	case "local":
		return s.directory(ctx, o.Dest, r)
	}
	return o.write(func(w io.Writer) error {
		if o.Type == "tar" {
			return s.rootfs(r.Image, func(tree *root) error {
				return layer.Pack(ctx, fmt.Sprintf("/proc/self/fd/%d", tree.fd), w)
			})
		}
		r.Descriptor, err = s.store.SaveBundle(ctx, w, bundle)
		r.Digest = r.Descriptor.Digest
		return err
	})
}

// write fills a file that appears as a whole, or W.
func (o Output) write(fill func(io.Writer) error) error {
	if o.Dest == "-" {
		return fill(o.W)
	}
	f, err := os.CreateTemp(filepath.Dir(o.Dest), ".naru-output-")
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), o.Dest)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// rootfs shows the files of an image in one tree.
func (s *session) rootfs(img image.Image, use func(*root) error) error {
	lower, err := s.store.Lower(img)
	if err != nil {
		return err
	}
	tree, err := s.viewOf(lower)
	if err != nil {
		return err
	}
	defer tree.Close()
	return use(tree)
}

// directory writes the files of the images over what is there, in directories
// of their own if they are several. It is a COPY: no link leads out of dest, and
// none of the image out of the image.
func (s *session) directory(ctx context.Context, dest string, r *Result) error {
	for _, img := range r.Images {
		dir := dest
		if len(r.Images) > 1 {
			c := img.Config
			dir = filepath.Join(dest, strings.ReplaceAll(target{c.OS, c.Architecture, c.Variant}.String(), "/", "_"))
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := s.copyOut(ctx, img, dir); err != nil {
			return fmt.Errorf("write %s: %w", dir, err)
		}
	}
	return nil
}

func (s *session) copyOut(ctx context.Context, img image.Image, dir string) error {
	to, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	return s.rootfs(img, func(from *root) error {
		w := walk{ctx: ctx, source: &source{root: from}}
		if err := w.from("/"); err != nil {
			return err
		}
		if err := w.source.sumFiles(ctx, w.entries); err != nil {
			return err
		}
		out := newWriter(ctx, to)
		if err := out.place(&pick{src: w.source, name: "/", entries: w.entries}, "/"); err != nil {
			return err
		}
		return out.writeTo(to)
	})
}
