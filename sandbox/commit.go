package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"naru/sandbox/image"
	"naru/sandbox/image/layer"
	"naru/sandbox/runtime"
)

// CommitOptions are the choices of one Commit.
type CommitOptions struct {
	Name            string // of the image; empty: none
	Author, Message string
	// Change alters the image's config, which is a copy of the container's image's.
	Change func(*image.RunConfig) error
	// NoPause copies the files of a running container while it may write them.
	NoPause bool
}

// Commit makes an image of a container: the layers of its image, and its own one on
// top. A running container is paused meanwhile. Volumes are not part of it.
func (e *Engine) Commit(ctx context.Context, ref string, o CommitOptions) (img image.Image, err error) {
	id, err := e.resolve(ref)
	if err != nil {
		return img, err
	}
	r, err := e.load(id)
	if err != nil {
		return img, err
	}
	if img, err = e.commit(ctx, r, o); err != nil {
		return img, fmt.Errorf("commit container %s: %w", short(id), err)
	}
	e.emit(r, "commit", "imageID", img.ID.String(), "imageRef", o.Name)
	return img, nil
}

func (e *Engine) commit(ctx context.Context, r *record, o CommitOptions) (image.Image, error) {
	base, err := e.images.Get(r.ImageID)
	if err != nil {
		return image.Image{}, err
	}
	config := base.Config
	config.Config.Env, config.Config.Labels = slices.Clone(config.Config.Env), cloneMap(config.Config.Labels)
	if o.Change != nil {
		if err := o.Change(&config.Config); err != nil {
			return image.Image{}, err
		}
	}
	diffID, err := e.commitLayer(ctx, r, o.NoPause)
	if err != nil {
		return image.Image{}, err
	}
	now := time.Now().UTC()
	config.Created, config.Author = &now, firstOf(o.Author, config.Author)
	config.History = append(slices.Clone(config.History), ocispec.History{
		Created: &now, CreatedBy: strings.Join(r.Command, " "), Author: o.Author, Comment: o.Message,
	})
	var names []string
	if o.Name != "" {
		names = []string{o.Name}
	}
	return e.images.Put(ctx, config, append(slices.Clone(base.Layers), diffID), names...)
}

func cloneMap(m map[string]string) map[string]string {
	c := map[string]string{}
	for key, value := range m {
		c[key] = value
	}
	return c
}

// commitLayer copies the container's own layer into the store.
func (e *Engine) commitLayer(ctx context.Context, r *record, noPause bool) (_ digest.Digest, err error) {
	l, err := e.images.NewLayer()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, l.Discard()) }()
	if !noPause {
		resume, err := e.pauseFor(ctx, r)
		if err != nil {
			return "", err
		}
		defer func() { _ = resume() }() // a second call does nothing; the first one's error counts
		if err := copyLayer(ctx, e.upper(r.ID), l.Upper); err != nil {
			return "", err
		}
		if err := resume(); err != nil {
			return "", err
		}
	} else if err := copyLayer(ctx, e.upper(r.ID), l.Upper); err != nil {
		return "", err
	}
	if err := e.removeStubs(r, l.Upper); err != nil {
		return "", err
	}
	return e.images.Commit(ctx, l)
}

// pauseFor pauses a container that runs, and returns what undoes it.
func (e *Engine) pauseFor(ctx context.Context, r *record) (resume func() error, err error) {
	nothing := func() error { return nil }
	rt, err := e.open(r.ID)
	if rt == nil || err != nil {
		return nothing, err
	}
	if rt.State() != runtime.Running {
		return nothing, rt.Close()
	}
	if err := rt.Pause(ctx); err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	done := false
	return func() error {
		if done {
			return nil
		}
		done = true
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		return errors.Join(rt.Resume(cleanup), rt.Close())
	}, nil
}

// copyLayer copies a directory in overlay form by way of the tar that it stands for.
func copyLayer(ctx context.Context, from, to string) error {
	read, write := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := layer.Pack(ctx, from, write)
		_ = write.CloseWithError(err) // never fails (io.Pipe)
		packed <- err
	}()
	limits := layer.DefaultLimits()
	limits.Bytes = 1 << 50 // the container has written them already: the disk is the bound
	_, err := layer.Unpack(ctx, to, read, layer.Options{Limits: limits})
	_ = read.CloseWithError(err) // never fails (io.Pipe)
	return errors.Join(err, <-packed)
}

// removeStubs takes the empty files and directories out of a copied layer that a
// start had made for its mounts.
func (e *Engine) removeStubs(r *record, upper string) error {
	points, err := e.mountPoints(r)
	if err != nil {
		return err
	}
	lower, err := viewLayers(r.Lower)
	if err != nil {
		return err
	}
	defer lower.Close() // read only: nothing can be lost
	root, err := os.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer root.Close()                                                              // a directory: nothing can be lost
	slices.SortFunc(points, func(a, b string) int { return strings.Compare(b, a) }) // the innermost first
	for _, name := range points {
		info, err := root.Lstat(name)
		if err != nil || info.Mode().IsRegular() && info.Size() > 0 {
			continue // not there, or somebody's own
		}
		if f, err := lower.open(name, 0); err == nil {
			_ = f.Close() // read only: nothing can be lost
			continue      // the image has it: this is a change of it
		}
		_ = root.Remove(name) // a directory with something in it stays
	}
	return nil
}
