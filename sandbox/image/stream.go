package image

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/internal/decompress"
	"naru/sandbox/image/layer"
)

// unpackVerified unpacks a layer in any compression to the new directory tree,
// reads r to its end, and checks the diff id ("": not). Of the result's blob
// it knows the media type only.
func unpackVerified(ctx context.Context, tree string, r io.Reader, diffID digest.Digest) (*unpacked, error) {
	if err := makeTree(tree); err != nil {
		return nil, err
	}
	count := &layer.Count{R: r}
	// By its first bytes rather than by a media type, which archives do not have and
	// registries are known to get wrong.
	plain, format, err := decompress.Open(count)
	if err != nil {
		return nil, err
	}
	defer func() { _ = plain.Close() }()
	limits := layer.DefaultLimits()
	tar := newSink(nil)
	tee := io.TeeReader(limits.Guard(plain, count), tar)
	result, err := layer.Unpack(ctx, tree, tee, layer.Options{Limits: limits, Compressed: count})
	if err != nil {
		return nil, err
	}
	for _, rest := range []io.Reader{tee, count} { // padding behind the archive, and behind the compressed stream: both are hashed
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return nil, err
		}
	}
	info := layerInfo{DiffID: tar.digest(), Size: tar.n, Opaque: result.Opaque}
	if diffID != "" && info.DiffID != diffID {
		return nil, fmt.Errorf("uncompressed it is %s", info.DiffID)
	}
	return &unpacked{tree: tree, info: info, implied: result.Implied, blob: ocispec.Descriptor{MediaType: typeOf(format)}}, nil
}

// makeTree makes the directory of a layer. What the tar says of its root comes
// on top.
func makeTree(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the umask is
}

// typeOf is the media type of a layer in a compression. The last two are nobody's
// standard: they stay in this store (layerInfo.asItCame).
func typeOf(f decompress.Format) string {
	if f == decompress.None {
		return ocispec.MediaTypeImageLayer
	}
	return ocispec.MediaTypeImageLayer + "+" + string(f)
}
