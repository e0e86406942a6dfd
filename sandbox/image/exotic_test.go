package image

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image/layer/layertest"
)

// packed compresses with a program of the machine.
func packed(t testing.TB, data []byte, program string) []byte {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("needs %s", program)
	}
	cmd := exec.Command(path, "-c")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// exotic is a layer in a compression that go-containerregistry does not know, under
// the media type that old registries have for it.
type exotic struct{ plain, packed []byte }

func (l exotic) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.packed))
	return h, err
}
func (l exotic) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.plain))
	return h, err
}
func (l exotic) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.packed)), nil
}
func (l exotic) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}
func (l exotic) Size() (int64, error)                { return int64(len(l.packed)), nil }
func (l exotic) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }

// TestExoticCompressions pulls an image whose layers are xz and bzip2, keeps what came,
// and gives it away in forms that everybody reads.
func TestExoticCompressions(t *testing.T) {
	host := inProcess(t, nil)
	config, err := remoteThree(t).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.RootFS.DiffIDs, config.History = nil, nil
	img, err := mutate.ConfigFile(empty.Image, config)
	if err != nil {
		t.Fatal(err)
	}
	for i, entries := range threeLayers() {
		data := layertest.Tar(t, entries...)
		if img, err = mutate.AppendLayers(img, exotic{data, packed(t, data, []string{"xz", "bzip2", "xz"}[i])}); err != nil {
			t.Fatal(err)
		}
	}
	push(t, host+"/exotic:1", img)
	s := newStore(t)
	pulled, err := s.Pull(ctx, host+"/exotic:1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantMerged, merged(t, s, pulled)); diff != "" {
		t.Errorf("merged (-want +got):\n%s", diff)
	}
	checkStore(t, s)

	if err := s.Tag(host+"/exotic:1", host+"/plain:1"); err != nil {
		t.Fatal(err)
	}
	digest, err := s.Push(ctx, host+"/plain:1", PushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkPushed(t, s, pulled, host+"/plain:1", digest.String())
	var archive bytes.Buffer
	if err := s.Save(ctx, &archive, host+"/plain:1"); err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{archive.Bytes(), packed(t, archive.Bytes(), "xz"), packed(t, archive.Bytes(), "bzip2")} {
		other := newStore(t)
		loaded, err := other.Load(ctx, bytes.NewReader(data), LoadOptions{})
		if err != nil || len(loaded) != 1 || loaded[0].ID != pulled.ID {
			t.Fatalf("loaded %+v, %v", loaded, err)
		}
		var m ocispec.Manifest
		if data, err := os.ReadFile(other.blobPath(loaded[0].Manifest)); err != nil || json.Unmarshal(data, &m) != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			if l.MediaType != ocispec.MediaTypeImageLayer {
				t.Errorf("a layer was saved as %s", l.MediaType)
			}
		}
	}
	if _, err := s.Load(ctx, bytes.NewReader(packed(t, archive.Bytes(), "xz")[:1000]), LoadOptions{}); err == nil {
		t.Error("an archive that is cut off was loaded")
	}
}
