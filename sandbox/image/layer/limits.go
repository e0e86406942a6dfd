package layer

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"
)

// ErrHostile says that the tar asks for something no honest layer needs: a
// path that leaves the layer, a whiteout of "..", more than the limits. Reading
// it again will not help.
var ErrHostile = errors.New("layer refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrHostile}, args...)...)
}

// Limits bound what one layer may cost. The zero value means DefaultLimits.
type Limits struct {
	Entries int64 // tar entries
	Depth   int   // components of a path
	Bytes   int64 // content of all files together, holes included; 0: see Ratio
	// Ratio and Floor bound bytes by the size of what was read to get them
	// (decompression bombs): at most Floor + Ratio × compressed bytes. A Ratio of 0: not.
	Ratio, Floor int64
}

// DefaultLimits fit every image seen in practice (the largest have about half
// a million entries in a layer) and end a bomb after two gigabytes.
func DefaultLimits() Limits {
	return Limits{Entries: 2_000_000, Depth: 256, Bytes: math.MaxInt64, Ratio: 100, Floor: 2 << 30}
}

// Count is a reader that counts what went through it. Put one below the
// decompressor, so that Unpack can compare with it.
type Count struct {
	R io.Reader
	n atomic.Int64
}

// Read reads from R.
func (c *Count) Read(p []byte) (int, error) {
	n, err := c.R.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// N is the number of bytes read so far.
func (c *Count) N() int64 { return c.n.Load() }

// Guard returns a reader of r that fails with ErrHostile as soon as it has
// given more bytes than l allows for what came was read from compressed.
func (l Limits) Guard(r io.Reader, compressed *Count) io.Reader {
	return &guard{r: r, limits: l, compressed: compressed}
}

type guard struct {
	r          io.Reader
	limits     Limits
	compressed *Count
	n          int64
}

func (g *guard) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	g.n += int64(n)
	if limit := g.limits.allowed(g.compressed); g.n > limit {
		return 0, refuse("it decompresses to more than %d bytes", limit)
	}
	return n, err
}

// allowed is how many bytes may have been made of what was read so far.
func (l Limits) allowed(compressed *Count) int64 {
	if l.Ratio == 0 || compressed == nil {
		return l.Bytes
	}
	if read := compressed.N(); read < (math.MaxInt64-l.Floor)/l.Ratio {
		return min(l.Bytes, l.Floor+l.Ratio*read)
	}
	return l.Bytes
}
