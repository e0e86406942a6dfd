package build

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image"
)

func testRegistry(t *testing.T) (host string, get func(path string, v any)) {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	get = func(path string, v any) {
		t.Helper()
		resp, err := http.Get(server.URL + "/v2/" + path)
		must(t, err)
		defer resp.Body.Close()
		must(t, json.NewDecoder(resp.Body).Decode(v))
	}
	return strings.TrimPrefix(server.URL, "http://"), get
}

// TestRegistry: an index with statements is pushed; another machine builds FROM
// it, for each platform, runs its triggers and takes the first one's cache.
func TestRegistry(t *testing.T) {
	w := newWorld(t)
	host, get := testRegistry(t)
	lib := "FROM --platform=$BUILDPLATFORM base AS b\nARG TARGETARCH\nRUN echo $TARGETARCH >/arch\nFROM scratch\nCOPY --from=b /arch /arch\nCOPY --from=b /bin /bin\nONBUILD COPY f /on\n"
	out := Output{Type: "image", Push: true, NoStore: true}
	r, err := w.builder().BuildAll(t.Context(), Options{
		Tags: []string{host + "/lib:1"}, Platforms: []string{"linux/amd64", "linux/arm64"}, Provenance: "min",
		Annotations: []string{"manifest[linux/arm64],index:k=v", "index:i=w"},
		Context:     w.context(map[string]string{"Dockerfile": lib}), Outputs: []Output{out}, CacheTo: []string{"type=registry,ref=" + host + "/cache:1"},
	})
	must(t, err)
	var index ocispec.Index
	get("lib/manifests/1", &index)
	if len(index.Manifests) != 4 || index.Manifests[2].Annotations["vnd.docker.reference.digest"] != index.Manifests[0].Digest.String() {
		t.Fatalf("%+v", index)
	}
	for i, want := range []string{"", "v"} {
		var m ocispec.Manifest
		get("lib/manifests/"+index.Manifests[i].Digest.String(), &m)
		if m.Annotations["k"] != want || index.Annotations["k"] != "v" || index.Annotations["i"] != "w" {
			t.Errorf("annotations of %d: %v, of the index: %v", i, m.Annotations, index.Annotations)
		}
	}

	other := w.twin()
	app := Options{Tags: []string{"app:1"}, Context: other.context(map[string]string{"f": "F", "Dockerfile": "FROM " + host + "/lib:1\n"})}
	for _, arch := range []string{"arm64", "amd64"} {
		app.Platforms = []string{"linux/" + arch}
		result, err := other.builder().BuildAll(t.Context(), app)
		must(t, err)
		for p, want := range map[string]string{"arch": "f 644 0:0 " + arch + "\n", "on": "f 644 0:0 F"} {
			if got := other.look(result.Image, p); got != want {
				t.Errorf("%s: %q, want %q", p, got, want)
			}
		}
		if len(result.Bases) != 1 || result.Bases[0].Digest != r.Digest || result.Image.Config.Architecture != arch {
			t.Errorf("%+v", result.Bases)
		}
	}
	if img, err := other.store.Get(host + "/lib:1"); err != nil || img.Config.Architecture != native().arch {
		t.Errorf("the name is %v's, %v", img.Config.Architecture, err)
	}
	third := w.twin()
	o := Options{Context: third.context(map[string]string{"Dockerfile": lib}), CacheFrom: []string{"type=registry,ref=" + host + "/cache:1"}}
	if _, log := third.mustBuild(o); third.runs != 0 {
		t.Errorf("%d runs\n%s", third.runs, log)
	}
	if list, err := third.store.List(); err != nil || len(list) != 2 { // base and the result
		t.Errorf("%v, %v", list, err)
	}
}

// TestPullOption: --pull finds the newer image behind a name.
func TestPullOption(t *testing.T) {
	w := newWorld(t)
	host, _ := testRegistry(t)
	push := func(text string) {
		t.Helper()
		w.importTar(host+"/b:1", image.Config{OS: "linux"}, makeTar(t, tarEntry{name: "v", kind: '0', mode: 0o644, data: text}))
		_, err := w.store.Push(t.Context(), host+"/b:1", image.PushOptions{})
		must(t, err)
	}
	push("one")
	other := w.twin()
	o := Options{Context: other.context(map[string]string{"Dockerfile": "FROM " + host + "/b:1\n"})}
	other.mustBuild(o)
	push("two")
	for i, want := range []string{"one", "two"} {
		o.Pull = i == 1
		img, _ := other.mustBuild(o)
		if got := other.look(img, "v"); got != "f 644 0:0 "+want {
			t.Errorf("pull %t: %s", o.Pull, got)
		}
	}
}
