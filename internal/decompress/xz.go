package decompress

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz"
)

// newXZ unpacks xz (https://tukaani.org/xz/xz-file-format.txt). The library makes
// a dictionary of the size that a block asks for, up to 4 GiB, so the blocks are
// looked at before it sees them.
func newXZ(r *bufio.Reader) (io.ReadCloser, error) {
	d, err := xz.NewReader(&xzBlocks{r: r, next: (*xzBlocks).stream})
	if err != nil {
		return nil, err
	}
	return io.NopCloser(d), nil
}

var errNoXZ = errors.New("damaged xz stream")

// xzBlocks passes an xz file on. It follows its structure as far as is needed to
// find the header of every block.
type xzBlocks struct {
	r     *bufio.Reader
	head  []byte // read and looked at
	pass  int64  // bytes that follow and need not be looked at
	next  func(*xzBlocks) error
	check int64 // bytes behind each block
	size  int64 // of this block's data, or of the index, until now
	left  uint64
	read  int64 // of the file
	dicts int64 // bytes of dictionaries, one for each block
}

// The library makes a dictionary for every block, so that many small blocks that ask
// for large ones take time: they may sum up to this, and so much for each byte read.
const (
	dictFloor = 2 << 30
	dictRatio = 100
)

func (x *xzBlocks) Read(p []byte) (int, error) {
	for len(x.head) == 0 && x.pass == 0 {
		if err := x.next(x); err != nil {
			return 0, err
		}
	}
	if len(x.head) > 0 {
		n := copy(p, x.head)
		x.head = x.head[n:]
		return n, nil
	}
	n, err := x.r.Read(p[:min(int64(len(p)), x.pass)])
	x.read += int64(n)
	if x.pass -= int64(n); err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// take reads n bytes to be looked at.
func (x *xzBlocks) take(n int) ([]byte, error) {
	at := len(x.head)
	x.read += int64(n)
	x.head = append(x.head, make([]byte, n)...)
	if _, err := io.ReadFull(x.r, x.head[at:]); err != nil {
		return nil, errors.Join(errNoXZ, io.ErrUnexpectedEOF)
	}
	x.size += int64(n)
	return x.head[at:], nil
}

// stream is the header of a stream, the padding before it, or the end.
func (x *xzBlocks) stream() error {
	x.head = x.head[:0]
	if _, err := x.r.Peek(1); err == io.EOF {
		return io.EOF
	}
	b, err := x.take(4)
	if err != nil {
		return err
	}
	if b[0] == 0 { // padding is of four bytes each
		return nil
	}
	if b, err = x.take(8); err != nil {
		return err
	}
	x.check = [...]int64{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}[b[3]&15]
	x.next = (*xzBlocks).block
	return nil
}

// block is the header of a block, or the index behind the last one.
func (x *xzBlocks) block() error {
	x.head, x.size = x.head[:0], 0
	first, err := x.take(1)
	if err != nil {
		return err
	}
	if first[0] == 0 {
		x.next = (*xzBlocks).index
		return nil
	}
	b, err := x.take(int(first[0])*4 + 3)
	if err != nil {
		return err
	}
	size, err := dictionary(b[:len(b)-4]) // without its checksum
	if err != nil {
		return err
	}
	if size > window {
		return fmt.Errorf("xz: a dictionary of %d bytes, at most %d are taken", size, window)
	}
	if x.dicts += size; x.dicts > dictFloor+dictRatio*x.read {
		return fmt.Errorf("xz: dictionaries of %d bytes in all, for %d bytes compressed", x.dicts, x.read)
	}
	x.size, x.next = 0, (*xzBlocks).chunk
	return nil
}

// dictionary is the size that a block header asks for.
func dictionary(b []byte) (int64, error) {
	flags := b[0]
	b = b[1:]
	for _, bit := range []byte{0x40, 0x80} { // sizes, if they are given
		if flags&bit != 0 {
			_, b = number62(b)
		}
	}
	largest := int64(0)
	for range flags&3 + 1 {
		id, rest := number62(b)
		n, rest := number62(rest)
		if n > uint64(len(rest)) {
			return 0, errNoXZ
		}
		if id == 0x21 && n == 1 { // LZMA2
			bits := rest[0] & 63
			if bits > 40 {
				return 0, errNoXZ
			}
			largest = max(largest, int64(2|bits&1)<<(bits/2+11))
		}
		b = rest[n:]
	}
	return largest, nil
}

// number62 reads a number of up to nine bytes. Behind the end there are zeros.
func number62(b []byte) (n uint64, rest []byte) {
	for i := 0; i < 9 && i < len(b); i++ {
		n |= uint64(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return n, b[i+1:]
		}
	}
	return n, nil
}

// chunk is one of the chunks of LZMA2 that a block is made of.
func (x *xzBlocks) chunk() error {
	x.head = x.head[:0]
	b, err := x.take(1)
	if err != nil {
		return err
	}
	switch control := b[0]; {
	case control == 0: // the end: padding to four bytes, and the checksum
		x.pass, x.next = -x.size&3+x.check, (*xzBlocks).block
		return nil
	case control <= 2:
		if b, err = x.take(2); err != nil {
			return err
		}
		x.pass = int64(b[0])<<8 + int64(b[1]) + 1
	case control >= 0x80:
		if b, err = x.take(4); err != nil {
			return err
		}
		x.pass = int64(b[2])<<8 + int64(b[3]) + 1
		if control >= 0xc0 {
			x.pass++ // properties
		}
	default:
		return errNoXZ
	}
	x.size += x.pass
	return nil
}

// index is the number of the index's records.
func (x *xzBlocks) index() error {
	x.head = x.head[:0]
	n, err := x.number()
	x.left, x.next = 2*n, (*xzBlocks).record
	return err
}

// record is half a record of the index, or what is behind them.
func (x *xzBlocks) record() error {
	x.head = x.head[:0]
	if x.left > 0 {
		x.left--
		_, err := x.number()
		return err
	}
	x.pass, x.next = -x.size&3+4+12, (*xzBlocks).stream // padding, checksum, footer
	return nil
}

func (x *xzBlocks) number() (n uint64, err error) {
	for i := range 9 {
		b, err := x.take(1)
		if err != nil {
			return 0, err
		}
		n |= uint64(b[0]&0x7f) << (7 * i)
		if b[0]&0x80 == 0 {
			return n, nil
		}
	}
	return 0, errNoXZ
}
