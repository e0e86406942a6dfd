package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ggcr "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"

	"naru/sandbox/image/layer/layertest"
	"naru/sandbox/image/registry"
)

// saved gives a store with a pulled and a built image, and the archive of both.
func saved(t *testing.T) (s *Store, images map[string]Image, archive []byte) {
	t.Helper()
	s = newStore(t)
	host := inProcess(t, nil)
	push(t, host+"/base", remoteThree(t))
	base, err := s.Pull(ctx, host+"/base", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	built, err := s.Put(ctx, base.Config, append(base.Layers, commit(t, s, "built")), "app:1", "app:2")
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := s.Save(ctx, &buf, host+"/base", "app:1"); err != nil {
		t.Fatal(err)
	}
	return s, map[string]Image{host + "/base:latest": base, "app:1": built}, buf.Bytes()
}

func TestSaveLoadRoundTrip(t *testing.T) {
	s, images, archive := saved(t)
	other := newStore(t)
	loaded, err := other.Load(ctx, bytes.NewReader(archive), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != len(images) {
		t.Fatalf("loaded %d images", len(loaded))
	}
	for name, want := range images {
		got, err := other.Get(name)
		if err != nil || got.ID != want.ID {
			t.Fatalf("%s: %s, %v, want %s", name, got.ID, err, want.ID)
		}
		if diff := cmp.Diff(merged(t, s, want), merged(t, other, got)); diff != "" {
			t.Errorf("%s (-saved +loaded):\n%s", name, diff)
		}
	}
	if _, err := other.Get("app:2"); err == nil {
		t.Error("a name that was not asked for came along")
	}
	checkStore(t, other)
	var again bytes.Buffer
	var refs []string
	for _, img := range loaded {
		refs = append(refs, img.Names[0])
	}
	if err := other.Save(ctx, &again, refs...); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bytes(), archive) {
		t.Error("saved again the archive differs")
	}
	info, err := other.layerInfo(images["app:1"].Layers[3])
	if err != nil || info.Blob != nil {
		t.Errorf("the built layer is kept twice: %+v, %v", info.Blob, err)
	}
}

func TestSkopeoReadsAndWritesWhatWeDo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo: ", err)
	}
	_, images, archive := saved(t)
	dir := t.TempDir()
	ours := filepath.Join(dir, "ours.tar")
	if err := os.WriteFile(ours, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	want := images["app:1"]
	for _, pair := range [][2]string{{"oci", "oci"}, {"docker", "docker"}, {"docker", "oci"}, {"oci", "docker"}} {
		file := filepath.Join(t.TempDir(), "theirs.tar")
		from, to := pair[0]+"-archive:"+ours+":app:1", pair[1]+"-archive:"+file+":app:1"
		if out, err := exec.Command(skopeo, "--insecure-policy", "copy", from, to).CombinedOutput(); err != nil {
			t.Errorf("skopeo copy %s %s: %v\n%s", from, to, err, out)
			continue
		}
		loadFile(t, file, want, to)
	}
}

func loadFile(t *testing.T, file string, want Image, what string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	s := newStore(t)
	if _, err := s.Load(ctx, f, LoadOptions{}); err != nil {
		t.Errorf("load %s: %v", what, err)
		return
	}
	img, err := s.Get("app:1")
	if err != nil {
		t.Errorf("load %s: %v", what, err)
		return
	}
	// skopeo writes a config of its own for a change of format, with the same layers
	if diff := cmp.Diff(want.Layers, img.Layers); diff != "" {
		t.Errorf("load %s: layers (-want +got):\n%s", what, diff)
	}
	checkStore(t, s)
}

// The daemon is the test's own: its data, socket and state are in a temporary
// directory, it touches neither network nor firewall, and what it writes to
// /etc and /run regardless (key.json, plugins) ends with its mount namespace.
func TestDockerLoadsOurArchive(t *testing.T) {
	docker := startDocker(t)
	_, images, archive := saved(t)
	cmd := docker("load")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker load: %v\n%s", err, out)
	}
	out, err := docker("image", "inspect", "--format", "{{.ID}} {{json .RootFS.Layers}}", "app:1").CombinedOutput()
	layers, jsonErr := json.Marshal(images["app:1"].Layers)
	if err != nil || jsonErr != nil {
		t.Fatalf("docker image inspect: %v, %v\n%s", err, jsonErr, out)
	}
	if want := images["app:1"].ID.String() + " " + string(layers); strings.TrimSpace(string(out)) != want {
		t.Errorf("docker has\n%s\nwant\n%s", out, want)
	}
	theirs, err := docker("save", "app:1").Output()
	if err != nil {
		t.Fatalf("docker save: %v", err)
	}
	s := newStore(t)
	if _, err := s.Load(ctx, bytes.NewReader(theirs), LoadOptions{}); err != nil {
		t.Fatalf("load what docker saved: %v", err)
	}
	if img, err := s.Get("app:1"); err != nil || img.ID != images["app:1"].ID {
		t.Errorf("got %s, %v, want %s", img.ID, err, images["app:1"].ID)
	}
	checkStore(t, s)
}

func startDocker(t *testing.T) (docker func(args ...string) *exec.Cmd) {
	t.Helper()
	layertest.NeedRoot(t)
	for _, name := range []string{"dockerd", "docker", "containerd", "unshare"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("needs Docker (skopeo docker-archive reads the same format in another test): ", err)
		}
	}
	dir, err := os.MkdirTemp("", "naru-docker") // t.TempDir's is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	host := "unix://" + dir + "/s"
	var output bytes.Buffer
	const private = `mkdir "$1/etc" "$1/work" && mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" overlay /etc &&
		mount -t tmpfs tmpfs /run && shift && exec dockerd "$@"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", private, "sh", dir, "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "--host", host,
		"--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--storage-driver=overlay2")
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it ends its containerd and unmounts
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("dockerd said at last:\n%s", output.Bytes()[max(0, output.Len()-2000):])
		}
	})
	docker = func(args ...string) *exec.Cmd {
		return exec.Command("docker", append([]string{"--host", host}, args...)...)
	}
	eventually(t, "dockerd answers", func() bool { return docker("version").Run() == nil })
	return docker
}

// Docker before 25 wrote layers as <id>/layer.tar, and equal ones as symbolic links.
func TestLoadOldDockerArchive(t *testing.T) {
	one := layertest.Tar(t, layertest.File("one"))
	two := layertest.Tar(t, layertest.File("two"))
	config, err := json.Marshal(map[string]any{"os": "linux", "architecture": "amd64", "rootfs": map[string]any{
		"type": "layers", "diff_ids": []digest.Digest{digest.FromBytes(one), digest.FromBytes(two), digest.FromBytes(one)}}})
	if err != nil {
		t.Fatal(err)
	}
	id := digest.FromBytes(config)
	files := map[string]string{
		"a/layer.tar": string(one), "b/layer.tar": string(two), id.Encoded() + ".json": string(config),
		"manifest.json": fmt.Sprintf(`[{"Config":"%s.json","RepoTags":["old:1"],"Layers":["a/layer.tar","b/layer.tar","c/layer.tar"]}]`, id.Encoded()),
	}
	s := newStore(t)
	archive := archiveOf(t, files, tar.Header{Typeflag: tar.TypeSymlink, Name: "c/layer.tar", Linkname: "../a/layer.tar"})
	if _, err := s.Load(ctx, bytes.NewReader(archive), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Get("old:1"); err != nil || img.ID != id {
		t.Errorf("got %s, %v, want %s", img.ID, err, id)
	}
	checkStore(t, s)
}

func archiveOf(t testing.TB, files map[string]string, links ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range links {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestLoadsWhatOthersWrite(t *testing.T) {
	img := remoteThree(t)
	dir := t.TempDir()
	dockerFile := filepath.Join(dir, "docker.tar")
	tag, err := name.NewTag("other:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(dockerFile, tag, img); err != nil {
		t.Fatal(err)
	}
	docker, err := os.ReadFile(dockerFile)
	if err != nil {
		t.Fatal(err)
	}
	for name, archive := range map[string][]byte{"docker": docker, "oci": tarDir(t, ociLayout(t, img, "other:1"))} {
		s := newStore(t)
		loaded, err := s.Load(ctx, bytes.NewReader(archive), LoadOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff([]string{"other:1"}, loaded[0].Names); diff != "" {
			t.Errorf("%s: names (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(wantMerged, merged(t, s, loaded[0])); diff != "" {
			t.Errorf("%s: merged (-want +got):\n%s", name, diff)
		}
		checkStore(t, s)
	}
}

func ociLayout(t testing.TB, img v1.Image, ref string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "oci")
	path, err := ggcr.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, ggcr.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref})); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tarDir(t *testing.T, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestLoadRefuses(t *testing.T) {
	config := `{"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`
	layer := string(layertest.Tar(t, layertest.File("f")))
	manifest := `[{"Config":"c.json","RepoTags":["x:1"],"Layers":["l"]}]`
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"no index", map[string]string{"x": ""}, "neither index.json"},
		{"a layer with another diff id", map[string]string{"manifest.json": manifest, "c.json": config, "l": layer}, "uncompressed it is"},
		{"a layer that is missing", map[string]string{"manifest.json": manifest, "c.json": config}, `no file "l"`},
		{"a diff id that is a path", map[string]string{"manifest.json": manifest, "l": layer,
			"c.json": `{"rootfs":{"diff_ids":["sha256:../../../../etc"]}}`}, "diff id"},
		{"another number of layers", map[string]string{"manifest.json": manifest, "l": layer, "c.json": `{}`}, "0 layers"},
		{"a config with another digest", map[string]string{"l": layer, strings.Repeat("1", 64) + ".json": config,
			"manifest.json": `[{"Config":"` + strings.Repeat("1", 64) + `.json","Layers":["l"]}]`}, "is sha256:"},
		{"a document that is too large", map[string]string{"manifest.json": strings.Repeat(" ", registry.MaxDocument+1)}, "more than"},
		{"a name that is none", map[string]string{"manifest.json": `[{"Config":"c.json","RepoTags":["../../x"]}]`, "c.json": `{}`}, "image name"},
		{"an index of nothing", map[string]string{"index.json": `{"manifests":[]}`}, "no image"},
	} {
		s := newStore(t)
		_, err := s.Load(ctx, bytes.NewReader(archiveOf(t, test.files)), LoadOptions{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		if images := checkStore(t, s); len(images) > 0 {
			t.Errorf("%s: left %v", test.name, images)
		}
	}
}

func TestSaveNoticesAChangedLayer(t *testing.T) {
	s := newStore(t)
	d := commit(t, s, "f")
	if _, err := s.Put(ctx, Config{}, []digest.Digest{d}, "x"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.layerPath(d), "fs", "f"), []byte("g"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(ctx, &bytes.Buffer{}, "x"); err == nil || !strings.Contains(err.Error(), "changed on disk") {
		t.Errorf("got %v", err)
	}
}

// umoci unpacks the same image in its own way: one tree, layer after layer.
func TestUmociAgrees(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("needs umoci: ", err)
	}
	img := umociImage(t)
	dir := ociLayout(t, img, "latest")
	bundle := filepath.Join(t.TempDir(), "bundle")
	if out, err := exec.Command(umoci, "unpack", "--image", dir+":latest", bundle).CombinedOutput(); err != nil {
		t.Fatalf("umoci unpack: %v\n%s", err, out)
	}
	s := newStore(t)
	loaded, err := s.Load(ctx, bytes.NewReader(tarDir(t, dir)), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := layertest.Describe(t, filepath.Join(bundle, "rootfs"))
	if diff := cmp.Diff(want, merged(t, s, loaded[0])); diff != "" {
		t.Errorf("merged (-umoci +ours):\n%s", diff)
	}
}
