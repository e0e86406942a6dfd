// Package image makes the image of a commit with the sandbox's builder.
//
// The life of one request: the exported tree and the app's build section become
// build options with the limits of a build, the sandbox builds, the image gets
// the name naru/<app>:<short commit>, and its id goes back. The name keeps the
// image from being pruned as nameless, and tells people what it is; naru
// itself goes by the id, which no later build can move.
package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"naru/pipeline"
	"naru/sandbox"
	"naru/sandbox/build"
)

// LabelApp is the label of an image that says which app it was built for. The
// commit is not in a label: the same content would get another id with every
// commit, and nothing would be left to reuse.
const LabelApp = "naru.app"

// Limits bound one build: it runs code that somebody pushed.
type Limits struct {
	Memory  int64 // bytes of one step; 0: none
	CPUs    float64
	Pids    int64
	Disk    int64         // bytes of all steps
	Inodes  int64         // files of all steps
	Timeout time.Duration // of the whole build
	Network string        // of the steps; empty: the sandbox's network for builds
}

// with are the limits of one app's builds: its own where it has some.
func (l Limits) with(b pipeline.Build) Limits {
	l.Memory, l.Pids, l.CPUs = cmp.Or(b.Memory, l.Memory), cmp.Or(b.Pids, l.Pids), cmp.Or(b.CPUs, l.CPUs)
	l.Disk, l.Timeout = cmp.Or(b.Disk, l.Disk), cmp.Or(b.Timeout, l.Timeout)
	if b.Network == sandbox.NetworkNone {
		l.Network = b.Network
	}
	return l
}

// DefaultLimits leave room for a compiler and end a fork bomb.
func DefaultLimits() Limits {
	return Limits{Memory: 4 << 30, Pids: 4096, Disk: 20 << 30, Inodes: 4_000_000, Timeout: 30 * time.Minute}
}

// Builder implements pipeline.Builder.
type Builder struct {
	engine *sandbox.Engine
	limits Limits
	git    build.Git
	// Secret returns the value of a build secret; nil: there are none.
	Secret func(name string) (string, error)
}

// New returns a builder over the engine. The repositories that ADD names are
// fetched by git; nil: they are refused.
func New(e *sandbox.Engine, l Limits, git build.Git) *Builder {
	return &Builder{engine: e, limits: l, git: git}
}

// Build makes the image and returns its id. Unchanged input gives the same id:
// neither the commit nor the time goes into what the id is made of unless the
// Dockerfile asks for it, and the builder's cache answers.
func (b *Builder) Build(ctx context.Context, r pipeline.BuildRequest) (digest string, err error) {
	dir, err := contextDir(r)
	if err != nil {
		return "", fmt.Errorf("build image of %s: %w", r.App, err)
	}
	secrets, err := b.secrets(r.Build.Secrets)
	if err != nil {
		return "", fmt.Errorf("build image of %s: %w", r.App, err)
	}
	limits := b.limits.with(r.Build)
	file := r.Build.Dockerfile
	if file == "Dockerfile" {
		file = "" // nobody chose it: a tree without one gets one written
	}
	var told summary
	img, err := b.engine.Build(ctx, build.Options{
		Progress: told.event,
		Context:  dir, Dockerfile: file, Detect: true, Target: r.Build.Target, Args: maps.Clone(r.Build.Args),
		Labels: map[string]string{LabelApp: r.App},
		Tags:   []string{Name(r.App, r.Commit.Hash)},
		Out:    r.Log, Network: limits.Network, Owner: r.App, Secrets: secrets,
		Memory: limits.Memory, CPUs: limits.CPUs, Pids: limits.Pids, Timeout: limits.Timeout,
		Disk: limits.Disk, Inodes: limits.Inodes, Git: b.git,
	})
	if err != nil {
		return "", fmt.Errorf("build image of %s: %w", r.App, withTail(err))
	}
	if err := told.write(r.Log, time.Now()); err != nil {
		return "", fmt.Errorf("build image of %s: write log: %w", r.App, err)
	}
	return img.ID.String(), nil
}

// secrets reads the values of an app's build secrets.
func (b *Builder) secrets(names []string) (map[string][]byte, error) {
	values := map[string][]byte{}
	for _, name := range names {
		if b.Secret == nil {
			return nil, fmt.Errorf("secret %s: there are no secrets here", name)
		}
		value, err := b.Secret(name)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", name, err)
		}
		values[name] = []byte(value)
	}
	return values, nil
}

// withTail adds why a failed step failed, if that is known, and the last lines
// that it wrote, for those who see the error and not the log.
func withTail(err error) error {
	step, ok := errors.AsType[*build.StepError](err)
	if ok && step.Hint != "" {
		err = fmt.Errorf("%w (%s)", err, step.Hint)
	}
	if !ok || len(step.Tail) == 0 {
		return err
	}
	return fmt.Errorf("%w; its last %d log lines:\n  %s", err, len(step.Tail), strings.Join(step.Tail, "\n  "))
}

// contextDir is the directory that the build sees. The tree was written by
// somebody who pushes: neither ".." nor a link in it may lead out of it.
func contextDir(r pipeline.BuildRequest) (string, error) {
	root, err := os.OpenRoot(r.Dir)
	if err != nil {
		return "", err
	}
	defer root.Close() // read only: nothing can be lost
	sub := filepath.Clean(filepath.FromSlash(r.Build.Context))
	info, err := root.Stat(sub)
	if err != nil {
		return "", fmt.Errorf("context %q: %w", r.Build.Context, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("context %q is no directory", r.Build.Context)
	}
	return filepath.Join(r.Dir, sub), nil
}

// Name is what the image of a commit is called.
func Name(app, commit string) string {
	return "naru/" + strings.ToLower(app) + ":" + commit[:min(len(commit), 12)]
}

// Prune removes the images that were built for the app, but those in keep and
// those of a container. Their layers go with them unless another image or the
// builder's cache still uses them. It must not run beside a Build of the app.
func (b *Builder) Prune(ctx context.Context, app string, keep []string) (removed []string, err error) {
	all, err := b.engine.Images().List()
	if err != nil {
		return nil, fmt.Errorf("prune images of %s: %w", app, err)
	}
	for _, img := range all {
		id := img.ID.String()
		if img.Config.Config.Labels[LabelApp] != app || slices.Contains(keep, id) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		err := b.engine.RemoveImage(id, true)
		if errors.Is(err, sandbox.ErrInUse) {
			continue
		}
		if err != nil {
			return removed, fmt.Errorf("prune images of %s: %w", app, err)
		}
		removed = append(removed, id)
	}
	return removed, nil
}
