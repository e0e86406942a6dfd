package build

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestAnnotations: each lies where its type says, and nowhere else; the image is the same.
func TestAnnotations(t *testing.T) {
	w := newWorld(t)
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nCOPY Dockerfile /f\n"})
	plain, _ := w.mustBuild(Options{Context: dir})
	var archive bytes.Buffer
	out, err := ParseOutput("type=oci,annotation.Out.key=1,annotation-index.i=2")
	must(t, err)
	out.W = &archive
	o := Options{Context: dir, Tags: []string{"a:1"}, SBOM: true, Outputs: []Output{out}, Annotations: []string{
		"org.example.A=x=y", "manifest[" + native().String() + "]:p=here", "manifest[linux/s390x]:p=not", "index,manifest-descriptor:both=b", "index-descriptor:top=t",
	}}
	r, err := w.builder().BuildAll(t.Context(), o)
	must(t, err)
	if r.Image.ID != plain.ID {
		t.Error("annotations changed the image")
	}
	files := tarFiles(t, archive.Bytes())
	read := func(name string, v any) {
		t.Helper()
		must(t, json.Unmarshal([]byte(files[name]), v))
	}
	var top, index ocispec.Index
	read("index.json", &top)
	read("blobs/sha256/"+r.Digest.Encoded(), &index)
	var m ocispec.Manifest
	read("blobs/sha256/"+index.Manifests[0].Digest.Encoded(), &m)
	for what, c := range map[string]struct {
		got  map[string]string
		want string
	}{
		"manifest":            {m.Annotations, `{"Out.key":"1","org.example.A":"x=y","p":"here"}`},
		"manifest-descriptor": {index.Manifests[0].Annotations, `{"both":"b"}`},
		"index":               {index.Annotations, `{"both":"b","i":"2"}`},
	} {
		if got, err := json.Marshal(c.got); err != nil || string(got) != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
	if a := top.Manifests[0].Annotations; a["top"] != "t" || a[ocispec.AnnotationRefName] == "" {
		t.Errorf("index-descriptor: %v", a)
	}
	archive.Reset()
	r, err = w.builder().BuildAll(t.Context(), Options{Context: dir, Outputs: []Output{{Type: "docker", Dest: "-", W: &archive}}, Annotations: []string{"k=v"}})
	must(t, err)
	files, m = tarFiles(t, archive.Bytes()), ocispec.Manifest{}
	read("blobs/sha256/"+r.Digest.Encoded(), &m)
	if m.Annotations["k"] != "v" {
		t.Errorf("%+v", m)
	}
	for text, want := range map[string]string{
		"k": "want KEY=VALUE", "x:k=v": `type "x" is not known`, "manifest[windows/amd64]:k=v": "only images for linux", "index[linux/amd64]:k=v": "for all platforms",
		"index:k=v": "there is an index only of several platforms", ":k=v": `type "" is not known`, "manifest:=v": "want KEY=VALUE",
	} {
		if _, _, err := w.build(Options{Context: dir, Annotations: []string{text}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, log := w.mustBuild(Options{Context: dir, Annotations: []string{"k=v"}}); !strings.Contains(log, "the store keeps no annotations") {
		t.Errorf("no warning:\n%s", log)
	}
}
