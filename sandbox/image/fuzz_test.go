package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image/layer/layertest"
	"naru/sandbox/image/registry"
)

// FuzzDocuments feeds what registries and archives send: manifests, indexes,
// configs. What the readers accept has digests that can become paths.
func FuzzDocuments(f *testing.F) {
	d := string(digest.FromString(""))
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"` + d + `","size":1},"layers":[{"digest":"` + d + `","size":2}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"` + d + `","platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","layers":[],"manifests":[]}`))
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["` + d + `","sha256:../../x"]},"config":{"Env":["A=b"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := parseManifest(data); err == nil {
			for _, desc := range append(m.Layers, m.Config) {
				if checkDigest(desc.Digest) != nil {
					t.Errorf("accepted digest %q", desc.Digest)
				}
			}
			if isIndex(registry.Document{Data: data}) {
				t.Error("it is a manifest and an index")
			}
		}
		if desc, err := (platform{os: "linux", arch: "amd64"}).choose(data); err == nil && checkDigest(desc.Digest) != nil {
			t.Errorf("chose digest %q", desc.Digest)
		}
		diffIDs, err := parseDiffIDs(data)
		for _, diffID := range diffIDs {
			if err == nil && checkDigest(diffID) != nil {
				t.Errorf("accepted diff id %q", diffID)
			}
		}
	})
}

// FuzzName feeds names. What one means does not change by writing it in any of
// its forms.
func FuzzName(f *testing.F) {
	for _, name := range []string{"debian", "a/b:c", "localhost:5000/x@" + string(digest.FromString("")), "[::1]:5000/x", "docker.io/library/x:1", "X/y"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r, err := parseName(name)
		if err != nil {
			return
		}
		if strings.Contains(r.path, "..") || strings.HasPrefix(r.path, "/") {
			t.Errorf("path %q", r.path)
		}
		for _, form := range []string{r.short(), r.full()} {
			again, err := parseName(form)
			if err != nil || again.full() != r.full() {
				t.Errorf("%q is %q, written %q it is %q (%v)", name, r.full(), form, again.full(), err)
			}
		}
	})
}

// FuzzArchive feeds image archives to the reader. No name in one becomes a path,
// and what it lists can be opened.
func FuzzArchive(f *testing.F) {
	layer := layertest.Tar(f, layertest.File("f"))
	config, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64",
		"rootfs": map[string]any{"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(layer)}}})
	if err != nil {
		f.Fatal(err)
	}
	manifest := []byte(`{"schemaVersion":2,"config":{"digest":"` + string(digest.FromBytes(config)) + `","size":1},"layers":[{"digest":"` +
		string(digest.FromBytes(layer)) + `","size":` + "2048" + `}]}`)
	f.Add(archiveOf(f, map[string]string{"manifest.json": `[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]`, "c": string(config), "l": string(layer)}))
	f.Add(archiveOf(f, map[string]string{blobName(digest.FromBytes(layer)): string(layer), blobName(digest.FromBytes(config)): string(config),
		blobName(digest.FromBytes(manifest)): string(manifest),
		"index.json":                         `{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + string(digest.FromBytes(manifest)) + `","size":1}]}`}))
	f.Add(archiveOf(f, map[string]string{"manifest.json": "[]"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "index.json", Linkname: "/etc/passwd"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		w := &workspace{dir: t.TempDir()}
		a := &archive{dir: w, want: platform{os: "linux", arch: "amd64"}, files: map[string]string{}, links: map[string]string{}}
		if err := a.stage(ctx, bytes.NewReader(data)); err != nil {
			return
		}
		for name, file := range a.files {
			if filepath.Dir(file) != w.dir {
				t.Errorf("%q is kept as %s", name, file)
			}
		}
		sources, err := a.sources()
		for _, src := range sources {
			if _, configErr := parseDiffIDs(src.config); err == nil && configErr != nil && src.manifest != nil && !json.Valid(src.manifest) {
				t.Errorf("accepted manifest %q", src.manifest)
			}
		}
	})
}
