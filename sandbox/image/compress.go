package image

import (
	"bytes"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression is how a push sends the layers that were made here.
type Compression string

// The compressions of layers that the image-spec names.
const (
	Gzip Compression = "gzip" // every registry and engine knows it
	Zstd Compression = "zstd" // smaller and faster; Docker reads it since 23
)

func (c Compression) mediaType() (string, error) {
	switch c {
	case Gzip:
		return ocispec.MediaTypeImageLayerGzip, nil
	case Zstd:
		return ocispec.MediaTypeImageLayerZstd, nil
	}
	return "", fmt.Errorf("compression %q: want gzip or zstd", string(c))
}

// writer compresses to w on all processors. The same bytes give the same
// bytes, on any number of processors.
func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	if c == Zstd {
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	}
	return newGzipWriter(w, runtime.GOMAXPROCS(0)), nil
}

// gzipWriter writes a gzip member for each block of its input (RFC 1952, 2.2:
// members follow one another), so that blocks can be compressed at once. It
// costs about 20 bytes and the reach of a window for each.
type gzipWriter struct {
	block   []byte
	pending chan chan gzipped // in order; its capacity bounds what is under way
	done    chan error
	err     error
	blocks  int
}

type gzipped struct {
	data []byte
	err  error
}

const gzipBlock = 1 << 20

func newGzipWriter(w io.Writer, parallel int) *gzipWriter {
	pending := make(chan chan gzipped, max(1, parallel))
	g := &gzipWriter{pending: pending, done: make(chan error, 1)}
	go func() {
		var failed error
		for result := range pending {
			part := <-result
			if failed == nil {
				failed = part.err
			}
			if failed == nil {
				_, failed = w.Write(part.data)
			}
		}
		g.done <- failed
	}()
	return g
}

func (g *gzipWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		room := min(gzipBlock-len(g.block), len(p))
		g.block, p = append(g.block, p[:room]...), p[room:]
		if len(g.block) == gzipBlock {
			g.flush()
		}
	}
	return n, nil
}

func (g *gzipWriter) flush() {
	block := g.block
	g.block = make([]byte, 0, gzipBlock)
	g.blocks++
	result := make(chan gzipped, 1)
	g.pending <- result
	go func() {
		data, err := gzipMember(block)
		result <- gzipped{data, err}
	}()
}

func gzipMember(block []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.DefaultCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(block); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Close writes what is left and waits; a second call does nothing.
func (g *gzipWriter) Close() error {
	if g.pending == nil {
		return g.err
	}
	if len(g.block) > 0 || g.blocks == 0 {
		g.flush()
	}
	close(g.pending)
	g.pending = nil
	g.err = <-g.done
	return g.err
}
