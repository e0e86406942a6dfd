package build

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/diskuse"
)

// budget is what a build may still write. Layers count when they are whole; while a
// RUN writes one, its Executor watches what is left, and while COPY, ADD or the
// archive of a context do, a meter.
type budget struct {
	limit diskuse.Use // zero: no limit

	mu      sync.Mutex
	spent   diskuse.Use // by layers that are whole
	running diskuse.Use // by those that meters count
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
	defer b.mu.Unlock()
	b.spent = b.spent.Add(use)
	return b.exceeded(b.spent)
}

// exceeded is the error of having written so much.
func (b *budget) exceeded(use diskuse.Use) error {
	switch {
	case b.limit.Bytes > 0 && use.Bytes > b.limit.Bytes:
		return fmt.Errorf("%w: %d bytes", errBudget, b.limit.Bytes)
	case b.limit.Inodes > 0 && use.Inodes > b.limit.Inodes:
		return fmt.Errorf("%w: %d files", errBudget, b.limit.Inodes)
	}
	return nil
}

// meter counts what this process writes into one layer while it is written, together
// with the other layers of the build. What a later file replaces counts all the same:
// charge, which knows better, comes when the layer is whole. A nil meter counts nothing.
type meter struct {
	b    *budget
	used diskuse.Use // under b.mu
}

func (b *budget) meter() *meter {
	if b.limit == (diskuse.Use{}) {
		return nil
	}
	return &meter{b: b}
}

// add counts, and is an error as soon as that is too much.
func (m *meter) add(use diskuse.Use) error {
	if m == nil {
		return nil
	}
	b := m.b
	b.mu.Lock()
	defer b.mu.Unlock()
	m.used, b.running = m.used.Add(use), b.running.Add(use)
	if b.limit.Bytes > 0 && m.used.Size > b.limit.Bytes {
		return fmt.Errorf("%w: %d bytes, holes too", errBudget, b.limit.Bytes) // as in charge
	}
	return b.exceeded(b.spent.Add(b.running))
}

// settle counts what a file takes beyond the bytes that were counted as they were
// written: its last block, or blocks that it shares.
func (m *meter) settle(fd int, written int64) error {
	if m == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("measure a file: %w", err)
	}
	return m.add(diskuse.Use{Bytes: max(0, st.Blocks*512-written)})
}

// end takes back what was counted: the layer is whole, or gone.
func (m *meter) end() {
	if m == nil {
		return
	}
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	m.b.running.Bytes -= m.used.Bytes
	m.b.running.Inodes -= m.used.Inodes
	m.b.running.Size -= m.used.Size
	m.used = diskuse.Use{}
}
