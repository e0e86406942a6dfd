package runtime

import (
	"context"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Config is everything that Create needs to know of a container.
type Config struct {
	// ID names the container in messages and in state.json.
	ID string
	// Spec is what runs and how it is confined (runtime-spec 1.3): process,
	// namespaces, capabilities, seccomp, mounts, masked paths, resources, id maps.
	Spec *specs.Spec
	// Root is what the container sees as "/".
	Root Overlay
	// Stacks has the sources of bind mounts that lie in layers, by their index in
	// Spec.Mounts. Mount.Source is then a path below the root of the stack, whose
	// links are followed inside of it; the stack itself is mounted nowhere.
	Stacks map[int]Overlay
	// Made has detached mounts that the caller made, by index in Spec.Mounts. They are
	// attached as they are and stay the caller's.
	Made map[int]*os.File `json:"-"`
	// Foreign is another OCI runtime that runs the container, or nil for ours.
	Foreign *Foreign
	// StateDir holds state.json, monitor.sock and the output fifos. It should be
	// on tmpfs; it is made with mode 0700, its parent must exist.
	StateDir string
	// Dir is on disk and outlives the container: log, log.1, exit.json. It must exist.
	Dir string
	// LogMax bounds the bytes of log on disk, both files together; 0 means DefaultLogMax.
	LogMax int64
	// LogFiles is how many files share LogMax; 0 means two.
	LogFiles int
	// OpenStdin gives the container a standard input that Attach writes to. With a
	// terminal (Spec.Process.Terminal) that is the terminal.
	OpenStdin bool
	// Init keeps a process of ours as the container's first, which reaps orphans and
	// passes signals on to the program.
	Init bool
	// Callback is what the monitor starts outside the container, or nil.
	Callback *Callback
	// Cgroup is the container's path below every hierarchy, such as "naru-1a2b3c4d/<id>".
	Cgroup string
	// Stdin is the standard input; nil is /dev/null.
	Stdin *os.File
	// Stdout and Stderr receive a live copy of what is logged; nil means none.
	Stdout, Stderr *os.File
	// Monitor is one that StartMonitor has started for Cgroup. Create takes it over,
	// and ends it when it fails; without one it starts its own.
	Monitor *Monitor `json:"-"`
	// Plug is called by Create once the container's namespaces exist, while its init
	// still prepares its mounts: here the network is plugged into
	// /proc/<pid>/ns/net. An error fails the creation.
	Plug func(ctx context.Context, pid int) error `json:"-"`
	// Detached lets a created container wait for Start without its creator; otherwise
	// it is killed when the creator dies before Start.
	Detached bool
	// Passing is set for a container whose Dir is removed when it ends: neither its log
	// nor exit.json is synced.
	Passing bool
}

// DefaultLogMax is the log bound in bytes for a Config that names none.
const DefaultLogMax = 16 << 20

// Overlay is a stack of directories that becomes one root file system.
// All directories hold container ids on disk (0..65535); with a user namespace
// they are mounted id-mapped, so that nothing on disk is ever shifted.
type Overlay struct {
	// Lower are the read-only layers, bottom first.
	Lower []string
	// Upper takes the changes and Work is overlayfs' scratch directory; both must
	// be empty directories or earlier ones of the same container, on one file
	// system. Without Upper one Lower is bound as it is (read-only if the
	// spec's root is), and several make a read-only overlay.
	Upper, Work string
	// Volatile skips all fsync of the upper layer (overlayfs "volatile"), and the sync of
	// its whole file system that its unmounting is otherwise: for a layer that is thrown
	// away after a crash. It can be mounted once.
	Volatile bool
}

// IDRange is a range of host user and group ids for one user namespace:
// container id 0 is host id Base.
type IDRange struct {
	Base, Count uint32
}

// State is the life stage of a container, in the words of runtime-spec.
type State string

// The states of a container. A created one has run nothing of its image.
const (
	Created State = "created"
	Running State = "running"
	Paused  State = "paused"
	Stopped State = "stopped"
)

// Exit says how a container or an exec ended.
type Exit struct {
	// Code is the exit code, or 128 + the signal's number.
	Code int `json:"code"`
	// OOM is true when the kernel killed for memory inside the container and
	// its end was a SIGKILL.
	OOM bool `json:"oom"`
	// OOMKills is how many of the container's processes the kernel killed for memory.
	OOMKills int `json:"oom_kills,omitempty"`
	// Lost is how many bytes of output were not logged, as the disk was full.
	Lost int64 `json:"lost,omitempty"`
	// Known is false when nobody was left to see the end (the monitor was
	// killed too); Code is then 255.
	Known bool `json:"known"`
	// At is when the end was seen.
	At time.Time `json:"at"`
}

// ExecConfig is one more process for a running container.
type ExecConfig struct {
	// Process says what to run; its capabilities, user, environment, rlimits and
	// working directory are those of the process alone.
	Process *specs.Process
	// Seccomp is the policy of the process; nil is the default one.
	Seccomp   *specs.LinuxSeccomp
	NoSeccomp bool // no policy at all
	// Stdin, Stdout and Stderr are handed to the process as they are; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Terminal is called with the master of the process's new terminal before it runs,
	// if Process.Terminal is set; the file is the callee's. Stdin, Stdout and Stderr
	// are then unused.
	Terminal func(master *os.File)
	// Detach returns as soon as the process runs; nobody waits for it.
	Detach bool
}
