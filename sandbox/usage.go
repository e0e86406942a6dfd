package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"naru/sandbox/runtime"
)

// Usage is what one kind of thing takes on disk.
type Usage struct {
	Total       int   `json:"total"`       // how many there are
	Active      int   `json:"active"`      // of them in use
	Size        int64 `json:"size"`        // bytes
	Reclaimable int64 `json:"reclaimable"` // bytes of those that are not in use
}

// DiskUsage is what a data root takes.
type DiskUsage struct {
	Images     Usage `json:"images"` // layers once each, as they are on disk
	Containers Usage `json:"containers"`
	Volumes    Usage `json:"volumes"`
	BuildCache Usage `json:"build_cache"` // layers that only the cache knows, and cache mounts
}

// DiskUsage adds up what is on disk. It looks at every file.
func (e *Engine) DiskUsage(ctx context.Context) (DiskUsage, error) {
	u := DiskUsage{}
	list, err := e.List(ctx, true, nil)
	if err != nil {
		return u, err
	}
	steps := []func([]Container, *DiskUsage) error{e.containerUsage, e.imageUsage, e.volumeUsage, e.mountUsage}
	for _, step := range steps {
		if err := errors.Join(step(list, &u), ctx.Err()); err != nil {
			return u, fmt.Errorf("disk usage: %w", err)
		}
	}
	return u, nil
}

// Written is how many bytes a container has in its own layer.
func (e *Engine) Written(ref string) (int64, error) {
	id, err := e.resolve(ref)
	if err != nil {
		return 0, err
	}
	return onDisk(e.upper(id))
}

func (e *Engine) containerUsage(list []Container, u *DiskUsage) error {
	for _, c := range list {
		size, err := onDisk(e.dir(c.ID))
		if err != nil {
			return err
		}
		running := c.State == string(runtime.Running) || c.State == string(runtime.Paused)
		u.Containers.add(size, running)
	}
	return nil
}

func (u *Usage) add(size int64, active bool) {
	u.Total++
	u.Size += size
	if active {
		u.Active++
	} else {
		u.Reclaimable += size
	}
}

// imageUsage counts each layer once, as in use when any container's image has it.
// Layers that no image has are the build cache's.
func (e *Engine) imageUsage(list []Container, u *DiskUsage) error {
	used := map[string]bool{}
	for _, c := range list {
		used[c.ImageID] = true
	}
	images, err := e.images.List()
	if err != nil {
		return err
	}
	layers := map[string]bool{} // of images: whether a container needs it
	for _, img := range images {
		active := used[img.ID.String()]
		u.Images.Total++
		if active {
			u.Images.Active++
		}
		for _, l := range img.Layers {
			layers[l.Encoded()] = layers[l.Encoded()] || active
		}
	}
	entries, err := os.ReadDir(filepath.Join(e.root, "images", "layers"))
	if err != nil {
		return err
	}
	for _, d := range entries {
		size, err := onDisk(filepath.Join(e.root, "images", "layers", d.Name()))
		if err != nil {
			return err
		}
		needed, known := layers[d.Name()]
		switch {
		case !known:
			u.BuildCache.add(size, false)
		case needed:
			u.Images.Size += size
		default:
			u.Images.Size += size
			u.Images.Reclaimable += size
		}
	}
	return nil
}

func (e *Engine) volumeUsage(list []Container, u *DiskUsage) error {
	used := map[string]bool{}
	for _, c := range list {
		for _, m := range c.Config.Mounts {
			if m.Volume {
				used[m.Source] = true
			}
		}
	}
	volumes, err := e.volumes.List()
	if err != nil {
		return err
	}
	for _, v := range volumes {
		size, err := onDisk(v.Path)
		if err != nil {
			return err
		}
		u.Volumes.add(size, used[v.Name])
	}
	return nil
}

// mountUsage adds the cache mounts of builds.
func (e *Engine) mountUsage(_ []Container, u *DiskUsage) error {
	size, err := onDisk(filepath.Join(e.root, "build", "mounts"))
	if size > 0 {
		u.BuildCache.add(size, false)
	}
	return err
}

// onDisk adds up the blocks of the files below a directory, each once. What goes away
// meanwhile counts nothing. Links are not followed.
func onDisk(dir string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer root.Close() // a directory: nothing can be lost
	size, seen := int64(0), map[[2]uint64]bool{}
	err = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("internal error: no block count in file information")
		}
		id := [2]uint64{uint64(st.Dev), st.Ino}
		if st.Nlink > 1 && !d.IsDir() {
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		size += st.Blocks * 512 // stat(2)
		return nil
	})
	return size, err
}
