package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"golang.org/x/sys/unix"

	"naru/sandbox/tree"
)

// Export writes the volume's content as a tar: with ids as they are on disk, the
// container's, and large holes as holes (package tree).
func (s *Store) Export(ctx context.Context, name string, w io.Writer) error {
	v, err := s.Get(name)
	if err != nil {
		return err
	}
	data, err := tree.Open(v.Path)
	if err == nil {
		err = errors.Join(data.Pack(ctx, w, "/", tree.PackOptions{As: ".", Sparse: true}), data.Close())
	}
	if err != nil {
		return fmt.Errorf("export volume %s: %w", name, err)
	}
	return nil
}

// Import makes a volume of a tar. One that exists is ErrExists, or is given the
// content of the tar in place of its own. Either way the old or the new content
// is there, whole, whenever the process dies. The caller has made sure that no
// running container mounts the volume. Nothing leads out of it, and devices are refused.
func (s *Store) Import(ctx context.Context, name string, r io.Reader, replace bool) error {
	fill := func(data string) error {
		t, err := tree.Open(data)
		if err != nil {
			return err
		}
		return errors.Join(t.Unpack(ctx, r, "/", tree.UnpackOptions{Archive: true, Root: true}), t.Close())
	}
	if _, err := s.Get(name); errors.Is(err, ErrNotFound) {
		_, err = s.Create(name, nil, fill)
		return err
	} else if err != nil {
		return err
	}
	if !replace {
		return fmt.Errorf("import volume %s: %w", name, ErrExists)
	}
	tmp, unlock, err := s.temp()
	if err != nil {
		return fmt.Errorf("import volume %s: %w", name, err)
	}
	defer unlock()
	data := filepath.Join(tmp, dataDir)
	if err = makeData(data, fill); err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, data, unix.AT_FDCWD, filepath.Join(s.dir, name, dataDir), unix.RENAME_EXCHANGE)
	}
	if err != nil {
		err = fmt.Errorf("import volume %s: %w", name, err)
	}
	return errors.Join(err, Discard(tmp))
}
