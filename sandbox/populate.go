package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"naru/sandbox/tree"
)

// makeVolumes creates the named volumes of a container that do not exist yet.
// A new volume begins as a copy of what the image has at its place, owner and
// mode too, as Docker does it: an image that runs as a plain user could not
// write into an empty directory of root's.
func (e *Engine) makeVolumes(ctx context.Context, r *record) error {
	for _, m := range r.Config.Mounts {
		if !m.Volume {
			continue
		}
		_, err := e.volumes.Create(m.Source, m.labels(), func(data string) error {
			if m.NoCopy {
				return nil
			}
			view, err := viewLayers(r.Lower)
			if err != nil {
				return err
			}
			defer view.Close() // read only: nothing can be lost
			return view.copyDir(ctx, m.Target, data)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// copyDir copies the directory at path in the view into dir, without devices. A path
// that is missing or no directory copies nothing.
func (v *rootView) copyDir(ctx context.Context, path, dir string) error {
	src := tree.New(v.fd, tree.IDs{}) // v closes it
	info, err := src.Stat(path, true)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || err == nil && !info.Mode.IsDir() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("copy from the image: %w", err)
	}
	dst, err := tree.Open(dir)
	if err != nil {
		return fmt.Errorf("copy from the image: %w", err)
	}
	err = src.CopyTo(ctx, path, tree.PackOptions{As: ".", Follow: true, NoDevices: true},
		tree.Place{Tree: dst, Dir: "/", Options: tree.UnpackOptions{Archive: true, Root: true}})
	if err = errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy %s from the image: %w", path, err)
	}
	return nil
}
