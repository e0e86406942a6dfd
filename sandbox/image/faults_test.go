package image

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"naru/sandbox/image/layer/layertest"
	"naru/sandbox/image/registry"
)

// oneLayer is an image whose layer is size bytes that do not compress.
func oneLayer(t testing.TB, size int) (img v1.Image, blob v1.Hash) {
	t.Helper()
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(content) // never fails
	data := append(layertest.Tar(t, layertest.File("etc/first")), content...)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithCompression(compression.None), tarball.WithMediaType(types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layer); err != nil {
		t.Fatal(err)
	}
	if blob, err = layer.Digest(); err != nil {
		t.Fatal(err)
	}
	return img, blob
}

// faulty is a registry that answers requests for one blob in its own way, and
// remembers what was asked and how many bytes of it were sent.
type faulty struct {
	blob string
	// serve answers the n-th request for the blob, from 1 on; false: as usual.
	serve func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool

	mu    sync.Mutex
	asked []string // the Range of each request
	sent  int
}

func (f *faulty) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, f.blob) {
			next.ServeHTTP(w, r)
			return
		}
		f.mu.Lock()
		f.asked = append(f.asked, r.Header.Get("Range"))
		n := len(f.asked)
		f.mu.Unlock()
		whole := httptest.NewRecorder()
		plain := r.Clone(r.Context())
		plain.Header.Del("Range")
		next.ServeHTTP(whole, plain)
		counted := &counting{ResponseWriter: w, f: f}
		if f.serve == nil || !f.serve(counted, r, n, whole.Body.Bytes()) {
			http.ServeContent(counted, r, "", time.Time{}, bytes.NewReader(whole.Body.Bytes()))
		}
	})
}

// seen gives what was asked and how many bytes were sent so far.
func (f *faulty) seen() (asked []string, sent int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked), f.sent
}

type counting struct {
	http.ResponseWriter
	f *faulty
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.f.sent += n
	return n, err
}

// cutAt sends the bytes of a range up to the absolute offset end, and cuts.
func cutAt(end int) func(w http.ResponseWriter, r *http.Request, body []byte) {
	return func(w http.ResponseWriter, r *http.Request, body []byte) {
		from := 0
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from) // none: from 0
		w.Header().Set("Content-Length", strconv.Itoa(len(body)-from))
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(body[from:max(from, end)])
	}
}

// A registry that fails for a while, in each way that one can: the pull goes
// on where it was, and what it has at the end is right.
func TestPullFromAFailingRegistry(t *testing.T) {
	const size = 300_000
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request, int, []byte) bool {
		return func(w http.ResponseWriter, _ *http.Request, n int, _ []byte) bool {
			if n > 2 {
				return false
			}
			if len(header) == 2 {
				w.Header().Set(header[0], header[1])
			}
			w.WriteHeader(code)
			return true
		}
	}
	for _, test := range []struct {
		name  string
		serve func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool
		limit int // of bytes sent; 0: not looked at
		want  string
	}{
		{"cut five times", func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool {
			if n > 5 {
				return false
			}
			cutAt(n*50_000)(w, r, body)
			return true
		}, size + 20_000, ""},
		{"cut while ranges are ignored", func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool {
			r.Header.Del("Range")
			if n > 2 {
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
				_, _ = w.Write(body)
				return true
			}
			cutAt(n*100_000)(w, r, body)
			return true
		}, 0, ""},
		{"another range than asked for", func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool {
			if n == 1 {
				cutAt(100_000)(w, r, body)
				return true
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(body)-1, len(body)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(body)
			return true
		}, 0, "asked for bytes from 100000 on"},
		{"never more than a byte less", func(w http.ResponseWriter, r *http.Request, _ int, body []byte) bool {
			cutAt(len(body)-1)(w, r, body)
			return true
		}, 0, "unexpected EOF"},
		{"500", status(500), 0, ""}, {"503", status(503), 0, ""}, {"502", status(502), 0, ""},
		{"429 with Retry-After", status(429, "Retry-After", "0"), 0, ""},
		{"429 for an hour", status(429, "Retry-After", "3600"), 0, "429"},
		{"403", status(403), 0, "403"},
		{"an endless body", func(w http.ResponseWriter, _ *http.Request, _ int, body []byte) bool {
			for range 100 {
				if _, err := w.Write(body); err != nil {
					break
				}
			}
			return true
		}, 0, "longer than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			img, blob := oneLayer(t, size)
			f := &faulty{blob: blob.String(), serve: test.serve}
			host := inProcess(t, f.wrap)
			push(t, host+"/x", img)
			s := newStore(t)
			pulled, err := s.Pull(ctx, host+"/x", PullOptions{})
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if images := checkStore(t, s); len(images) > 0 {
					t.Errorf("left: %v", images)
				}
				return
			}
			asked, sent := f.seen()
			if err != nil {
				t.Fatalf("%v\nasked: %q", err, asked)
			}
			if test.limit > 0 && sent > test.limit {
				t.Errorf("%d bytes were sent for a layer of %d: %q", sent, size, asked)
			}
			if got := merged(t, s, pulled); !strings.Contains(got, "etc/first") {
				t.Errorf("merged:\n%s", got)
			}
			checkStore(t, s)
		})
	}
}

func TestATransferThatStandsStillEnds(t *testing.T) {
	img, blob := oneLayer(t, 300_000)
	release := make(chan struct{})
	f := &faulty{blob: blob.String(), serve: func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool {
		if n > 1 {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:100_000])
		w.(*counting).ResponseWriter.(http.Flusher).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}}
	host := inProcess(t, f.wrap)
	defer close(release)
	push(t, host+"/x", img)
	s := newStore(t)
	s.stall = 200 * time.Millisecond
	if _, err := s.Pull(ctx, host+"/x", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if asked, _ := f.seen(); len(asked) != 2 || !strings.HasPrefix(asked[1], "bytes=1") {
		t.Errorf("asked: %q", asked)
	}
	checkStore(t, s)
}

// What a failed pull has of a layer, the next one does not fetch again, also
// in another process; and what is not the begin of it is not believed.
func TestPullGoesOnWhereAnotherEnded(t *testing.T) {
	const size, cut = 300_000, 200_000
	for _, test := range []struct {
		name string
		spoil,
		resumes bool
	}{{"as it was left", false, true}, {"changed meanwhile", true, false}} {
		t.Run(test.name, func(t *testing.T) {
			img, blob := oneLayer(t, size)
			broken := true
			f := &faulty{blob: blob.String(), serve: func(w http.ResponseWriter, r *http.Request, _ int, body []byte) bool {
				if broken {
					cutAt(cut)(w, r, body)
				}
				return broken
			}}
			host := inProcess(t, f.wrap)
			push(t, host+"/x", img)
			s := newStore(t)
			if _, err := s.Pull(ctx, host+"/x", PullOptions{}); err == nil {
				t.Fatal("the first pull succeeded")
			}
			if test.spoil {
				spoil(t, s.path("partial", blob.Hex), 1000)
			}
			f.mu.Lock()
			broken, f.sent, f.asked = false, 0, nil
			f.mu.Unlock()
			again := openStore(t, s.root)
			if _, err := again.Pull(ctx, host+"/x", PullOptions{}); err != nil {
				t.Fatal(err)
			}
			asked, sent := f.seen()
			if resumed := sent < size; resumed != test.resumes {
				t.Errorf("%d bytes were sent: %q", sent, asked)
			}
			if !strings.HasPrefix(asked[0], fmt.Sprintf("bytes=%d-", cut)) {
				t.Errorf("asked: %q", asked)
			}
			checkStore(t, again)
			checkNoPartials(t, again)
		})
	}
}

// Pulls of the same layers at once, in two processes' stores of one root,
// fetch each layer once.
func TestPullsAtOnceShareALayer(t *testing.T) {
	img, blob := oneLayer(t, 300_000)
	begun, proceed := make(chan struct{}), make(chan struct{})
	f := &faulty{blob: blob.String(), serve: func(_ http.ResponseWriter, _ *http.Request, n int, _ []byte) bool {
		if n == 1 {
			close(begun)
			<-proceed
		}
		return false
	}}
	host := inProcess(t, f.wrap)
	push(t, host+"/x", img)
	s := newStore(t)
	waits := make(chan struct{})
	var group sync.WaitGroup
	pull := func(store *Store, tell func(Event)) {
		defer group.Done()
		if _, err := store.Pull(ctx, host+"/x", PullOptions{Progress: tell}); err != nil {
			t.Error(err)
		}
	}
	group.Add(2)
	go pull(s, nil)
	<-begun
	var once sync.Once
	go pull(openStore(t, s.root), func(e Event) {
		if e.Status == "Waiting" {
			once.Do(func() { close(waits) })
		}
	})
	select {
	case <-waits:
	case <-time.After(10 * time.Second):
		t.Error("the second pull does not wait for the first")
	}
	close(proceed)
	group.Wait()
	if asked, _ := f.seen(); len(asked) != 1 {
		t.Errorf("the layer was asked for %d times", len(asked))
	}
	checkStore(t, s)
	checkNoPartials(t, s)
}

// Mirrors are asked first. One that is down, does not have it, or lies, costs
// nothing but time.
func TestMirrors(t *testing.T) {
	img, blob := oneLayer(t, 100_000)
	for _, test := range []struct {
		name   string
		mirror func(t *testing.T) string
		origin bool // is asked for the layer
	}{
		{"one that has it", func(t *testing.T) string { return pushed(t, img, nil) + "/cache/hub" }, false},
		{"one that is down", func(*testing.T) string { return "127.0.0.1:1" }, true},
		{"one without it", func(t *testing.T) string { return inProcess(t, nil) }, true},
		{"one that fails", func(t *testing.T) string {
			return pushed(t, img, func(next http.Handler) http.Handler { return failing(next, "/blobs/") })
		}, true},
		{"one that sends other bytes", func(t *testing.T) string {
			f := &faulty{blob: blob.String(), serve: func(w http.ResponseWriter, _ *http.Request, _ int, body []byte) bool {
				_, _ = w.Write(append([]byte{body[0] ^ 1}, body[1:]...))
				return true
			}}
			return pushed(t, img, f.wrap) + "/cache/hub"
		}, true},
		{"one with another manifest for the digest", func(t *testing.T) string {
			return inProcess(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/manifests/") {
						_, _ = io.WriteString(w, `{"schemaVersion":2}`)
						return
					}
					next.ServeHTTP(w, r)
				})
			})
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &faulty{blob: blob.String()}
			origin := inProcess(t, f.wrap)
			push(t, origin+"/lib/x:1", img)
			digest, err := img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			s := newStore(t)
			s.UseRegistries(map[string]registry.Host{origin: {Mirrors: []string{test.mirror(t)}}})
			pulled, err := s.Pull(ctx, origin+"/lib/x:1@"+digest.String(), PullOptions{})
			if err != nil || pulled.Manifest.String() != digest.String() {
				t.Fatalf("got %s, %v", pulled.Manifest, err)
			}
			if asked, _ := f.seen(); len(asked) > 0 != test.origin {
				t.Errorf("the origin was asked %d times", len(asked))
			}
			checkStore(t, s)
		})
	}
}

// pushed gives a registry that has img as cache/hub/lib/x and lib/x.
func pushed(t *testing.T, img v1.Image, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	host := inProcess(t, wrap)
	push(t, host+"/cache/hub/lib/x:1", img)
	push(t, host+"/lib/x:1", img)
	return host
}

func failing(next http.Handler, part string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, part) {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		next.ServeHTTP(w, r)
	})
}
