package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"naru/sandbox/image"
	"naru/sandbox/runtime"
	"naru/sandbox/volume"
)

// dropMark is a file in a container's directory: its anonymous volumes go with it.
// It is written before the directory loses its name, so that Recover finishes what
// a crash interrupts.
const dropMark = "drop-volumes"

// RemoveOptions say how a container is removed.
type RemoveOptions struct {
	Force   bool // kill it first if it runs
	Volumes bool // delete its anonymous volumes
}

// name gives an anonymous volume one.
func (m *Mount) name() {
	if m.Volume && m.Source == "" {
		m.Source, m.Anonymous = newID(), true
	}
}

// labels of a volume that is made for the mount.
func (m *Mount) labels() map[string]string {
	if m.Anonymous {
		return map[string]string{volume.AnonymousLabel: ""}
	}
	return nil
}

// addVolumes gives the container an anonymous volume for each place that the image
// declares (VOLUME) and that no mount covers. Places are the image's word: those
// that are no place inside are refused (CVE-2022-23648).
func addVolumes(c *ContainerConfig, img image.RunConfig) error {
	for place := range img.Volumes {
		target := path.Clean(place)
		if !path.IsAbs(place) || target == "/" || strings.Contains(place, "..") || strings.ContainsRune(place, 0) {
			return fmt.Errorf("volume %q of the image: want an absolute path other than /", place)
		}
		if slices.ContainsFunc(c.Mounts, func(m Mount) bool { return m.Target == target }) {
			continue
		}
		c.Mounts = append(c.Mounts, Mount{Source: newID(), Target: target, Volume: true, Anonymous: true})
	}
	// A map has no order; a mount comes before those below it.
	slices.SortStableFunc(c.Mounts, func(a, b Mount) int { return strings.Compare(a.Target, b.Target) })
	return nil
}

// markDrop writes the mark.
func markDrop(dir string) error {
	return os.WriteFile(filepath.Join(dir, dropMark), nil, 0o600)
}

// dropVolumes deletes the anonymous volumes of a container whose directory has
// lost its name, if that was asked for. A volume that another container mounts by
// name stays.
func (e *Engine) dropVolumes(dir string) error {
	var r record
	found, err := loadRun(filepath.Join(dir, configFile), &r) // one that is cut off tells of nothing
	if err != nil || !found {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, dropMark)); err != nil && !r.Config.Remove {
		return nil
	}
	return e.dropAnonymous(&r)
}

func (e *Engine) dropAnonymous(r *record) error {
	for _, m := range r.Config.Mounts {
		if !m.Volume || !m.Anonymous {
			continue
		}
		err := e.RemoveVolume(m.Source)
		if err != nil && !errors.Is(err, volume.ErrNotFound) && !errors.Is(err, ErrInUse) {
			return err
		}
	}
	return nil
}

// ImportVolume makes a volume of a tar, or gives one the content of a tar. A
// volume that a running container mounts is ErrInUse.
func (e *Engine) ImportVolume(ctx context.Context, name string, in *os.File, replace bool) error {
	list, err := e.List(ctx, false, nil)
	if err != nil {
		return err
	}
	for _, c := range list {
		if slices.ContainsFunc(c.Config.Mounts, func(m Mount) bool { return m.Volume && m.Source == name }) {
			return fmt.Errorf("volume %s: %w: %s", name, ErrInUse, c.Name)
		}
	}
	return e.volumes.Import(ctx, name, in, replace)
}

// PruneAnonymous removes the volumes that no container mounts and nobody named, or
// all that no container mounts.
func (e *Engine) PruneAnonymous(_ context.Context, all bool) ([]string, error) {
	removed := []string{}
	list, err := e.volumes.List()
	if err != nil {
		return removed, err
	}
	for _, v := range list {
		// A container that is being made has its record within a moment.
		if !all && !v.Anonymous() || time.Since(v.Created) < time.Minute && e.making() {
			continue
		}
		err := e.RemoveVolume(v.Name)
		if errors.Is(err, ErrInUse) || errors.Is(err, volume.ErrNotFound) {
			continue
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, v.Name)
	}
	return removed, nil
}

// making says whether a container is being made right now.
func (e *Engine) making() bool {
	found, err := filepath.Glob(filepath.Join(e.containersDir(), newMark+"*"))
	return err != nil || len(found) > 0
}

// removable says whether the container may be removed.
func removable(c Container, r *record, force bool) error {
	if !force && c.State == StateDead {
		return fmt.Errorf("%w: %s can be removed by force only", ErrDamaged, firstOf(r.Name, short(r.ID)))
	}
	if !force && (c.State == string(runtime.Running) || c.State == string(runtime.Paused)) {
		return fmt.Errorf("%w: %s", ErrRunning, r.Name)
	}
	return nil
}

// NewVolumeName makes up a name for a volume that nobody names.
func NewVolumeName() string { return newID() }

// UsedVolumes names a container for each volume that one mounts, running or not.
func (e *Engine) UsedVolumes() (map[string]string, error) {
	records, err := e.records()
	if err != nil {
		return nil, err
	}
	used := map[string]string{}
	for _, r := range records {
		for _, m := range r.Config.Mounts {
			if m.Volume {
				used[m.Source] = firstOf(r.Name, short(r.ID))
			}
		}
	}
	return used, nil
}
