package image

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
)

// inProcess starts go-containerregistry's registry; wrap sees every request.
func inProcess(t testing.TB, wrap func(http.Handler) http.Handler) (host string) {
	t.Helper()
	h := ggcrregistry.New(ggcrregistry.Logger(log.New(io.Discard, "", 0)))
	if wrap != nil {
		h = wrap(h)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// debianRegistry starts Debian's docker-registry on a free loopback port.
func debianRegistry(t testing.TB) (host string) {
	t.Helper()
	path, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs docker-registry (Debian package docker-registry): ", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	if err := l.Close(); err != nil { // free again for the registry
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", dir, host)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(path, "serve", file)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // by the process's own handle
		_ = cmd.Wait()
	})
	eventually(t, "the registry answers", func() bool {
		res, err := http.Get("http://" + host + "/v2/")
		return err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK
	})
	return host
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("after 20 s it is still not so that %s", what)
		}
	}
}

func push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img); err != nil {
		t.Fatal(err)
	}
}

func TestPull(t *testing.T) {
	for kind, start := range map[string]func(*testing.T) string{
		"in process":      func(t *testing.T) string { return inProcess(t, nil) },
		"docker-registry": func(t *testing.T) string { return debianRegistry(t) },
	} {
		t.Run(kind, func(t *testing.T) {
			s := newStore(t)
			want := remoteThree(t)
			ref := start(t) + "/team/app:1"
			push(t, ref, want)
			var out bytes.Buffer
			img, err := s.Pull(ctx, ref, PullOptions{Out: &out})
			if err != nil {
				t.Fatal(err)
			}
			checkPulled(t, img, want)
			if diff := cmp.Diff(wantMerged, merged(t, s, img)); diff != "" {
				t.Errorf("merged (-want +got):\n%s", diff)
			}
			if n := strings.Count(out.String(), "Pull complete"); n != 3 {
				t.Errorf("%d layers reported:\n%s", n, &out)
			}
			pinned := strings.TrimSuffix(ref, ":1") + "@" + img.Manifest.String()
			again, err := s.Pull(ctx, pinned, PullOptions{Out: &out})
			if err != nil || again.ID != img.ID || len(again.Names) != 2 {
				t.Errorf("by digest: %v, %v", again.Names, err)
			}
			if n := strings.Count(out.String(), "Already exists"); n != 3 {
				t.Errorf("%d layers were here:\n%s", n, &out)
			}
			checkStore(t, s)
		})
	}
}

func checkPulled(t *testing.T, img Image, want v1.Image) {
	t.Helper()
	id, err := want.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := want.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if img.ID.String() != id.String() || img.Manifest.String() != manifest.String() {
		t.Errorf("id %s, manifest %s, want %s, %s", img.ID, img.Manifest, id, manifest)
	}
	if env := img.Config.Config.Env; len(env) != 1 || env[0] != "A=b" {
		t.Errorf("env %v", env)
	}
}

// wantMerged is what a container of threeLayers sees.
const wantMerged = `. mode=40755 owner=0:0
a mode=100644 owner=0:0 mtime=1600000000 "a"
etc mode=40750 owner=0:0 mtime=1600000000
etc/new mode=100644 owner=0:0 mtime=1600000000 "etc/new"
etc/os-release mode=100644 owner=0:0 mtime=1600000000 "etc/os-release"
old mode=40755 owner=0:0 mtime=1600000000
old/fresh mode=100644 owner=0:0 mtime=1600000000 "old/fresh"
sh mode=120777 owner=0:0 mtime=1600000000 -> /bin/sh
tmp mode=41777 owner=0:0 mtime=1600000000
tmp/implied mode=100644 owner=0:0 mtime=1600000000 "tmp/implied"
usr mode=40755 owner=0:0 mtime=0
usr/bin mode=40755 owner=0:0 mtime=0
usr/bin/su mode=104755 owner=7:0 mtime=1600000000 ""`

func TestPullChoosesThePlatform(t *testing.T) {
	host := inProcess(t, nil)
	push(t, host+"/arm", mustConfig(t, "arm64"))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: mustConfig(t, "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: mustConfig(t, "amd64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	parsed, err := name.ParseReference(host + "/multi")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(parsed, index); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := s.Pull(ctx, host+"/multi", PullOptions{Platform: "linux/" + arch})
		if err != nil || img.Config.Architecture != arch {
			t.Errorf("%s: got %s, %v", arch, img.Config.Architecture, err)
		}
	}
	if _, err := s.Pull(ctx, host+"/multi", PullOptions{Platform: "linux/s390x"}); err == nil {
		t.Error("pulled a platform that is not there")
	}
	if _, err := s.Pull(ctx, host+"/arm", PullOptions{Platform: "linux/amd64"}); err == nil || !strings.Contains(err.Error(), "it is for linux/arm64") {
		t.Errorf("a single image of another platform: %v", err)
	}
}

func mustConfig(t *testing.T, arch string) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: arch})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A registry that lies about a layer, or breaks off in it, leaves no image and
// no layer behind; one that breaks off once is asked again.
func TestPullFromABadRegistry(t *testing.T) {
	for _, test := range []struct {
		name  string
		serve func(w http.ResponseWriter, body []byte)
		times int32 // that it misbehaves, per registry
		want  string
	}{
		{"other bytes", func(w http.ResponseWriter, body []byte) {
			body = bytes.Clone(body)
			body[len(body)/2] ^= 1
			_, _ = w.Write(body)
		}, 100, "layer sha256:"},
		{"more bytes", func(w http.ResponseWriter, body []byte) { _, _ = w.Write(append(bytes.Clone(body), 0)) }, 100, "layer sha256:"},
		{"always half", func(w http.ResponseWriter, body []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:len(body)/2])
		}, 100, "layer sha256:"},
		{"half, once", func(w http.ResponseWriter, body []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body[:len(body)/2])
		}, 1, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			img := remoteThree(t)
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			bad, err := layers[0].Digest()
			if err != nil {
				t.Fatal(err)
			}
			var served atomic.Int32
			host := inProcess(t, func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, bad.String()) || served.Add(1) > test.times {
						next.ServeHTTP(w, r)
						return
					}
					rec := httptest.NewRecorder()
					next.ServeHTTP(rec, r)
					test.serve(w, rec.Body.Bytes())
				})
			})
			push(t, host+"/x", img)
			s := newStore(t)
			_, err = s.Pull(ctx, host+"/x", PullOptions{})
			switch {
			case test.want == "" && err != nil:
				t.Error(err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want %q", err, test.want)
			}
			if images := checkStore(t, s); test.want != "" && len(images) > 0 {
				t.Errorf("left: %v", images)
			}
			diffID, err := layers[0].DiffID()
			if err != nil {
				t.Fatal(err)
			}
			if test.want != "" && s.HasLayer(digest.Digest(diffID.String())) {
				t.Error("the bad layer is in the store")
			}
		})
	}
}

func TestPullErrors(t *testing.T) {
	s := newStore(t)
	host := inProcess(t, nil)
	if _, err := s.Pull(ctx, host+"/none:1", PullOptions{}); err == nil || !strings.Contains(err.Error(), "pull "+host+"/none:1") {
		t.Errorf("an image that is not there: %v", err)
	}
	if _, err := s.Pull(ctx, "Not A Name", PullOptions{}); err == nil {
		t.Error("pulled no name")
	}
	if _, err := s.Pull(ctx, host+"/x", PullOptions{Platform: "a/b/c/d/e"}); err == nil {
		t.Error("pulled for no platform")
	}
}
