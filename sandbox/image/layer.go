package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"naru/sandbox/image/layer"
)

// Layer is a layer being written: an upper and a work directory for overlayfs.
type Layer struct {
	Dir   string // holds Upper and Work; the caller may keep more in it
	Upper string // 0755, owner 0:0
	Work  string

	workspace *workspace
	hold      *Hold
}

// NewLayer gives an empty layer on the store's file system. End it with Commit
// or Discard; if the process dies, Sweep removes it.
func (s *Store) NewLayer() (*Layer, error) {
	hold, err := s.Hold()
	if err != nil {
		return nil, fmt.Errorf("new layer: %w", err)
	}
	w, err := s.newWorkspace()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("new layer: %w", err), hold.Release())
	}
	l := &Layer{Dir: w.dir, Upper: w.path("upper"), Work: w.path("work"), workspace: w, hold: hold}
	err = errors.Join(os.Mkdir(l.Upper, 0o755), os.Chmod(l.Upper, 0o755), os.Mkdir(l.Work, 0o700))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("new layer: %w", err), l.Discard())
	}
	return l, nil
}

// Discard removes the layer and everything in Dir. After Commit it does nothing.
func (l *Layer) Discard() error {
	return errors.Join(l.workspace.remove(), l.hold.Release())
}

// Commit makes Upper a layer of the store and gives its diff id. Nothing may
// be mounted on it or use it any more. The tar of the layer is only hashed:
// Upper itself becomes the layer's directory. The same content, owners and
// times in whole seconds give the same diff id. After an error the layer is still there:
// Discard it.
func (s *Store) Commit(ctx context.Context, l *Layer) (digest.Digest, error) {
	tar := newSink(nil)
	if err := layer.Pack(ctx, l.Upper, tar); err != nil {
		return "", fmt.Errorf("commit layer: %w", err)
	}
	info := layerInfo{DiffID: tar.digest(), Size: tar.n}
	s.step("layer packed")
	if err := s.publishLayer(l.workspace, l.Upper, info); err != nil {
		return "", fmt.Errorf("commit layer: %w", err)
	}
	if err := l.Discard(); err != nil {
		return "", fmt.Errorf("commit layer: %w", err)
	}
	return info.DiffID, nil
}

// layerInfo is what layers/H/layer.json holds.
type layerInfo struct {
	DiffID digest.Digest `json:"diffID"`
	Size   int64         `json:"size"` // of the uncompressed tar
	// Blob is the layer as it came, kept since nobody could make the same bytes
	// again; nil: Pack makes the tar with the digest DiffID.
	Blob *ocispec.Descriptor `json:"blob,omitempty"`
	// Opaque says that it hides all layers below.
	Opaque bool `json:"opaque,omitempty"`
}

// publishLayer renames the unpacked tree into the store, unless the layer is
// there already. The tree is not synced yet: the file "unsynced" says during
// which boot it was written, and a layer from another boot that no image names
// counts as absent.
func (s *Store) publishLayer(w *workspace, tree string, info layerInfo) error {
	staged, err := w.mkdir("layer-", 0o700)
	if err != nil {
		return err
	}
	data, err := json.Marshal(info)
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(staged, "layer.json"), data, 0o600),
		os.WriteFile(filepath.Join(staged, "unsynced"), boot, 0o600),
		os.Rename(tree, filepath.Join(staged, "fs")),
	); err != nil {
		return err
	}
	s.step("layer staged")
	err = s.locked(unix.LOCK_EX, func() error {
		if _, err := s.useLayer(info.DiffID); err == nil || !errors.Is(err, ErrLayerNotFound) {
			return err
		}
		if err := s.bury(w, s.layerPath(info.DiffID)); err != nil {
			return err
		}
		return os.Rename(staged, s.layerPath(info.DiffID))
	})
	s.step("layer published")
	return err
}

// bury moves what is at path, if anything, into the workspace, which is removed
// later without the lock.
func (s *Store) bury(w *workspace, path string) error {
	grave, err := w.mkdir("dead-", 0o700)
	if err != nil {
		return err
	}
	return ignoreMissing(os.Rename(path, filepath.Join(grave, filepath.Base(path))))
}

func bootID() ([]byte, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	return bytes.TrimSpace(id), nil
}

// useLayer reads a layer's info and notes that it is in use now. The store is locked.
func (s *Store) useLayer(diffID digest.Digest) (layerInfo, error) {
	info, err := s.layerInfo(diffID)
	if err != nil {
		return info, err
	}
	if err := os.Chtimes(s.layerPath(diffID), time.Time{}, time.Now()); err != nil {
		return info, fmt.Errorf("note use of layer: %w", err)
	}
	return info, nil
}

// layerInfo reads a layer's info; ErrLayerNotFound if there is none that can be relied on.
func (s *Store) layerInfo(diffID digest.Digest) (layerInfo, error) {
	var info layerInfo
	missing := fmt.Errorf("%s: %w", diffID, ErrLayerNotFound)
	if checkDigest(diffID) != nil {
		return info, missing
	}
	dir := s.layerPath(diffID)
	data, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return info, missing
	}
	if err != nil {
		return info, err
	}
	ok, err := s.survivedBoot(diffID)
	if err != nil || !ok {
		return info, errors.Join(err, missing)
	}
	if err := json.Unmarshal(data, &info); err != nil {
		return info, errors.Join(fmt.Errorf("read layer: %w", err), missing) // a damaged one can be made or fetched again
	}
	return info, nil
}

// survivedBoot says whether a layer's files are known to be on the disk, or in
// the memory of the kernel that still runs.
func (s *Store) survivedBoot(diffID digest.Digest) (bool, error) {
	written, err := os.ReadFile(filepath.Join(s.layerPath(diffID), "unsynced"))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	boot, err := bootID()
	if err != nil || bytes.Equal(written, boot) {
		return err == nil, err
	}
	records, err := s.readRecords()
	if err != nil {
		return false, err
	}
	for _, r := range records { // each was written after a sync
		if slices.Contains(r.Layers, diffID) {
			return true, nil
		}
	}
	return false, nil
}

// HasLayer says whether LayerDir would succeed.
func (s *Store) HasLayer(diffID digest.Digest) bool {
	_, err := s.LayerDir(diffID)
	return err == nil
}

// LayerDir gives the directory of a layer in overlay form; ErrLayerNotFound if
// it is not here. Read only: other images share it.
func (s *Store) LayerDir(diffID digest.Digest) (string, error) {
	err := s.locked(unix.LOCK_SH, func() error {
		_, err := s.useLayer(diffID)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("find layer: %w", err)
	}
	return filepath.Join(s.layerPath(diffID), "fs"), nil
}

// Lower gives the directories of an image's layers, bottom first, for overlayfs;
// never none. A layer that is in the image twice is listed at its topmost place only, since
// overlayfs refuses the same directory twice, and those below one that hides
// everything are left out.
func (s *Store) Lower(img Image) ([]string, error) {
	var dirs []string // top first
	err := s.locked(unix.LOCK_SH, func() error {
		for _, diffID := range slices.Backward(img.Layers) {
			info, err := s.useLayer(diffID)
			if err != nil {
				return err
			}
			if dir := filepath.Join(s.layerPath(diffID), "fs"); !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
			if info.Opaque {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find layers of image %s: %w", img.ID, err)
	}
	if len(dirs) == 0 {
		return []string{s.path("empty")}, nil
	}
	slices.Reverse(dirs)
	return dirs, nil
}
