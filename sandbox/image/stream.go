package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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
	plain, mediaType, err := decompress(count)
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
	return &unpacked{tree: tree, info: info, implied: result.Implied, blob: ocispec.Descriptor{MediaType: mediaType}}, nil
}

// makeTree makes the directory of a layer. What the tar says of its root comes
// on top.
func makeTree(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the umask is
}

var (
	gzipMagic  = []byte{0x1f, 0x8b}
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	bzip2Magic = []byte("BZh")
	xzMagic    = []byte{0xfd, '7', 'z', 'X'}
)

// decompress looks at the first bytes rather than at a media type, which
// archives do not have and registries are known to get wrong.
func decompress(r io.Reader) (plain io.ReadCloser, mediaType string, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", err
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		plain, err = gzip.NewReader(br)
		return plain, ocispec.MediaTypeImageLayerGzip, err
	case bytes.HasPrefix(head, zstdMagic):
		// The sender chooses the window, which is memory here; zstd --long=27 needs 128 MiB.
		d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, "", err
		}
		return d.IOReadCloser(), ocispec.MediaTypeImageLayerZstd, nil
	case bytes.HasPrefix(head, bzip2Magic):
		return nil, "", errors.New("it is compressed by bzip2, which is not supported: want gzip, zstd or none")
	case bytes.HasPrefix(head, xzMagic):
		return nil, "", errors.New("it is compressed by xz, which is not supported: want gzip, zstd or none")
	}
	return io.NopCloser(br), ocispec.MediaTypeImageLayer, nil
}
