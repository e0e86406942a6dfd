package decompress

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// minDict makes the library take a dictionary of the size that a block asks for; it
// takes 8 MiB for each otherwise.
const minDict = lzma.MinDictCap

// All blocks together may ask for as much memory, one after the other, as a layer may
// have content for its size (sandbox/image/layer): taking it costs time.
const dictFloor, dictRatio = 2 << 30, 100

// xzGuard stands below the library, which knows no bound of memory: every block of a
// stream may ask for a dictionary of 4 GiB, which is taken before a byte of it is
// needed. A block header is read in two pieces, its first byte and the rest, and ends
// in a checksum: nothing else that is read so looks like one.
type xzGuard struct {
	r     io.Reader
	first int // the last piece, if that was one byte; else 0
	read  int64
	dicts int64
}

func (g *xzGuard) Read(p []byte) (int, error) {
	// A header must not come in more pieces than it is asked for; its size fits a byte.
	const longest = 256 * 4
	n, err := 0, error(nil)
	if len(p) <= longest {
		if n, err = io.ReadFull(g.r, p); err == io.ErrUnexpectedEOF {
			err = nil // said when there is nothing at all
		}
	} else {
		n, err = g.r.Read(p)
	}
	g.read += int64(n)
	if g.first > 0 && n == 4*(g.first+1)-1 {
		if err := g.check(append([]byte{byte(g.first)}, p[:n]...)); err != nil {
			return 0, err
		}
	}
	g.first = 0
	if n == 1 && len(p) == 1 {
		g.first = int(p[0])
	}
	return n, err
}

// check looks at a block header ("The .xz File Format", 3.1): size, flags, perhaps the
// sizes of the block, its filters, zeros, CRC32.
func (g *xzGuard) check(header []byte) error {
	end := len(header) - 4
	if crc32.ChecksumIEEE(header[:end]) != binary.LittleEndian.Uint32(header[end:]) {
		return nil // compressed data
	}
	rest := bytes.NewReader(header[2:end])
	for _, flag := range []byte{0x40, 0x80} {
		if header[1]&flag != 0 {
			if _, err := binary.ReadUvarint(rest); err != nil {
				return nil // the library says what is wrong
			}
		}
	}
	// The library knows one filter: LZMA2, which has one byte of properties.
	var filter [3]byte
	if _, err := io.ReadFull(rest, filter[:]); err != nil || filter[0] != 0x21 || filter[1] != 1 {
		return nil
	}
	dict, err := lzma.DecodeDictCap(filter[2])
	if err != nil {
		return nil
	}
	if dict > window {
		return fmt.Errorf("xz: a dictionary of %d bytes, at most %d are taken", dict, window)
	}
	if g.dicts += dict; g.dicts > dictFloor+dictRatio*g.read {
		return fmt.Errorf("xz: dictionaries of %d bytes in all, for %d bytes compressed", g.dicts, g.read)
	}
	return nil
}
