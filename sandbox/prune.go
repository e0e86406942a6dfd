package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"naru/sandbox/build"
	"naru/sandbox/image"
	"naru/sandbox/runtime"
)

// PruneOptions says what Prune removes beside stopped containers and images without
// a name.
type PruneOptions struct {
	AllImages  bool // images without a container too
	Volumes    bool // volumes that no container mounts
	Networks   bool // networks that no container is to be in
	BuildCache bool // what the steps of builds have made
	// Keep says which of the stopped containers stay; nil: none.
	Keep func(Container) bool
}

// PruneReport is what Prune has removed.
type PruneReport struct {
	Containers []string `json:"containers"`  // ids
	Volumes    []string `json:"volumes"`     // names
	Networks   []string `json:"networks"`    // names
	Freed      int64    `json:"freed"`       // bytes of images
	BuildCache int64    `json:"build_cache"` // bytes of build steps
}

// Prune recovers, and then removes what is not in use.
func (e *Engine) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	report := PruneReport{Containers: []string{}, Volumes: []string{}, Networks: []string{}}
	err := e.Recover(ctx)
	if err != nil {
		return report, err
	}
	if report.Containers, err = e.PruneContainers(ctx, o.Keep); err != nil {
		return report, err
	}
	if o.Volumes {
		if report.Volumes, err = e.PruneVolumes(ctx); err != nil {
			return report, err
		}
	}
	if o.Networks {
		if report.Networks, err = e.PruneNetworks(ctx); err != nil {
			return report, err
		}
	}
	if o.BuildCache {
		r, err := e.Builder().Prune(ctx, build.PruneOptions{All: true})
		report.BuildCache = r.Freed
		if err != nil {
			return report, err
		}
	}
	report.Freed, err = e.PruneImages(ctx, o.AllImages)
	return report, err
}

// PruneContainers removes the containers without processes, those that were never
// started too, but for the ones that keep wants. It returns their ids.
func (e *Engine) PruneContainers(ctx context.Context, keep func(Container) bool) ([]string, error) {
	removed := []string{}
	list, err := e.List(ctx, true, nil)
	if err != nil {
		return removed, err
	}
	for _, c := range list {
		idle := c.State == string(runtime.Stopped) || c.State == string(runtime.Created) && c.Pid == 0
		if !idle || keep != nil && keep(c) {
			continue
		}
		err := e.Remove(ctx, c.ID, false)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrRunning) {
			continue // changed since it was listed
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, c.ID)
	}
	return removed, nil
}

// PruneImages removes images that no container uses: those without a name, or
// all. It returns the bytes freed.
func (e *Engine) PruneImages(ctx context.Context, all bool) (int64, error) {
	return e.PruneImagesWhere(ctx, func(img image.Image) bool { return all || len(img.Names) == 0 })
}

// PruneImagesWhere removes the images that drop says yes to and that no
// container uses. It returns the bytes freed.
func (e *Engine) PruneImagesWhere(ctx context.Context, drop func(image.Image) bool) (int64, error) {
	records, err := e.records()
	if err != nil {
		return 0, err
	}
	used := map[string]bool{}
	for _, r := range records {
		used[r.ImageID] = true
	}
	return e.images.Prune(ctx, func(img image.Image) bool { return used[img.ID.String()] || !drop(img) })
}

// PruneVolumes removes the volumes that no container mounts.
func (e *Engine) PruneVolumes(context.Context) ([]string, error) {
	removed := []string{}
	list, err := e.volumes.List()
	if err != nil {
		return removed, err
	}
	for _, v := range list {
		// A container that is being made has its record within a moment.
		if time.Since(v.Created) < time.Minute {
			continue
		}
		err := e.RemoveVolume(v.Name)
		if errors.Is(err, ErrInUse) {
			continue
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, v.Name)
	}
	return removed, nil
}

// RemoveVolume deletes a volume, or returns ErrInUse.
func (e *Engine) RemoveVolume(name string) error {
	records, err := e.records()
	if err != nil {
		return err
	}
	for _, r := range records {
		if slices.ContainsFunc(r.Config.Mounts, func(m Mount) bool { return m.Volume && m.Source == name }) {
			return fmt.Errorf("volume %s: %w: %s", name, ErrInUse, r.Name)
		}
	}
	return e.volumes.Remove(name)
}

// RemoveImage takes a name away from an image and deletes the image with its
// last one, or returns ErrInUse when a container needs it.
func (e *Engine) RemoveImage(ref string, force bool) error {
	img, err := e.images.Get(ref)
	if err != nil {
		return err
	}
	// One name of several: the image stays, so nobody can need it.
	byID := strings.HasPrefix(img.ID.Encoded(), strings.TrimPrefix(ref, "sha256:"))
	if len(img.Names) > 1 && !byID {
		return e.images.Remove(ref, force)
	}
	records, err := e.records()
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.ImageID == img.ID.String() {
			return fmt.Errorf("image %s: %w: %s", ref, ErrInUse, firstOf(r.Name, short(r.ID)))
		}
	}
	return e.images.Remove(ref, force)
}
