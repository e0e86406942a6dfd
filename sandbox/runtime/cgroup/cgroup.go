// Package cgroup makes, limits, freezes, kills and removes the control groups of
// one container, on cgroup v2, v1 and the mix of both.
//
// A group's life: Detect finds the hierarchies, Create makes the directories and
// writes all limits while nobody is inside, the container's first process is born
// in the unified directory (clone3 CLONE_INTO_CGROUP) and enters the others
// through Tasks, Kill ends everything inside, Remove takes the directories away.
//
// Wherever a cgroup2 mount exists, even one without controllers, the group has a
// directory there: killing and freezing need it. Limits go to whichever hierarchy
// has the controller.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Host is what cgroup file systems the machine has mounted.
type Host struct {
	// Unified is the mount point of cgroup2, or empty.
	Unified string
	// V1 maps a controller to the mount point of its v1 hierarchy.
	V1 map[string]string
	// Controllers are those of the unified hierarchy.
	Controllers []string
}

// first is what Detect found first.
var first = sync.OnceValues(readMounts)

// Detect finds the machine's hierarchies. The mount table is read once, as that
// takes longer than making a group; it is read again when what was found is no
// longer there.
func Detect() (Host, error) {
	h, err := first()
	if err != nil || !h.mounted() {
		h, err = readMounts()
	}
	if err != nil {
		return Host{}, fmt.Errorf("detect cgroups: %w", err)
	}
	if h.Unified != "" {
		b, err := os.ReadFile(filepath.Join(h.Unified, "cgroup.controllers"))
		if err != nil {
			return Host{}, fmt.Errorf("detect cgroups: %w", err)
		}
		h.Controllers = strings.Fields(string(b))
	}
	return h, nil
}

// mounted says whether every hierarchy still is where it was found.
func (h Host) mounted() bool {
	is := func(path string, kind int64) bool {
		var st unix.Statfs_t
		return unix.Statfs(path, &st) == nil && int64(st.Type) == kind
	}
	for _, m := range h.V1 {
		if !is(m, unix.CGROUP_SUPER_MAGIC) {
			return false
		}
	}
	if h.Unified == "" {
		return len(h.V1) > 0
	}
	return is(h.Unified, unix.CGROUP2_SUPER_MAGIC)
}

// readMounts reads the mount table of the calling process (proc_pid_mountinfo(5)).
func readMounts() (Host, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Host{}, err
	}
	defer f.Close()
	h := Host{V1: map[string]string{}}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		h.mount(strings.Fields(lines.Text()))
	}
	return h, lines.Err()
}

// controllers are those that this package can limit or needs for statistics.
func controllers() []string {
	return []string{"memory", "pids", "cpu", "cpuacct", "cpuset", "blkio", "devices", "freezer"}
}

// mount takes one line of mountinfo: fields, "-", type, source, super options.
func (h *Host) mount(f []string) {
	dash := slices.Index(f, "-")
	if dash < 5 || len(f) < dash+4 || f[3] != "/" {
		return
	}
	switch f[dash+1] {
	case "cgroup2":
		if h.Unified == "" {
			h.Unified = f[4]
		}
	case "cgroup":
		for _, option := range strings.Split(f[dash+3], ",") {
			if slices.Contains(controllers(), option) && h.V1[option] == "" {
				h.V1[option] = f[4]
			}
		}
	}
}

// Has says whether the controller can be used, in words of v1 ("blkio" is v2's "io").
func (h Host) Has(controller string) bool {
	if h.V1[controller] != "" {
		return true
	}
	switch controller {
	case "blkio":
		controller = "io"
	case "cpuacct", "devices", "freezer":
		return h.Unified != "" // core features of v2
	}
	return slices.Contains(h.Controllers, controller)
}

// Group is one container's control group in all hierarchies.
type Group struct {
	host Host
	path string
	dirs []string // of v1 hierarchies that are used; nil where the group was opened
}

// Open names an existing group, or one to be made. Every operation refuses a path
// that names no group below the hierarchy's root.
func (h Host) Open(path string) *Group { return &Group{host: h, path: path} }

// CreateUnified makes a group in the unified hierarchy alone and returns its
// directory: for a process that needs no limits, but a place of its own. Without
// a unified hierarchy it is "".
func (h Host) CreateUnified(path string) (string, error) {
	g := h.Open(path)
	if err := g.valid(); err != nil {
		return "", fmt.Errorf("create cgroup: %w", err)
	}
	dir := g.UnifiedDir()
	if dir == "" {
		return "", nil
	}
	if err := makeDir(dir, false); err != nil {
		return "", fmt.Errorf("create cgroup: %w", err)
	}
	return dir, nil
}

// Create makes the group with the limits of r. An existing group is refused when
// it has processes or is frozen: its limits would surprise them.
func (h Host) Create(path string, r *specs.LinuxResources) (*Group, error) {
	g := h.Open(path)
	if err := g.valid(); err != nil {
		return nil, fmt.Errorf("create cgroup: %w", err)
	}
	if r == nil {
		r = &specs.LinuxResources{}
	}
	err := g.create(r)
	if err != nil {
		err = fmt.Errorf("create cgroup: %w", errors.Join(err, g.Remove()))
	}
	return g, err
}

func (g *Group) create(r *specs.LinuxResources) error {
	if g.host.Unified == "" && len(g.host.V1) == 0 {
		return errors.New("no cgroup file system is mounted")
	}
	if g.host.Unified != "" {
		if err := g.createUnified(r); err != nil {
			return err
		}
	}
	wanted := []string{"memory", "pids", "cpu", "cpuacct", "devices"}
	if g.host.Unified == "" {
		wanted = append(wanted, "freezer")
	}
	if r.BlockIO != nil {
		wanted = append(wanted, "blkio")
	}
	if r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != "") {
		wanted = append(wanted, "cpuset")
	}
	for _, c := range wanted {
		if g.host.V1[c] == "" {
			continue
		}
		dir := filepath.Join(g.host.V1[c], g.path)
		if slices.Contains(g.dirs, dir) {
			continue // cpu,cpuacct are often one hierarchy
		}
		if err := makeDir(dir, c == "cpuset"); err != nil {
			return err
		}
		g.dirs = append(g.dirs, dir)
	}
	return g.limit(r)
}

// makeDir also makes parents, which another container's Remove may take away
// between two calls.
func makeDir(dir string, cpuset bool) error {
	for range 100 {
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrNotExist) {
			if err := makeDir(filepath.Dir(dir), cpuset); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, fs.ErrExist) {
			return notInUse(dir)
		}
		if err == nil && cpuset {
			err = inheritCpuset(dir)
		}
		return err
	}
	return fmt.Errorf("make %s: its parent disappears again and again", dir)
}

func notInUse(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	if len(b) > 0 {
		return fmt.Errorf("%s is in use", dir)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "cgroup.freeze")); err == nil && strings.TrimSpace(string(b)) == "1" {
		return fmt.Errorf("%s is frozen", dir)
	}
	return nil
}

// inheritCpuset fills in what the kernel leaves empty in a new v1 cpuset, which
// no process can enter then (cpuset(7)).
func inheritCpuset(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// UnifiedDir is the directory in the cgroup2 hierarchy, or empty.
func (g *Group) UnifiedDir() string {
	if g.host.Unified == "" {
		return ""
	}
	return filepath.Join(g.host.Unified, g.path)
}

// V1Dirs maps each v1 controller of the group to its directory.
func (g *Group) V1Dirs() map[string]string {
	dirs := map[string]string{}
	for c, mount := range g.host.V1 {
		if dir := filepath.Join(mount, g.path); g.has(dir) {
			dirs[c] = dir
		}
	}
	return dirs
}

// has says whether a directory of a v1 hierarchy is the group's. Who made the group
// knows; who opened it must look.
func (g *Group) has(dir string) bool {
	if g.dirs != nil {
		return slices.Contains(g.dirs, dir)
	}
	_, err := os.Stat(dir)
	return err == nil
}

// Tasks are the files, beside the unified directory, that a process enters the
// group by: it must write "0" to each while it has a single thread. Only for a
// thread that moves itself the kernel needs no lock on all thread groups, whose
// grace period takes 10 ms and more.
func (g *Group) Tasks() []string {
	var files []string
	for _, dir := range g.V1Dirs() {
		files = append(files, filepath.Join(dir, "tasks"))
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// OOMFile is the file with the line "oom_kill <count>", or empty.
func (g *Group) OOMFile() string {
	if m := g.host.V1["memory"]; m != "" {
		return filepath.Join(m, g.path, "memory.oom_control")
	}
	if slices.Contains(g.host.Controllers, "memory") {
		return filepath.Join(g.UnifiedDir(), "memory.events")
	}
	return ""
}
