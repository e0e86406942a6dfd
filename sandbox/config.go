package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"naru/sandbox/network"
	"naru/sandbox/volume"
)

// Network modes beside the names of networks.
const (
	NetworkNone = "none" // a network namespace with only the loopback
	NetworkHost = "host" // the host's own network
)

// User namespace modes.
const (
	UserNSAuto = "auto" // 65536 host ids of its own where the kernel can
	UserNSHost = "host" // container ids are host ids
)

// minMemory is the smallest memory limit a container can start with.
const minMemory = 4 << 20

// ContainerConfig is what a container is asked to be. The zero value of every
// field but Image is a usable default.
type ContainerConfig struct {
	Name       string            `json:"name"`                 // unique in the Root; empty: made up
	Image      string            `json:"image"`                // name, id or digest
	Args       []string          `json:"args,omitempty"`       // replaces the image's CMD
	Entrypoint []string          `json:"entrypoint,omitempty"` // replaces the image's ENTRYPOINT and drops its CMD; [""] clears it
	Env        []string          `json:"env,omitempty"`        // KEY=value, over the image's
	Mounts     []Mount           `json:"mounts,omitempty"`
	Memory     int64             `json:"memory,omitempty"` // bytes, swap included; 0: no limit
	CPUs       float64           `json:"cpus,omitempty"`   // 0: no limit
	Pids       int64             `json:"pids,omitempty"`   // 0: the runtime's default; -1: no limit
	Network    string            `json:"network"`          // "bridge" (default), "none", "host" or a network's name
	User       string            `json:"user,omitempty"`   // name|uid[:group|gid], as in Dockerfile USER
	Workdir    string            `json:"workdir,omitempty"`
	Hostname   string            `json:"hostname,omitempty"` // default: the short id
	ReadOnly   bool              `json:"read_only,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	StopSignal string            `json:"stop_signal,omitempty"` // "TERM", "SIGTERM" or "15"; default: the image's, then TERM
	StopGrace  time.Duration     `json:"stop_grace,omitempty"`  // default 10 s
	UserNS     string            `json:"userns"`                // "auto" (default) or "host"
	Runtime    string            `json:"runtime,omitempty"`     // another OCI runtime: a name in PATH or an absolute path, which it becomes; empty: ours
	Remove     bool              `json:"remove,omitempty"`      // remove it when it has ended
	Living
	Net Networking `json:"net,omitzero"` // ports, names and addresses

	Domainname  string            `json:"domainname,omitempty"`  // NIS domain name, uname(2)
	Annotations map[string]string `json:"annotations,omitempty"` // of the OCI spec; the engine gives them no meaning
	GroupAdd    []string          `json:"group_add,omitempty"`   // groups of the process beside its user's, names or numbers
	Resources   Resources         `json:"resources,omitzero"`
	Security    Security          `json:"security,omitzero"`
	Namespaces  Namespaces        `json:"namespaces,omitzero"`
}

// Mount is a named volume, a host path or a tmpfs inside a container. Ids on
// disk are container ids in all.
type Mount struct {
	Source   string `json:"source,omitempty"` // volume name, or absolute host path that exists; none for a tmpfs
	Target   string `json:"target"`           // absolute path in the container
	ReadOnly bool   `json:"read_only,omitempty"`
	Volume   bool   `json:"volume,omitempty"`
	Tmpfs    bool   `json:"tmpfs,omitempty"`
	// Options are those of mount(8) for a tmpfs (size=, mode=, uid=, gid=,
	// nr_inodes=, exec …) and noexec for the others.
	Options []string `json:"options,omitempty"`
	// NoCopy leaves a new volume empty, where it would begin as a copy of what
	// the image has at its place.
	NoCopy bool `json:"no_copy,omitempty"`
	// Propagation of a bind's later mounts: private, shared, slave, or one of them for
	// all below too, rprivate (the default), rshared, rslave (mount_namespaces(7)).
	Propagation string `json:"propagation,omitempty"`
	// Flat binds a host path without the mounts below it.
	Flat bool `json:"flat,omitempty"`
	// Anonymous is a volume that has no name of the user's; Create makes one up.
	Anonymous bool `json:"anonymous,omitempty"`
	// ReadOnlyTree makes what is mounted below read-only too (mount_setattr(2)).
	ReadOnlyTree bool `json:"read_only_tree,omitempty"`
}

// Stdio is what a foreground container is connected to beside its log. This
// process copies the output, until Wait has returned: the files must stay open
// until then, and the container goes on without copies when the process ends.
type Stdio struct {
	Stdin          *os.File // nil: /dev/null
	Stdout, Stderr *os.File // nil: the log only
}

// Container is what is known of one container at the moment of asking.
type Container struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Image   string   `json:"image"` // as it was asked for
	ImageID string   `json:"image_id"`
	Command []string `json:"command"`
	State   string   `json:"state"` // created, running, paused, restarting or stopped
	// Pid is the program's. Of another runtime that hides its program, or is still at
	// work, it is that runtime's process, which has the container's network and the
	// host's files.
	Pid      int `json:"pid,omitempty"`
	ExitCode int `json:"exit_code"`
	// ExitKnown is false while it runs, and after an end that nobody saw (a
	// power cut): ExitCode is -1 then.
	ExitKnown bool  `json:"exit_known"`
	OOM       bool  `json:"oom,omitempty"`
	OOMKills  int   `json:"oom_kills,omitempty"` // processes that the kernel killed for memory
	LogLost   int64 `json:"log_lost,omitempty"`  // bytes of output that a full disk kept from the log
	Restarts  int   `json:"restarts,omitempty"`  // by its policy, since a person started it
	// RestartError is why the last restart failed; none follows.
	RestartError string               `json:"restart_error,omitempty"`
	Health       *Health              `json:"health,omitempty"`
	Address      netip.Addr           `json:"address,omitzero"`
	Networks     []network.Attachment `json:"networks,omitempty"` // while it runs; Address is of the first
	Ports        []network.Port       `json:"ports,omitempty"`    // published on the host now
	Labels       map[string]string    `json:"labels"`
	Created      time.Time            `json:"created"`
	Started      time.Time            `json:"started,omitzero"`
	Finished     time.Time            `json:"finished,omitzero"`
	// Warnings name isolation that was asked for and that the kernel lacks.
	Warnings []string        `json:"warnings,omitempty"`
	Config   ContainerConfig `json:"config"`
}

// String writes the mount as the -v flag reads it.
func (m Mount) String() string {
	s := m.Source + ":" + m.Target
	if m.Tmpfs {
		s = "tmpfs:" + m.Target
	}
	if m.ReadOnly {
		s += ":ro"
	}
	return s
}

// complete fills in the defaults and refuses what can never run.
func (c *ContainerConfig) complete() error {
	if c.Image == "" {
		return errors.New("no image given")
	}
	if c.Network == "" && len(c.Net.Endpoints) > 0 {
		c.Network = c.Net.Endpoints[0].Network
	}
	if c.Network == "" {
		c.Network = network.Default
	}
	if c.UserNS == "" {
		c.UserNS = UserNSAuto
	}
	if c.StopGrace == 0 {
		c.StopGrace = 10 * time.Second
	}
	return errors.Join(c.checkNames(), c.checkLimits(), c.Resources.check(c), c.Security.check(), c.Namespaces.check(c),
		c.checkMounts(), c.Net.check(c), c.checkLiving(), c.checkRuntime())
}

func (c *ContainerConfig) checkNames() error {
	if c.Name != "" {
		if err := checkName(c.Name); err != nil {
			return err
		}
	}
	if c.UserNS != UserNSAuto && c.UserNS != UserNSHost {
		return fmt.Errorf("user namespace %q: want auto or host", c.UserNS)
	}
	if c.Workdir != "" && !path.IsAbs(c.Workdir) {
		return fmt.Errorf("working directory %q is not absolute", c.Workdir)
	}
	if len(c.Hostname) > 63 || !allOf(c.Hostname, nameByte) {
		return fmt.Errorf("host name %q: at most 63 letters, digits, dots and dashes", c.Hostname)
	}
	if len(c.Domainname) > 64 || !allOf(c.Domainname, nameByte) {
		return fmt.Errorf("domain name %q: at most 64 letters, digits, dots and dashes", c.Domainname)
	}
	for _, kv := range c.Env {
		if key, _, ok := strings.Cut(kv, "="); !ok || key == "" || strings.ContainsRune(kv, 0) {
			return fmt.Errorf("environment %q: want KEY=value", key)
		}
	}
	return nil
}

func (c *ContainerConfig) checkLimits() error {
	if c.Memory != 0 && c.Memory < minMemory {
		return fmt.Errorf("memory limit of %d bytes: at least %d are needed", c.Memory, minMemory)
	}
	if c.CPUs < 0 || (c.CPUs > 0 && c.CPUs < 0.01) {
		return fmt.Errorf("cpu limit %g: at least 0.01 is needed", c.CPUs)
	}
	if c.Pids < -1 {
		return fmt.Errorf("process limit %d: want a positive number, or -1 for none", c.Pids)
	}
	return nil
}

func (c *ContainerConfig) checkMounts() error {
	seen := map[string]bool{}
	for i := range c.Mounts {
		m := &c.Mounts[i]
		if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
			return fmt.Errorf("mount %s: the target must be an absolute path other than /", m)
		}
		m.Target = path.Clean(m.Target)
		m.name()
		if seen[m.Target] {
			return fmt.Errorf("mount %s: two mounts at %s", m, m.Target)
		}
		seen[m.Target] = true
		if err := m.checkOptions(); err != nil {
			return err
		}
		if m.Tmpfs {
			continue
		}
		if m.Volume {
			if err := volume.CheckName(m.Source); err != nil {
				return err
			}
			continue
		}
		if !filepath.IsAbs(m.Source) {
			return fmt.Errorf("mount %s: the source must be an absolute path", m)
		}
		if _, err := os.Stat(m.Source); err != nil {
			return fmt.Errorf("mount %s: %w", m, err)
		}
	}
	return nil
}

// checkName refuses what cannot be a container's name; the pattern is Docker's.
// It also keeps names usable as file names.
func checkName(name string) error {
	if len(name) == 0 || len(name) > 128 || !letterOrDigit(name[0]) || !allOf(name, nameByte) {
		return fmt.Errorf("container name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] is allowed, at most 128 characters", name)
	}
	return nil
}

// A name is checked at every operation; compiling a pattern takes longer than
// the rest of a look-up.

func allOf(s string, allowed func(byte) bool) bool {
	for i := range len(s) {
		if !allowed(s[i]) {
			return false
		}
	}
	return true
}

func letterOrDigit(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func nameByte(c byte) bool { return letterOrDigit(c) || c == '_' || c == '.' || c == '-' }

// decode is json.Unmarshal with the file's name in the error.
func decode(file string, data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}
