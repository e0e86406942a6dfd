package build

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"naru/sandbox/internal/diskuse"
)

// budget is what a build may still write. Layers count when they are whole; while a
// RUN writes one, its Executor watches what is left.
type budget struct {
	limit diskuse.Use // zero: no limit

	mu    sync.Mutex
	spent diskuse.Use
}

// errBudget says that a build has written more than it may.
var errBudget = errors.New("the build has written more than it may")

// left returns what a step may write; zero is no limit, and never "nothing".
func (b *budget) left() (left diskuse.Use, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit.Bytes > 0 {
		if left.Bytes = b.limit.Bytes - b.spent.Bytes; left.Bytes <= 0 {
			return left, fmt.Errorf("%w: %d bytes", errBudget, b.limit.Bytes)
		}
	}
	if b.limit.Inodes > 0 {
		if left.Inodes = b.limit.Inodes - b.spent.Inodes; left.Inodes <= 0 {
			return left, fmt.Errorf("%w: %d files", errBudget, b.limit.Inodes)
		}
	}
	return left, nil
}

// charge counts a layer that was made.
func (b *budget) charge(ctx context.Context, upper string) error {
	if b.limit == (diskuse.Use{}) {
		return nil
	}
	use, err := diskuse.Of(ctx, upper, diskuse.Use{})
	if err != nil {
		return err
	}
	if b.limit.Bytes > 0 && use.Size > b.limit.Bytes {
		// Whoever packs the layer reads them all.
		return fmt.Errorf("%w: its files have %d bytes, holes too, and the limit is %d", errBudget, use.Size, b.limit.Bytes)
	}
	b.mu.Lock()
	b.spent = b.spent.Add(use)
	over := b.spent.Over(b.limit)
	b.mu.Unlock()
	if over {
		_, err = b.left()
	}
	return err
}
