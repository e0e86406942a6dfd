// Package sandbox is a container engine without a daemon: containers, images,
// volumes and networks of one data root, kept in files.
//
// Two directories hold everything. Root is on disk:
//
//	containers/<id>/   config.json (what was asked), hosts, hostname,
//	                   resolv.conf, upper and work (the container's own layer),
//	                   log and exit.json (written by its monitor), ended.json
//	names/<name>       symbolic link to the id: the name is taken
//	ids/<n>            symbolic link to the id: the block of user ids is taken
//	events, events.1   what happened to containers (package events)
//	images/ volumes/ network state, owned by those rooms
//
// Run is on tmpfs and empty after a boot: c/<id>/ has the runtime's state, and
// beside it are <id>.started.json and <id>.address.json.
//
// The life of one container: Create resolves the image, claims a name and a
// block of ids, writes the intent, and lets the runtime prepare namespaces,
// mounts and the network; nothing of the image has run. Start lets it go.
// From then on it belongs to its monitor and not to this process. Wait, Stop,
// Kill, Logs, Exec, List work from any process. Who sees the end settles it:
// address and cgroup are freed, ended.json is written. Remove deletes the rest.
//
// Whatever process dies at whatever line, Recover makes the files true again:
// what runs is left alone, what ended is settled, what was half made is removed.
// A container is locked by flock(2) on its lock file; the lock is not held
// while it runs, so any process may end it.
package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"naru/sandbox/build"
	"naru/sandbox/events"
	"naru/sandbox/image"
	"naru/sandbox/network"
	"naru/sandbox/runtime"
	"naru/sandbox/volume"
)

// Errors a caller can branch on.
var (
	// ErrNotFound says that no container matches the reference.
	ErrNotFound = errors.New("no such container")
	// ErrNameTaken says that another container has the name.
	ErrNameTaken = errors.New("container name is in use")
	// ErrRunning says that the operation needs a stopped container.
	ErrRunning = errors.New("container is running")
	// ErrNotRunning says that the operation needs a running container.
	ErrNotRunning = errors.New("container is not running")
	// ErrBusy says that another process is creating or removing the container.
	ErrBusy = errors.New("container is in use by another process")
	// ErrInUse says that an image or a volume is used by a container.
	ErrInUse = errors.New("in use by a container")
)

// Options says where an Engine keeps its files.
type Options struct {
	Root string // on disk, survives a boot
	Run  string // on tmpfs, at most 60 bytes so that socket paths fit (unix(7): 108)
	// Callback is a command on the host, by its absolute path, that calls Called with
	// the id that is appended to it. Monitors run it, so that containers are restarted,
	// removed and checked while nobody is there; without it restart policies and
	// health checks are refused.
	Callback []string
	// Step, if set, is called with the name of every step of an operation that a crash
	// could follow, right after it, from the goroutine that took it: to measure where
	// the time of a start goes.
	Step func(name string)
}

// Engine is the containers, images, volumes and networks of one Root. It may be
// used from several goroutines, and several processes may open the same Root.
type Engine struct {
	root, run string
	callback  []string
	hash      string // of root: tells two engines' kernel objects apart
	boot      string // id of this boot (random(4)): what ran in another one has ended
	images    *image.Store
	networks  *network.Manager
	volumes   *volume.Store
	log       *events.Log // what happened to containers

	mu      sync.Mutex
	pending map[string]*pending           // created here and not yet started, by id
	live    map[string]*runtime.Container // started here, with output that is copied until Wait

	userNS func() bool // whether containers can have ids of their own; asked once

	// step is Options.Step; tests die in it.
	step func(name string)
}

// Open opens the engine of a data root and makes its directories. It changes
// nothing in the kernel.
func Open(o Options) (*Engine, error) {
	root, err := directory(o.Root)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	run, err := directory(o.Run)
	if err != nil {
		return nil, fmt.Errorf("open run directory: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	sum := sha256.Sum256([]byte(root))
	e := &Engine{
		root: root, run: run, callback: o.Callback, hash: hex.EncodeToString(sum[:4]), boot: strings.TrimSpace(string(boot)),
		pending: map[string]*pending{}, live: map[string]*runtime.Container{}, step: o.Step,
	}
	if e.step == nil {
		e.step = func(string) {}
	}
	e.userNS = sync.OnceValue(e.probeUserNS)
	e.log = events.New(filepath.Join(root, "events"), events.Bound)
	for _, d := range []string{e.containersDir(), e.namesDir(), e.idsDir(), filepath.Join(run, "c")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open engine: %w", err)
		}
	}
	spread(e.containersDir())
	if e.images, err = image.Open(filepath.Join(root, "images")); err != nil {
		return nil, err
	}
	if e.networks, err = network.Open(root, run); err != nil {
		return nil, err
	}
	if e.volumes, err = volume.Open(filepath.Join(root, "volumes")); err != nil {
		return nil, err
	}
	return e, nil
}

// spread asks ext4 to put each directory in dir, with its files, into a block group of
// its own choice, as it does for those of its root (chattr(1), T). In one group the
// search for a free inode passes by all that were removed in the last minutes, for
// each of a container's files. Other file systems refuse, and search otherwise.
func spread(dir string) {
	const topdir = 0x20000 // FS_TOPDIR_FL, ioctl_iflags(2)
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topdir == 0 {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topdir)
	}
}

// directory makes path and returns its one true name, so that the hash of a
// root does not depend on how it was spelled.
func directory(path string) (string, error) {
	if path == "" {
		return "", errors.New("no path given")
	}
	if err := os.MkdirAll(path, 0o711); err != nil {
		return "", err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// Images returns the store of images.
func (e *Engine) Images() *image.Store { return e.images }

// Networks returns the manager of networks.
func (e *Engine) Networks() *network.Manager { return e.networks }

// Volumes returns the store of named volumes.
func (e *Engine) Volumes() *volume.Store { return e.volumes }

// Build makes an image from a Dockerfile. Its RUN steps run in containers of
// this engine that end with ctx.
func (e *Engine) Build(ctx context.Context, o build.Options) (image.Image, error) {
	return e.Builder().Build(ctx, o)
}

// Builder returns what Build builds with, and which remembers its steps.
func (e *Engine) Builder() *build.Builder {
	b := build.New(e.images, stepRunner{e}, filepath.Join(e.root, "build"))
	b.KeepImages(e.hasContainer)
	return b
}

// hasContainer tells whether a container needs the image. Where that cannot be
// found out, one does.
func (e *Engine) hasContainer(img image.Image) bool {
	records, err := e.records()
	return err != nil || slices.ContainsFunc(records, func(r *record) bool { return r.ImageID == img.ID.String() })
}

// CheckBuild returns what BuildKit's rules find in a Dockerfile (build.Check),
// without building.
func (e *Engine) CheckBuild(ctx context.Context, o build.Options) ([]build.Warning, error) {
	return build.New(e.images, stepRunner{e}, filepath.Join(e.root, "build")).Check(ctx, o)
}

// Features probes what this machine, with the file system that holds Root, can
// do for containers.
func (e *Engine) Features() runtime.Report {
	report := runtime.FeaturesAt(e.root)
	e.rememberUserNS(report.Has(runtime.FeatureUserNS))
	return report
}

// probed is userns.json: an answer of the kernel and the boot it is true for.
// Finding it takes mounts and namespaces, which is more than a container start.
type probed struct {
	Boot   string `json:"boot"`
	UserNS bool   `json:"userns"`
}

func (e *Engine) probeUserNS() bool {
	var p probed
	found, err := loadRun(filepath.Join(e.run, "userns.json"), &p)
	if err == nil && found && p.Boot == e.boot && p.UserNS {
		return true // "no" is asked again each time: somebody may have enabled it
	}
	return e.Features().Has(runtime.FeatureUserNS)
}

// rememberUserNS spares other processes the question. Without the file they ask
// themselves, so that it cannot be written is no error.
func (e *Engine) rememberUserNS(yes bool) {
	_ = saveRun(filepath.Join(e.run, "userns.json"), probed{e.boot, yes})
}

func (e *Engine) containersDir() string        { return filepath.Join(e.root, "containers") }
func (e *Engine) namesDir() string             { return filepath.Join(e.root, "names") }
func (e *Engine) idsDir() string               { return filepath.Join(e.root, "ids") }
func (e *Engine) dir(id string) string         { return filepath.Join(e.containersDir(), id) }
func (e *Engine) stateDir(id string) string    { return filepath.Join(e.run, "c", id) }
func (e *Engine) cgroup(id string) string      { return "naru-" + e.hash + "/" + id }
func (e *Engine) startedFile(id string) string { return e.stateDir(id) + ".started.json" }
func (e *Engine) addressFile(id string) string { return e.stateDir(id) + ".address.json" }
