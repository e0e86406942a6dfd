package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"naru/internal/decompress"
)

// contextBytes bounds what Unpack writes.
const contextBytes = 64 << 30

// IsArchive tells whether in begins with a tar archive, plain or in one of the
// compressions that Unpack knows. It reads nothing; the buffer of in holds at
// least the 64 KiB that it looks at.
func IsArchive(in *bufio.Reader) bool {
	head, _ := in.Peek(in.Size()) // fewer bytes than that are a short file
	r, _, err := decompress.Open(bytes.NewReader(head))
	if err != nil {
		return false
	}
	defer r.Close() // read only: nothing can be lost
	_, err = tar.NewReader(r).Next()
	return err == nil
}

// Unpack writes an archive as a build context into dir, an empty directory.
// Nothing outside of it is written, whatever the archive says.
func Unpack(ctx context.Context, in io.Reader, dir string) error {
	tree, err := openRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer tree.Close()
	now, err := unix.TimeToTimespec(time.Now())
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	x := extraction{ctx: ctx, into: tree, left: contextBytes, now: now, buf: make([]byte, 256<<10)}
	if err := x.run(in); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}
