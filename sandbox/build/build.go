package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"naru/sandbox/build/progress"
	"naru/sandbox/image"
	"naru/sandbox/internal/diskuse"
)

// Options say what to build.
type Options struct {
	// Context is the directory that COPY and ADD read. Nothing outside of it is
	// read, whatever its links say. Or it is fetched, as ADD would: a git
	// repository, by a URL as ADD takes it ("https://HOST/REPO.git#REF:SUBDIR") or
	// "github.com/...", or by http a tar archive, or a single file, which is
	// the Dockerfile.
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
	// Parallel is how many RUN steps may run at once; 0: one for each
	// processor, and at least 4.
	Parallel int
	// Contexts give names of images and stages another meaning, in FROM, COPY
	// --from and RUN --mount from=: a directory, "docker-image://NAME",
	// "oci-layout://PATH[:TAG]", or what Context can be fetched from; a single file
	// has the name "context" there.
	Contexts map[string]string
	// Pull asks the registry for base images that are in the store too.
	Pull bool
	// Platforms are what the image is for ("linux/arm64"); none: this machine.
	// The store gets this machine's name only; several together, an index, go
	// to a registry or an OCI archive.
	Platforms []string
	// NoCacheFilter are stages, by name or number, whose steps are made anew.
	NoCacheFilter []string
	// CacheLimit is how many bytes the steps and mounts that are remembered may
	// take on disk; 0: a tenth of the file system, 2 GiB at least and 50 GiB at
	// most. What was not used for longest goes first, before a step that may
	// need the room.
	CacheLimit int64
	// Outputs are where the image goes; none: the store (see ParseOutput).
	Outputs []Output
	// Provenance attaches how the image was made: "min" or "max"; empty: not.
	// SBOM attaches what is in it.
	Provenance string
	SBOM       bool
	// Annotations are for the manifest ("KEY=VALUE"), or "TYPE[PLATFORM]:KEY=VALUE" as
	// buildx takes them, in archives and registries; the store keeps none.
	Annotations []string
	// CacheFrom are caches to begin from, CacheTo where to leave this build's:
	// "type=local,src=DIR" and "type=local,dest=DIR", "type=registry,ref=NAME";
	// CacheTo knows "type=inline" too, and mode=min for the image's own steps
	// alone. Whoever writes to a cache decides what builds FROM it make, of all
	// apps: name only caches that are yours.
	CacheFrom, CacheTo []string
	// Git fetches the repositories that ADD names; nil: such an ADD is an error.
	Git Git
	// Reach are networks that ADD may fetch from although they are this machine's
	// or link-local (see fetch.Guard): ADD asks from here, not from the sandbox.
	Reach []netip.Prefix
	// FetchBytes limits one file that ADD fetches; 0: 4 GiB.
	FetchBytes int64
	// Owner is who cache mounts belong to: an app, or "" for the command line.
	Owner string
	// Secrets are the values of RUN --mount=type=secret, by id. They are covered in
	// the output, and in no layer, key or history.
	Secrets map[string][]byte
	// SSH are the agents of RUN --mount=type=ssh, by id: the path of an agent's
	// socket, or paths of private keys; none is the socket in SSH_AUTH_SOCK.
	SSH map[string][]string
	// AllowHostNetwork lets RUN --network=host have what it asks for. Such a step has
	// no user namespace: it can reach whatever listens on the host.
	AllowHostNetwork bool
	// Disk (bytes) and Inodes bound what all steps of the build write, beside what
	// was there in cache mounts; 0: no limit. A step is measured while it runs, so that
	// it may be over by what it writes in a tenth of a second.
	Disk, Inodes int64
	// StepTimeout limits each RUN; 0: no limit.
	StepTimeout time.Duration
	RunSettings
}

// RunSettings are settings of all RUN steps of a build that a Dockerfile cannot give.
type RunSettings struct {
	AddHosts              []string // NAME:ADDRESS in /etc/hosts
	DNS                   []netip.Addr
	DNSSearch, DNSOptions []string // resolv.conf(5)
	ShmSize               int64    // bytes of /dev/shm; 0: 64 MiB
	Ulimits               []specs.POSIXRlimit
}

// Executor runs the commands of RUN.
type Executor interface {
	// Run runs one step to its end, with no process left over and nothing
	// mounted on its directories. A command that ran and failed is an exit code
	// above 0, or a Reason, and no error; an error is a failure of this machine.
	Run(ctx context.Context, s Step) (StepExit, error)
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

	// Mounts are attached in this order. Secrets are more of the environment
	// (KEY=value), over Env; they are written down nowhere.
	Mounts  []StepMount `json:"-"`
	Secrets []string
	// Disk (bytes), Inodes and Timeout are what is left of the build's; 0: no limit.
	Disk, Inodes int64
	Timeout      time.Duration
	RunSettings
}

// StepError is a RUN whose command failed: the Dockerfile's fault or that of
// what it builds, not of this machine.
type StepError struct {
	File        string // as given in Options
	Line        int    // first line of the instruction
	Instruction string // its text
	Code        int    // exit code; above 128: killed by signal Code-128
	Tail        []string
	Reason      Reason // what ended it
	Detail      string // the same in words
	Excerpt     string // as in SourceError
	Hint        string // what may help; often empty

	cause error // of ReasonTime and the like
}

// Unwrap returns what ended the step beside itself, such as the build's time limit.
func (e *StepError) Unwrap() error { return e.cause }

func (e *StepError) Error() string {
	why := e.Detail
	if why == "" {
		why = fmt.Sprintf("exit code %d", e.Code)
	}
	return fmt.Sprintf("%s:%d: %s: %s", e.File, e.Line, e.Instruction, why)
}

// Builder makes images. It may be used by several goroutines, and several
// processes may share its store and cache.
type Builder struct {
	store *image.Store
	exec  Executor
	cache cache
	inUse func(image.Image) bool
}

// KeepImages says which images without a name must stay although the cache is
// full: those of containers. Call it before the first Build.
func (b *Builder) KeepImages(inUse func(image.Image) bool) { b.inUse = inUse }

// New returns a Builder that keeps layers and images in store and remembers
// steps in cacheDir. The cache can be removed at any time.
func New(store *image.Store, exec Executor, cacheDir string) *Builder {
	return &Builder{store: store, exec: exec, cache: cache{dir: cacheDir}}
}

// errTimeout is the cause of a build that took longer than Options.Timeout.
var errTimeout = errors.New("the build took longer than its time limit")

// Build is BuildAll for those who want the image alone: this machine's, where
// several platforms were asked for.
func (b *Builder) Build(ctx context.Context, o Options) (image.Image, error) {
	r, err := b.BuildAll(ctx, o)
	return r.Image, err
}

// BuildAll makes the image of a Dockerfile, for each platform, and gives it to
// where Options.Outputs say. An unchanged build gives the same image again.
// Errors name file and line where they belong to one; a failed RUN is a
// *StepError.
func (b *Builder) BuildAll(ctx context.Context, o Options) (r Result, err error) {
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("%w of %s", errTimeout, o.Timeout))
		defer cancel()
	}
	if err := o.check(); err != nil {
		return r, err
	}
	if err := os.MkdirAll(b.emptyDir(), 0o755); err != nil {
		return r, fmt.Errorf("build: %w", err)
	}
	hold, err := b.store.Hold()
	if err != nil {
		return r, fmt.Errorf("build: %w", err)
	}
	defer func() { err = errors.Join(err, hold.Release()) }()
	s := &session{Builder: b, o: o, hold: hold, begun: time.Now(), out: newReporter(o), bases: &bases{}, takenArgs: &nameSet{}}
	defer func() { s.out.close(err) }()
	s.budget.limit = diskuse.Use{Bytes: o.Disk, Inodes: o.Inodes}
	if err = s.open(ctx); err == nil {
		defer func() { err = errors.Join(err, s.close()) }()
		r, err = s.run(ctx)
	}
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		err = errors.Join(context.Cause(ctx), err)
	}
	return r, err
}

// emptyDir is the bottom of every stack of layers: overlayfs wants one, and an
// image from scratch has none.
func (b *Builder) emptyDir() string { return filepath.Join(b.cache.dir, "empty") }

// session is one BuildAll.
type session struct {
	*Builder
	o        Options
	out      *reporter
	tree     *root // the context
	context  *source
	contexts *contexts
	bases    *bases
	begun    time.Time
	hold     *image.Hold
	evicting sync.RWMutex // held for writing by who removes layers
	room     room
	inline   bool      // the cache goes with the image
	detected *detected // nil: the Dockerfile is the user's
	offline  bool      // images that are not in the store are not asked for
	fetched  bool      // the context, from where Options.Context says

	mu        sync.Mutex   // of context and the named ones
	walking   sync.Mutex   // held by who walks a context: matchers are made ready on first use
	takenArgs *nameSet     // names of Options.Args that were of use
	trees     contextTrees // parts of the context that RUNs bind
	budget    budget
	closers   []func() error // of what was fetched
	materials []resource     // what that was
}

// open opens the contexts, or fetches the one that is not here.
func (s *session) open(ctx context.Context) (err error) {
	if s.contexts, err = openContexts(s.o.Contexts); err != nil {
		return err
	}
	if err = s.openContext(ctx); err != nil {
		return errors.Join(err, s.close())
	}
	return nil
}

func (s *session) openContext(ctx context.Context) error {
	remote, err := remoteContext(s.o.Context)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	if remote != nil {
		return s.openRemote(ctx, remote)
	}
	if s.o.Context, err = filepath.Abs(s.o.Context); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	if s.tree, err = openRoot(s.o.Context); err != nil {
		return fmt.Errorf("open build context: %w", err)
	}
	return nil
}

func (s *session) close() error {
	err := s.trees.close()
	s.contexts.close()
	if s.tree != nil {
		s.tree.Close()
	}
	for _, end := range s.closers {
		err = errors.Join(err, end())
	}
	return err
}

// run builds for one platform after the other: what their stages have in common
// the later ones find in the cache.
func (s *session) run(ctx context.Context) (r Result, err error) {
	targets, err := s.o.targets()
	if err != nil {
		return r, err
	}
	moves, err := s.o.caches()
	if err != nil {
		return r, err
	}
	if err := s.importCaches(ctx, moves.from); err != nil {
		return r, err
	}
	s.inline = moves.inline
	if err := s.detect(); err != nil {
		return r, err
	}
	for _, t := range targets {
		b := &build{session: s, platform: t, several: len(targets) > 1, done: map[*stage]*state{}}
		final, err := b.run(ctx)
		if err != nil {
			return r, err
		}
		part, err := b.export(ctx, final)
		if err != nil {
			return r, err
		}
		r.Images = append(r.Images, part)
		whole, err := b.attested(ctx, part)
		if err != nil {
			return r, err
		}
		r.parts = append(r.parts, whole)
		if r.Image.ID == "" || t == native() {
			r.Image = part
		}
	}
	s.saveSums()
	s.warnUnused()
	if err := s.exportCaches(ctx, moves.to, r.Images); err != nil {
		return r, err
	}
	r.Bases, r.Digest = s.bases.used(), r.Image.Manifest
	return r, s.deliver(ctx, &r)
}

// build is the build of one platform.
type build struct {
	*session
	platform target
	several  bool // platforms
	file     *dockerfile
	globals  vars       // ARGs before the first FROM, and the platform's
	epoch    *time.Time // SOURCE_DATE_EPOCH
	done     map[*stage]*state
	running  chan struct{} // as many as RUN steps run
}

func (b *build) run(ctx context.Context) (*state, error) {
	v := b.out.begin("[internal] load build definition from " + b.name())
	err := b.load()
	v.end(err)
	if err != nil {
		return nil, err
	}
	p, err := b.plan(ctx)
	if err != nil {
		return nil, err
	}
	if err := b.lint(); err != nil {
		return nil, err
	}
	b.out.planned(p)
	if err := b.walk(ctx, p); err != nil {
		return nil, err
	}
	return b.done[p.target], nil
}

// export writes the image of the target stage. Names are for later: when there
// is more to be done with it, that may fail.
func (b *build) export(ctx context.Context, s *state) (image.Image, error) {
	v := b.out.begin("exporting to image")
	for name, value := range b.o.Labels {
		if s.config.Config.Labels == nil {
			s.config.Config.Labels = map[string]string{}
		}
		s.config.Config.Labels[name] = value
	}
	s.config.Created, s.config.BuildCache = b.stamp(s), nil
	if b.inline {
		own, _, err := b.carry(s.layers)
		if err != nil {
			return image.Image{}, err
		}
		s.config.BuildCache = own
	}
	img, err := b.store.Put(ctx, s.config, s.layers)
	if err == nil {
		err = b.cache.putImage(img.ID, b.begun)
	}
	if err == nil {
		_, _ = fmt.Fprintf(v, "image %s\n", img.ID)
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
func (b *session) name() string {
	if b.o.Dockerfile == "" {
		return defaultDockerfile
	}
	return b.o.Dockerfile
}
