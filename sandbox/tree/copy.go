package tree

import (
	"context"
	"errors"
	"io"
)

// Place is where a copy goes.
type Place struct {
	Tree    *Tree
	Dir     string
	Options UnpackOptions
}

// CopyTo copies the file or directory name to another tree, or another place of this
// one: what Pack makes, Unpack takes.
func (t *Tree) CopyTo(ctx context.Context, name string, o PackOptions, to Place) error {
	read, write := io.Pipe()
	packed := make(chan error, 1)
	o.Sparse = true
	go func() {
		err := t.Pack(ctx, write, name, o)
		_ = write.CloseWithError(err) // never fails (io.Pipe)
		packed <- err
	}()
	err := to.Tree.Unpack(ctx, read, to.Dir, to.Options)
	_ = read.CloseWithError(err) // never fails (io.Pipe)
	packErr := <-packed
	if err != nil && (packErr == nil || errors.Is(packErr, err)) {
		return err // the source was only told to stop
	}
	return packErr
}
