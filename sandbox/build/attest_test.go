package build

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image"
)

// TestAttestations: statements lie in the index as BuildKit puts them, are about
// the image's manifest, and no reader takes them for an image.
func TestAttestations(t *testing.T) {
	w := newWorld(t)
	var archive bytes.Buffer
	o := Options{
		Tags: []string{"app:1"}, Provenance: "max", SBOM: true, Args: map[string]string{"A": "value", "SOURCE_DATE_EPOCH": "1600000000"},
		Context: w.context(map[string]string{"status": "Package: tool\nStatus: install ok installed\nVersion: 1-2\nArchitecture: all\n",
			"Dockerfile": "FROM base\nARG A\nCOPY status /var/lib/dpkg/status\nRUN echo $A >/a\n"}),
		Outputs: []Output{{Type: "oci", Dest: "-", W: &archive}},
	}
	r, err := w.builder().BuildAll(t.Context(), o)
	must(t, err)
	files := tarFiles(t, archive.Bytes())
	blob := func(d interface{ Encoded() string }, v any) {
		t.Helper()
		must(t, json.Unmarshal([]byte(files["blobs/sha256/"+d.Encoded()]), v))
	}
	var index ocispec.Index
	blob(r.Digest, &index)
	if len(index.Manifests) != 2 {
		t.Fatalf("%+v", index)
	}
	img, att := index.Manifests[0], index.Manifests[1]
	if att.Annotations["vnd.docker.reference.type"] != "attestation-manifest" || att.Annotations["vnd.docker.reference.digest"] != img.Digest.String() || att.Platform.OS != "unknown" {
		t.Errorf("%+v", att)
	}
	var m ocispec.Manifest
	blob(att.Digest, &m)
	texts := map[string]string{}
	for _, l := range m.Layers {
		var s statement
		blob(l.Digest, &s)
		if s.PredicateType != l.Annotations["in-toto.io/predicate-type"] || s.Subject[0].Digest["sha256"] != img.Digest.Encoded() || !strings.HasPrefix(s.Subject[0].Name, "pkg:docker/app@1?platform=linux") {
			t.Errorf("%+v", s)
		}
		texts[s.PredicateType] = string(s.Predicate)
	}
	base, err := w.store.Get("base")
	must(t, err)
	for kind, wants := range map[string][]string{
		provenanceType:              {base.ID.Encoded(), `"A":"value"`, "pkg:docker/base?platform", "2020-09-13T12:26:40Z", "FROM base"},
		"https://spdx.dev/Document": {"SPDX-2.3", "pkg:deb/debian/tool@1-2?arch=all"},
	} {
		for _, want := range wants {
			if !strings.Contains(texts[kind], want) {
				t.Errorf("%s has no %s: %s", kind, want, texts[kind])
			}
		}
	}
	other, err := image.Open(t.TempDir())
	must(t, err)
	if list, err := other.Load(t.Context(), bytes.NewReader(archive.Bytes()), image.LoadOptions{}); err != nil || len(list) != 1 || list[0].ID != r.Image.ID {
		t.Errorf("%+v, %v", list, err)
	}
	first := archive.String()
	archive.Reset()
	o.Outputs[0].W = &archive
	_, err = w.builder().BuildAll(t.Context(), o)
	must(t, err)
	if archive.String() != first {
		t.Error("not the same bytes twice")
	}
	archive.Reset()
	o.Provenance = "min"
	_, err = w.builder().BuildAll(t.Context(), o)
	must(t, err)
	if strings.Contains(archive.String(), `"A":"value"`) {
		t.Error("a build argument is in the small provenance")
	}
}
