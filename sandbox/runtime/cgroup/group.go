package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Group is one container's control group in all hierarchies.
type Group struct {
	host Host
	path string
	dirs []string // of v1 hierarchies that are used; nil where the group was opened
}

// ParsePath turns the cgroupsPath of a configuration (runtime-spec config-linux) into
// the path that Open and Create take. Absolute or not, it is below the hierarchies'
// roots. The form slice:prefix:name is that of systemd's driver, which there is not.
func ParsePath(cgroupsPath string) (string, error) {
	if strings.Count(cgroupsPath, ":") == 2 && !strings.Contains(cgroupsPath, "/") {
		return "", fmt.Errorf("cgroupsPath %q is for the systemd cgroup driver: only cgroupfs is supported "+
			"(dockerd --exec-opt native.cgroupdriver=cgroupfs, podman --cgroup-manager=cgroupfs)", cgroupsPath)
	}
	g := Group{path: strings.TrimLeft(filepath.Clean(cgroupsPath), "/")}
	if slices.Contains(strings.Split(cgroupsPath, "/"), "..") || g.valid() != nil {
		return "", fmt.Errorf("cgroupsPath %q names no cgroup", cgroupsPath)
	}
	return g.path, nil
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
	if err := makeDir(dir); err != nil {
		return "", fmt.Errorf("create cgroup: %w", err)
	}
	return dir, nil
}

// Create makes the group with the limits of r. An existing group is joined when it
// is empty, and refused when it has processes or is frozen: its limits would
// surprise them. Without rules in r.Devices all devices stay open to it.
func (h Host) Create(path string, r *specs.LinuxResources) (*Group, error) {
	g := h.Open(path)
	if err := g.valid(); err != nil {
		return nil, fmt.Errorf("create cgroup: %w", err)
	}
	if h.Unified == "" && len(h.V1) == 0 {
		return nil, errors.New("create cgroup: no cgroup file system is mounted")
	}
	if r == nil {
		r = &specs.LinuxResources{}
	}
	if err := g.refuseUsed(); err != nil {
		return nil, fmt.Errorf("create cgroup: %w", err) // not ours to remove
	}
	err := g.create(r)
	if err != nil {
		err = fmt.Errorf("create cgroup: %w", errors.Join(err, g.Remove()))
	}
	return g, err
}

func (g *Group) create(r *specs.LinuxResources) error {
	g.dirs = []string{}
	wanted := append([]string{"memory", "pids", "cpu", "cpuacct", "blkio", "devices"}, needs(r)...)
	if g.host.Unified != "" {
		if err := g.createUnified(wanted); err != nil {
			return err
		}
	} else {
		wanted = append(wanted, "freezer")
	}
	for _, c := range wanted {
		if err := g.makeV1(c); err != nil {
			return err
		}
	}
	return g.limit(r, false)
}

// needs are the controllers, in words of v1, without which r cannot be.
func needs(r *specs.LinuxResources) (list []string) {
	add := func(c string, needed bool) {
		if needed {
			list = append(list, c)
		}
	}
	add("memory", r.Memory != nil)
	add("pids", r.Pids != nil)
	add("cpu", r.CPU != nil)
	add("cpuset", r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != ""))
	add("blkio", r.BlockIO != nil)
	add("hugetlb", len(r.HugepageLimits) > 0)
	add("net_cls", r.Network != nil && r.Network.ClassID != nil)
	add("net_prio", r.Network != nil && len(r.Network.Priorities) > 0)
	add("rdma", len(r.Rdma) > 0)
	add("devices", len(r.Devices) > 0)
	for file := range r.Unified {
		controller, _, _ := strings.Cut(file, ".")
		add(v1Name(controller), true)
	}
	return list
}

// makeV1 makes the group's directory in the v1 hierarchy of a controller, where
// there is one.
func (g *Group) makeV1(controller string) error {
	if g.host.V1[controller] == "" {
		return nil
	}
	dir := filepath.Join(g.host.V1[controller], g.path)
	if slices.Contains(g.dirs, dir) {
		return nil // cpu,cpuacct are often one hierarchy
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	if controller == "cpuset" {
		if err := inheritCpuset(g.host.V1[controller], g.path); err != nil {
			return err
		}
	}
	g.dirs = append(g.dirs, dir)
	return nil
}

// madeXattr marks parents that makeDir made, the only ones that Remove takes away.
// A parent with limits of an administrator stays.
const madeXattr = "trusted.naru.made"

// makeDir also makes parents, which another container's Remove may take away
// between two calls.
func makeDir(dir string) error {
	for range 100 {
		err := os.Mkdir(dir, 0o755)
		if !errors.Is(err, fs.ErrNotExist) {
			if errors.Is(err, fs.ErrExist) {
				err = nil
			}
			return err
		}
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		_ = unix.Setxattr(filepath.Dir(dir), madeXattr, []byte("1"), unix.XATTR_CREATE) // without, it stays when it is empty
	}
	return fmt.Errorf("make %s: its parent disappears again and again", dir)
}

// refuseUsed looks whether the group exists with processes in it or frozen.
func (g *Group) refuseUsed() error {
	var dirs []string
	for _, mount := range g.host.mounts() {
		dir := filepath.Join(mount, g.path)
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range dirs {
		pids, err := pidsBelow(dir)
		if err != nil {
			return err
		}
		if len(pids) > 0 {
			return fmt.Errorf("%s is in use by process %d", dir, pids[0])
		}
		for _, f := range []string{"cgroup.freeze", "freezer.self_freezing"} {
			if b, err := readFile(filepath.Join(dir, f)); err == nil && strings.TrimSpace(string(b)) == "1" {
				return fmt.Errorf("%s is frozen", dir)
			}
		}
	}
	return nil
}

// inheritCpuset fills in what the kernel leaves empty in new v1 cpusets, which no
// process can enter then (cpuset(7)), from the hierarchy's root down.
func inheritCpuset(mount, path string) error {
	dir := mount
	for _, name := range strings.Split(path, "/") {
		parent := dir
		dir = filepath.Join(dir, name)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := readFile(filepath.Join(dir, file))
			if err == nil && len(strings.TrimSpace(string(b))) == 0 {
				if b, err = readFile(filepath.Join(parent, file)); err == nil {
					err = write(dir, file, strings.TrimSpace(string(b)))
				}
			}
			if err != nil {
				return err
			}
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

// v1Dir is the group's directory in the v1 hierarchy of the controller, or empty.
func (g *Group) v1Dir(controller string) string {
	mount := g.host.V1[controller]
	if mount == "" {
		return ""
	}
	if dir := filepath.Join(mount, g.path); g.has(dir) {
		return dir
	}
	return ""
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
