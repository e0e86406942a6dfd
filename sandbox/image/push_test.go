package image

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// recorder stands before a registry and notes what changes it.
type recorder struct {
	mu    sync.Mutex
	calls []string
}

// recorded gives a host that passes everything on to another.
func recorded(t *testing.T, host string) (string, *recorder) {
	t.Helper()
	rec := &recorder{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: host})
		r.Out.Host = r.In.Host // the registry builds Location from it
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			rec.mu.Lock()
			call := r.Method
			if r.URL.Query().Has("mount") {
				call += " mount"
			}
			rec.calls = append(rec.calls, call)
			rec.mu.Unlock()
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), rec
}

func (r *recorder) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := map[string]int{}
	for _, c := range r.calls {
		counts[c]++
	}
	r.calls = nil
	data, _ := json.Marshal(counts) // a map of numbers
	return string(data)
}

func TestPush(t *testing.T) {
	host, calls := recorded(t, debianRegistry(t))
	push(t, host+"/base", remoteThree(t))
	s := newStore(t)
	base, err := s.Pull(ctx, host+"/base", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	app := host + "/team/app:1"
	built, err := s.Put(ctx, base.Config, append(base.Layers, commit(t, s, "built")), app, host+"/other/app:2")
	if err != nil {
		t.Fatal(err)
	}
	calls.take()
	digest, err := s.Push(ctx, app, PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// three layers are taken over from base, one and the config are sent
	if got, want := calls.take(), `{"POST":2,"POST mount":3,"PUT":3}`; got != want {
		t.Errorf("the first push: %s, want %s", got, want)
	}
	var out bytes.Buffer
	again, err := s.Push(ctx, app, PushOptions{Out: &out})
	if err != nil || again != digest || strings.Count(out.String(), "Layer already exists") != 4 {
		t.Errorf("again: %s, %v\n%s", again, err, &out)
	}
	if got, want := calls.take(), `{"PUT":1}`; got != want {
		t.Errorf("the second push: %s, want %s", got, want)
	}
	if other, err := s.Push(ctx, host+"/other/app:2", PushOptions{}); err != nil || other != digest {
		t.Errorf("to another repository: %s, %v", other, err)
	}
	if got, want := calls.take(), `{"POST":1,"POST mount":4,"PUT":2}`; got != want {
		t.Errorf("the push to another repository: %s, want %s", got, want)
	}
	checkPushed(t, s, built, app, digest.String())
	checkStore(t, s)
}

// checkPushed pulls what was pushed into an empty store, by its digest.
func checkPushed(t *testing.T, s *Store, want Image, ref, digest string) {
	t.Helper()
	other := newStore(t)
	got, err := other.Pull(ctx, ref+"@"+digest, PullOptions{})
	if err != nil || got.ID != want.ID || got.Manifest.String() != digest {
		t.Fatalf("pulled %s with manifest %s, %v; want %s with %s", got.ID, got.Manifest, err, want.ID, digest)
	}
	if diff := cmp.Diff(merged(t, s, want), merged(t, other, got)); diff != "" {
		t.Errorf("merged (-pushed +pulled):\n%s", diff)
	}
	checkStore(t, other)
}

func TestPushByZstd(t *testing.T) {
	host := inProcess(t, nil)
	s := newStore(t)
	img := importFiles(t, s, host+"/x:1", "one", "two")
	digest, err := s.Push(ctx, host+"/x:1", PushOptions{Compression: Zstd})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/x:1")
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(desc.Manifest, &m); err != nil || len(m.Layers) != 1 || m.Layers[0].MediaType != ocispec.MediaTypeImageLayerZstd {
		t.Errorf("manifest %s (%v)", desc.Manifest, err)
	}
	checkPushed(t, s, img, host+"/x:1", digest.String())
	if _, err := s.Push(ctx, host+"/x:1", PushOptions{Compression: "lz4"}); err == nil || !strings.Contains(err.Error(), `"lz4"`) {
		t.Errorf("an unknown compression: %v", err)
	}
}

// What came from a registry is called the same in another one, also if its
// manifest is Docker's, and by whatever tool it is copied.
func TestPushKeepsTheDigest(t *testing.T) {
	from, to := inProcess(t, nil), debianRegistry(t)
	docker := mutate.ConfigMediaType(mutate.MediaType(remoteThree(t), types.DockerManifestSchema2), types.DockerConfigJSON)
	for repo, img := range map[string]v1.Image{"oci": remoteThree(t), "docker": docker} {
		push(t, from+"/"+repo+":1", img)
		s := newStore(t)
		if _, err := s.Pull(ctx, from+"/"+repo+":1", PullOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := s.Tag(from+"/"+repo+":1", to+"/"+repo+":1"); err != nil {
			t.Fatal(err)
		}
		want, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Push(ctx, to+"/"+repo+":1", PushOptions{})
		if err != nil || got.String() != want.String() {
			t.Errorf("%s: pushed as %s, %v, want %s", repo, got, err, want)
			continue
		}
		if found, err := s.Get(to + "/" + repo + ":1@" + got.String()); err != nil || len(found.Digests) != 2 {
			t.Errorf("%s: by its digest: %v, %v", repo, found.Digests, err)
		}
	}
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("the rest needs skopeo: ", err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	if out, err := exec.Command(skopeo, "--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false",
		"docker://"+to+"/oci:1", "oci:"+dir+":x:1").CombinedOutput(); err != nil {
		t.Fatalf("skopeo copy: %v\n%s", err, out)
	}
	other := newStore(t)
	loaded, err := other.LoadDir(ctx, dir, LoadOptions{})
	want, digestErr := remoteThree(t).Digest()
	if err != nil || digestErr != nil || len(loaded) != 1 || loaded[0].Manifest.String() != want.String() {
		t.Errorf("skopeo's copy: %+v, %v, want %s", loaded, err, want)
	}
}

func TestPushToABadRegistry(t *testing.T) {
	for _, test := range []struct {
		name   string
		method string
		times  int
		code   int
		want   string
	}{
		{"503 for two uploads", http.MethodPut, 2, 503, ""},
		{"429 for two begins", http.MethodPost, 2, 429, ""},
		{"500 for ever", http.MethodPut, 1000, 500, "500"},
		{"not allowed", http.MethodPost, 1000, 403, "403"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var mu sync.Mutex
			left := test.times
			host := inProcess(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					mu.Lock()
					fail := r.Method == test.method && left > 0
					if fail {
						left--
					}
					mu.Unlock()
					if fail {
						_, _ = io.Copy(io.Discard, r.Body)
						w.WriteHeader(test.code)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
			s := newStore(t)
			img := importFiles(t, s, host+"/x:1", "f")
			digest, err := s.Push(ctx, host+"/x:1", PushOptions{})
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkPushed(t, s, img, host+"/x:1", digest.String())
		})
	}
}

func TestPushRefuses(t *testing.T) {
	s := newStore(t)
	img := importFiles(t, s, "127.0.0.1:1/x:1", "f")
	for ref, want := range map[string]string{
		img.ID.Encoded()[:12]:              "not found",
		"127.0.0.1:1/x@" + img.ID.String(): "needs a tag",
		"127.0.0.1:1/y:1":                  "not found",
		"127.0.0.1:1/x:1":                  "refused",
		"Bad Name":                         "image name",
	} {
		if _, err := s.Push(ctx, ref, PushOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", ref, err, want)
		}
	}
	if _, err := s.Push(ctx, "127.0.0.1:1/x:1", PushOptions{Platform: "plan9/mips"}); err == nil || !strings.Contains(err.Error(), "not plan9/mips") {
		t.Errorf("another platform: %v", err)
	}
}

// The same bytes on any number of processors, and what any gzip reads.
func TestGzipWriter(t *testing.T) {
	data := make([]byte, 3*gzipBlock+777)
	random := rand.NewChaCha8([32]byte{2})
	_, _ = random.Read(data[:gzipBlock+5]) // never fails
	for _, size := range []int{0, 1, gzipBlock - 1, gzipBlock, gzipBlock + 1, len(data)} {
		var first []byte
		for _, parallel := range []int{1, 4} {
			var out bytes.Buffer
			w := newGzipWriter(&out, parallel)
			if _, err := io.Copy(w, bytes.NewReader(data[:size])); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = out.Bytes()
			}
			if !bytes.Equal(first, out.Bytes()) {
				t.Errorf("%d bytes: %d at once give something else", size, parallel)
			}
		}
		r, err := gzip.NewReader(bytes.NewReader(first))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data[:size]) {
			t.Errorf("%d bytes came back as %d (%v)", size, len(got), err)
		}
	}
	w := newGzipWriter(failingWriter{}, 2)
	_, _ = w.Write(data)
	if err := w.Close(); err == nil {
		t.Error("a writer that fails is not noticed")
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }
