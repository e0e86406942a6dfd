package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"naru/sandbox/build/progress"
	"naru/sandbox/image"
)

// Options say what to build.
type Options struct {
	// Context is the directory that COPY and ADD read. Nothing outside of it is
	// read, whatever its links say.
	Context string
	// Dockerfile is its path: relative to the context, or absolute. Empty:
	// Dockerfile. Links of one that is in the context stay in the context.
	Dockerfile string
	// Target is the stage to build, by name or number. Empty: the last one.
	Target string
	// Args are the build arguments (ARG). The proxy variables among them reach
	// RUN without being declared, and are then in no key and no history.
	// SOURCE_DATE_EPOCH (seconds) is the image's time and the latest time of any
	// file that the build makes.
	Args map[string]string
	// Labels are added to the image's.
	Labels map[string]string
	// Tags are the names the image gets.
	Tags []string
	// NoCache makes every step anew. What they make is remembered all the same.
	NoCache bool
	// Network is the network of RUN steps, for the Executor; empty: its default.
	Network string
	// Out gets the progress and the output of RUN, as lines. Nil: nobody.
	Out io.Writer
	// Memory (bytes), Pids and CPUs limit each RUN; 0: no limit.
	Memory, Pids int64
	CPUs         float64
	// Timeout limits the whole build; 0: no limit.
	Timeout time.Duration

	// Text is the Dockerfile itself; Dockerfile is then only its name in
	// messages. Nil: it is read from where Dockerfile says.
	Text []byte
	// Detect writes a Dockerfile for a context that has none, if Dockerfile and
	// Text are empty (detect.Detect). The log shows it.
	Detect bool
	// Progress gets what happens, one event at a time, beside Out. Nil: nobody.
	// It must not block for long: the build waits for it.
	Progress func(progress.Event)
}

// Executor runs the commands of RUN.
type Executor interface {
	// Run runs one step to its end, with no process left over and nothing
	// mounted on its directories. A command that ran and failed is an exit code
	// above 0 and no error; an error is a failure of this machine.
	Run(ctx context.Context, s Step) (exitCode int, err error)
}

// Step is one RUN for an Executor.
type Step struct {
	// Lower are the layers below, bottom first and at least one; Upper takes the
	// changes, Work is overlayfs's. Ids on disk are the container's, 0..65535.
	Lower       []string
	Upper, Work string
	// Args is the command. Env is its whole environment (KEY=value) but for HOME,
	// which the Executor adds if it is not there.
	Args, Env []string
	// Dir is the working directory, User a name or number with an optional group
	// as in USER ("" is root), both as seen in the step.
	Dir, User string
	// Hostname and Network are asked for; empty: the Executor's default.
	Hostname, Network string
	// Out gets stdout and stderr.
	Out io.Writer
	// Memory, Pids and CPUs are the limits of Options.
	Memory, Pids int64
	CPUs         float64
}

// StepError is a RUN whose command failed: the Dockerfile's fault or that of
// what it builds, not of this machine.
type StepError struct {
	File        string // as given in Options
	Line        int    // first line of the instruction
	Instruction string // its text
	Code        int    // exit code; above 128: killed by signal Code-128
	Tail        []string
	Excerpt     string // as in SourceError
	Hint        string // what may help; often empty
}

func (e *StepError) Error() string {
	return fmt.Sprintf("%s:%d: %s: exit code %d", e.File, e.Line, e.Instruction, e.Code)
}

// Builder makes images. It may be used by several goroutines, and several
// processes may share its store and cache.
type Builder struct {
	store *image.Store
	exec  Executor
	cache cache
}

// New returns a Builder that keeps layers and images in store and remembers
// steps in cacheDir. The cache can be removed at any time.
func New(store *image.Store, exec Executor, cacheDir string) *Builder {
	return &Builder{store: store, exec: exec, cache: cache{dir: cacheDir}}
}

// errTimeout is the cause of a build that took longer than Options.Timeout.
var errTimeout = errors.New("the build took longer than its time limit")

// Build makes the image of a Dockerfile. An unchanged build gives the same
// image again. Errors name file and line where they belong to one; a failed RUN
// is a *StepError.
func (b *Builder) Build(ctx context.Context, o Options) (img image.Image, err error) {
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("%w of %s", errTimeout, o.Timeout))
		defer cancel()
	}
	if err := os.MkdirAll(b.emptyDir(), 0o755); err != nil {
		return image.Image{}, fmt.Errorf("build: %w", err)
	}
	hold, err := b.store.Hold()
	if err != nil {
		return image.Image{}, fmt.Errorf("build: %w", err)
	}
	defer func() { err = errors.Join(err, hold.Release()) }()
	if o.Context, err = filepath.Abs(o.Context); err != nil {
		return image.Image{}, fmt.Errorf("build: %w", err)
	}
	tree, err := openRoot(o.Context)
	if err != nil {
		return image.Image{}, fmt.Errorf("open build context: %w", err)
	}
	defer tree.Close()
	r := &build{
		Builder: b, o: o, out: newReporter(o), tree: tree,
		done: map[*stage]*state{}, images: map[string]image.Image{}, takenArgs: map[string]bool{},
	}
	defer func() { r.out.close(err) }()
	img, err = r.run(ctx)
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		err = errors.Join(context.Cause(ctx), err)
	}
	return img, err
}

// emptyDir is the bottom of every stack of layers: overlayfs wants one, and an
// image from scratch has none.
func (b *Builder) emptyDir() string { return filepath.Join(b.cache.dir, "empty") }

// build is one build.
type build struct {
	*Builder
	o        Options
	out      *reporter
	tree     *root // the context
	context  *source
	file     *dockerfile
	detected *detected  // nil: the Dockerfile is the user's
	globals  vars       // ARGs before the first FROM, and the platform's
	epoch    *time.Time // SOURCE_DATE_EPOCH
	done     map[*stage]*state
	images   map[string]image.Image

	takenArgs map[string]bool // names of Options.Args that were of use
}

func (b *build) run(ctx context.Context) (image.Image, error) {
	if err := b.detect(); err != nil {
		return image.Image{}, err
	}
	v := b.out.begin("[internal] load build definition from " + b.name())
	err := b.load()
	v.end(err)
	if err != nil {
		return image.Image{}, err
	}
	p, err := b.plan()
	if err != nil {
		return image.Image{}, err
	}
	if err := b.lint(); err != nil {
		return image.Image{}, err
	}
	b.out.planned(p)
	for _, st := range p.stages {
		if err := b.stage(ctx, st); err != nil {
			return image.Image{}, err
		}
	}
	if b.context != nil {
		if err := b.context.sums.save(); err != nil {
			b.out.warn(err.Error()) // the next build is slower, this one is good
		}
	}
	b.warnUnused()
	return b.export(ctx, b.done[p.target])
}

// export writes the image of the target stage.
func (b *build) export(ctx context.Context, s *state) (image.Image, error) {
	v := b.out.begin("exporting to image")
	for name, value := range b.o.Labels {
		if s.config.Config.Labels == nil {
			s.config.Config.Labels = map[string]string{}
		}
		s.config.Config.Labels[name] = value
	}
	s.config.Created = b.stamp(s)
	img, err := b.store.Put(ctx, s.config, s.layers, b.o.Tags...)
	if err == nil {
		_, _ = fmt.Fprintf(v, "image %s\n", img.ID)
		for _, name := range b.o.Tags {
			_, _ = fmt.Fprintf(v, "naming to %s\n", name)
		}
	}
	v.end(err)
	return img, err
}

// stamp is the time of what a state is now: that of its newest layer, so that a
// build whose layers are all cached makes the same image again.
func (b *build) stamp(s *state) *time.Time {
	at := s.created
	if b.epoch != nil {
		at = *b.epoch
	}
	if at.IsZero() {
		return nil
	}
	at = at.UTC()
	return &at
}

// defaultDockerfile is the Dockerfile of a context. Docker takes it in lower case as well.
const defaultDockerfile = "Dockerfile"

// name is the Dockerfile's for messages.
func (b *build) name() string {
	if b.o.Dockerfile == "" {
		return defaultDockerfile
	}
	return b.o.Dockerfile
}
