package build

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image"
)

func TestParseOutput(t *testing.T) {
	for in, want := range map[string]string{
		"-": `{"Type":"tar","Dest":"-"}`, "dir": `{"Type":"local","Dest":"dir"}`, "type=oci,dest=f": `{"Type":"oci","Dest":"f"}`,
		"type=docker": `{"Type":"image","Dest":""}`, "type=tar": `{"Type":"tar","Dest":"-"}`,
		"type=registry": `{"Type":"image","Dest":"","Push":true,"NoStore":true}`, "type=image,push=true,store=true": `{"Type":"image","Dest":"","Push":true}`,
		"type=nope": "", "dest=x": "", "type=local": "", "type=oci,wrong=1": "", "type=image,push=maybe": "", "type=oci,compression=lz4": "",
	} {
		o, err := ParseOutput(in)
		got, _ := json.Marshal(struct {
			Type, Dest    string
			Push, NoStore bool `json:",omitempty"`
		}{o.Type, o.Dest, o.Push, o.NoStore})
		if want == "" && err == nil || want != "" && (err != nil || string(got) != want) {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
	}
}

func tarFiles(t *testing.T, data []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		must(t, err)
		body, err := io.ReadAll(tr)
		must(t, err)
		files[strings.TrimPrefix(h.Name, "./")] = string(body)
	}
}

// TestOutputs: each place gets the image, and the store keeps its names where
// it is none of them.
func TestOutputs(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "out")
	must(t, os.MkdirAll(filepath.Join(dir, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "d/old"), nil, 0o644))
	must(t, os.Symlink("/etc", filepath.Join(dir, "esc")))
	var files, archive bytes.Buffer
	o := Options{Tags: []string{"app:1"}, Context: w.context(map[string]string{"a": "A", "Dockerfile": "FROM scratch\nCOPY a /d/a\nCOPY a /esc/naru-test\n"}), Outputs: []Output{
		{Type: "local", Dest: dir}, {Type: "tar", Dest: "-", W: &files}, {Type: "oci", Dest: filepath.Join(w.dir, "oci.tar")}, {Type: "docker", Dest: "-", W: &archive},
	}}
	_, err := w.builder().BuildAll(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "esc") { // COPY never goes through a link of what is there to a host path
		if _, statErr := os.Stat("/etc/naru-test"); statErr == nil {
			t.Fatal("written through a link of the destination")
		}
	}
	must(t, os.Remove(filepath.Join(dir, "esc")))
	files.Reset()
	archive.Reset()
	r, err := w.builder().BuildAll(t.Context(), o)
	must(t, err)
	if data, err := os.ReadFile(filepath.Join(dir, "d/a")); err != nil || string(data) != "A" {
		t.Errorf("local: %q, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "d/old")); err != nil {
		t.Error(err)
	}
	if got := tarFiles(t, files.Bytes()); got["d/a"] != "A" {
		t.Errorf("tar: %q", got)
	}
	if _, err := w.store.Get("app:1"); err == nil {
		t.Error("the store got the name")
	}
	f, err := os.Open(filepath.Join(w.dir, "oci.tar"))
	must(t, err)
	defer f.Close()
	for name, archive := range map[string]io.Reader{"oci": f, "docker": &archive} {
		other, err := image.Open(t.TempDir())
		must(t, err)
		list, err := other.Load(t.Context(), archive, image.LoadOptions{})
		if err != nil || len(list) != 1 || list[0].ID != r.Image.ID || len(list[0].Names) != 1 || list[0].Names[0] != "app:1" || list[0].Manifest != r.Digest {
			t.Errorf("%s: %+v, %v; want %s", name, list, err, r.Digest)
		}
	}
}

// TestIndex builds for two platforms into one archive.
func TestIndex(t *testing.T) {
	w := newWorld(t)
	var archive bytes.Buffer
	file := "FROM --platform=$BUILDPLATFORM base AS b\nARG TARGETARCH\nRUN echo $TARGETARCH >/o\nFROM scratch\nCOPY --from=b /o /o\n"
	o := Options{Tags: []string{"app:1"}, Platforms: []string{"linux/amd64", "linux/arm64"}, Context: w.context(map[string]string{"Dockerfile": file}),
		Outputs: []Output{{Type: "oci", Dest: "-", W: &archive}, {Type: "image"}}}
	r, err := w.builder().BuildAll(t.Context(), o)
	must(t, err)
	files := tarFiles(t, archive.Bytes())
	var layout, index ocispec.Index
	must(t, json.Unmarshal([]byte(files["index.json"]), &layout))
	if len(layout.Manifests) != 1 || layout.Manifests[0].Digest != r.Digest || layout.Manifests[0].Annotations[ocispec.AnnotationRefName] != "app:1" {
		t.Fatalf("%+v", layout)
	}
	must(t, json.Unmarshal([]byte(files["blobs/sha256/"+r.Digest.Encoded()]), &index))
	if len(index.Manifests) != 2 || index.Manifests[0].Platform.Architecture != "amd64" || index.Manifests[1].Platform.Architecture != "arm64" {
		t.Fatalf("%+v", index)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		other, err := image.Open(t.TempDir())
		must(t, err)
		list, err := other.Load(t.Context(), bytes.NewReader(archive.Bytes()), image.LoadOptions{Platform: "linux/" + arch})
		must(t, err)
		if len(list) != 1 || list[0].Config.Architecture != arch {
			t.Errorf("%s: %+v", arch, list)
		}
	}
	if img, err := w.store.Get("app:1"); err != nil || img.Config.Architecture != native().arch {
		t.Errorf("%+v, %v", img.Config, err)
	}
	if got := r.Metadata(); got["containerimage.digest"] != r.Digest || got["image.name"] != "app:1" {
		t.Errorf("%v", got)
	}
	o.Outputs = []Output{{Type: "docker", Dest: "-", W: &archive}}
	if _, err := w.builder().BuildAll(t.Context(), o); err == nil || !strings.Contains(err.Error(), "use type=oci") {
		t.Error(err)
	}
}

// TestReproducible: two stores, another time, the same bytes.
func TestReproducible(t *testing.T) {
	files := map[string]string{"a": "A", "d/b": "B", "Dockerfile": "FROM base\nCOPY . /x/\nWORKDIR /w\nRUN echo hello >out; mkdir -p /y/z\nADD a.tar /t/\n"}
	files["a.tar"] = string(makeTar(t, tarEntry{name: "in", kind: '0', data: "aaa"}))
	var archives [2]bytes.Buffer
	for i := range archives {
		w := newWorld(t)
		img, err := w.store.Get("base")
		must(t, err)
		img.Config.Created, img.Config.History = nil, nil
		_, err = w.store.Put(t.Context(), img.Config, img.Layers, "base")
		must(t, err)
		o := Options{Tags: []string{"app:1"}, Args: map[string]string{"SOURCE_DATE_EPOCH": "1600000000"}, Context: w.context(files), Outputs: []Output{{Type: "oci", Dest: "-", W: &archives[i]}}}
		_, err = w.builder().BuildAll(t.Context(), o)
		must(t, err)
	}
	if !bytes.Equal(archives[0].Bytes(), archives[1].Bytes()) {
		t.Errorf("archives differ: %s and %s", tarFiles(t, archives[0].Bytes())["index.json"], tarFiles(t, archives[1].Bytes())["index.json"])
	}
}
