// Package decompress opens streams that may be compressed, by what they begin with.
//
// The memory of a reader is bounded whatever the stream asks for: formats with a window
// or dictionary let the sender choose its size. How much comes out is not: a caller who
// keeps it compares with what went in.
package decompress

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Format is a compression.
type Format string

// The formats that Open knows.
const (
	None  Format = ""
	Gzip  Format = "gzip"
	Zstd  Format = "zstd"
	XZ    Format = "xz"
	Bzip2 Format = "bzip2"
)

// window is how much memory a stream may take to look back into: zstd --long=27 and
// twice that of xz -9.
const window = 128 << 20

// Open looks at the first bytes of r and returns what they hold, decompressed. What
// begins like none of the formats is returned as it is. Several streams of one format
// in a row are one. The end is only proven by io.EOF: a stream that is cut off or
// damaged is an error. Closing the result does not close r.
func Open(r io.Reader) (io.ReadCloser, Format, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, None, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		plain, err := gzip.NewReader(br)
		if err != nil {
			return nil, Gzip, err
		}
		return plain, Gzip, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), skippable(head):
		d, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(window))
		if err != nil {
			return nil, Zstd, err
		}
		return d.IOReadCloser(), Zstd, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		plain, err := newXZ(br)
		return plain, XZ, err
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(br)), Bzip2, nil
	}
	return io.NopCloser(br), None, nil
}

// skippable tells whether a zstd stream begins with a frame that is to be skipped
// (RFC 8878, section 3.1.2), as those of some parallel compressors do.
func skippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}
