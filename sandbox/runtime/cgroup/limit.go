package cgroup

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// setting is one value for one file, and the field that asks for it.
type setting struct {
	field string // below "resources"
	value any    // as it is configured
	dir   string
	file  string
	text  string
	check bool // the kernel may take another value in silence: read it back
}

func (s setting) fail(err error) error {
	return fmt.Errorf("resources.%s: %v: %w", s.field, s.value, err)
}

// write fails with EINVAL also when the value only does not fit what another file
// still says.
func (s setting) write() error {
	err := write(s.dir, s.file, s.text)
	if errors.Is(err, unix.EBUSY) && strings.HasPrefix(s.file, "memory.") {
		usage, _ := readFile(filepath.Join(s.dir, "memory.usage_in_bytes"))
		err = fmt.Errorf("%w: in use are %s bytes", err, strings.TrimSpace(string(usage)))
	}
	if err == nil && s.check {
		b, readErr := readFile(filepath.Join(s.dir, s.file))
		if got := strings.TrimSpace(string(b)); readErr == nil && got != s.text {
			err = fmt.Errorf("the kernel takes %s instead", got)
		}
	}
	if err != nil {
		return s.fail(err)
	}
	return nil
}

// Update changes the limits that r names on a live group; what it does not name
// stays. When one is refused, those before it are taken back as far as their files
// hold a single value. Device rules replace all earlier ones.
func (g *Group) Update(r *specs.LinuxResources) error {
	if err := g.update(r); err != nil {
		return fmt.Errorf("update cgroup: %w", err)
	}
	return nil
}

func (g *Group) update(r *specs.LinuxResources) error {
	if err := g.valid(); err != nil {
		return err
	}
	if r == nil {
		return nil
	}
	wanted := needs(r)
	if g.host.Unified != "" {
		if err := g.enable(wanted); err != nil {
			return err
		}
	}
	for _, c := range wanted {
		if err := g.join(c); err != nil {
			return err
		}
	}
	if err := g.checkUsage(r.Memory); err != nil {
		return err
	}
	return g.limit(r, true)
}

// limit writes every limit of r; one that no hierarchy can hold is an error.
func (g *Group) limit(r *specs.LinuxResources, undo bool) error {
	p := planner{g: g}
	p.memory(r.Memory)
	p.pids(r.Pids)
	p.cpu(r.CPU)
	p.io(r.BlockIO)
	p.hugetlb(r.HugepageLimits)
	p.network(r.Network)
	p.rdma(r.Rdma)
	p.unified(r.Unified)
	if p.err != nil {
		return p.err
	}
	var old []setting
	if undo {
		old = readOld(p.list)
	}
	err := settle(p.list)
	if err == nil {
		err = g.limitDevices(r.Devices)
	}
	if err != nil && undo {
		if undoErr := settle(old); undoErr != nil {
			err = fmt.Errorf("%w (and taking back what was changed: %w)", err, undoErr)
		}
	}
	return err
}

// settle writes all values. Some are only taken in an order that depends on the old
// ones (a memory limit may not pass the limit with swap, a burst not the quota): what
// fails with EINVAL is tried again after the others, while that leads further.
func settle(list []setting) error {
	for len(list) > 0 {
		var again []setting
		var first error
		for _, s := range list {
			err := s.write()
			if err != nil && !errors.Is(err, unix.EINVAL) {
				return err
			}
			if err != nil {
				again = append(again, s)
				first = errors.Join(first, err)
			}
		}
		if len(again) == len(list) {
			return first
		}
		list = again
	}
	return nil
}

// readOld returns the settings that bring back what is there now.
func readOld(list []setting) (old []setting) {
	for _, s := range list {
		b, err := readFile(filepath.Join(s.dir, s.file))
		text := strings.TrimSpace(string(b))
		if s.file == "memory.oom_control" {
			text, _, _ = strings.Cut(strings.TrimPrefix(text, "oom_kill_disable "), "\n")
		}
		if err == nil && text != "" && !strings.Contains(text, "\n") {
			old = append(old, setting{field: s.field, value: "back to " + text, dir: s.dir, file: s.file, text: text})
		}
	}
	return old
}

// planner collects the settings of a configuration, and the first thing that cannot be.
type planner struct {
	g    *Group
	list []setting
	err  error
}

// home names the file that a limit has in each kind of hierarchy; empty: it has none.
type home struct{ controller, v1, v2 string }

// put plans one value, or notes why it cannot be.
func (p *planner) put(s setting, h home) {
	dir, v2, err := p.g.dir(h.controller)
	s.dir, s.file = dir, h.v1
	if v2 {
		s.file = h.v2
	}
	if err == nil && s.file == "" {
		version := map[bool]string{false: "v1", true: "v2"}[v2]
		err = fmt.Errorf("controller %s of cgroup %s has no such limit", h.controller, version)
	}
	if err != nil {
		p.fail(s, err)
		return
	}
	p.list = append(p.list, s)
}

func (p *planner) fail(s setting, err error) {
	if p.err == nil {
		p.err = s.fail(err)
	}
}

// v2 says whether the controller's limits go to the unified hierarchy.
func (p *planner) v2(controller string) bool { return p.g.host.V1[controller] == "" }

// has says whether the group has a file of the controller.
func (p *planner) has(controller, file string) bool {
	dir, _, err := p.g.dir(controller)
	return err == nil && exists(dir, file)
}

// read returns a file's text without the space around it, or "".
func (p *planner) read(controller, file string) string {
	dir, _, err := p.g.dir(controller)
	if err != nil {
		return ""
	}
	b, _ := readFile(filepath.Join(dir, file)) // who needs it notices that it is empty
	return strings.TrimSpace(string(b))
}

// dir is where a controller's files are; v2 says which names they have.
func (g *Group) dir(controller string) (dir string, v2 bool, err error) {
	if m := g.host.V1[controller]; m != "" {
		return filepath.Join(m, g.path), false, nil
	}
	if g.host.Has(controller) {
		return g.UnifiedDir(), true, nil
	}
	return "", false, fmt.Errorf("the machine has no cgroup controller %s", controller)
}

// join brings the group's processes into a v1 hierarchy that Create had no need of.
func (g *Group) join(controller string) error {
	mount := g.host.V1[controller]
	if mount == "" || g.v1Dir(controller) != "" {
		return nil
	}
	if g.dirs == nil { // opened: from here on, what there is counts
		g.dirs = slices.Sorted(slices.Values(mapValues(g.V1Dirs())))
	}
	if err := g.makeV1(controller); err != nil {
		return fmt.Errorf("join controller %s: %w", controller, err)
	}
	dir := filepath.Join(mount, g.path)
	for range 20 { // processes that fork meanwhile leave children behind once more
		all, err := g.Pids()
		if err != nil {
			return err
		}
		inside, err := pidsBelow(dir)
		if err != nil {
			return err
		}
		moved := false
		for _, pid := range all {
			if slices.Contains(inside, pid) {
				continue
			}
			moved = true
			if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("join controller %s: %w", controller, err)
			}
		}
		if !moved {
			return nil
		}
	}
	return fmt.Errorf("join controller %s: the group forks faster than its processes can be moved", controller)
}

func mapValues(m map[string]string) (list []string) {
	for _, v := range m {
		list = append(list, v)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// amount writes a limit where negative means none.
func amount(n int64, v2 bool) string {
	if n < 0 && v2 {
		return "max"
	}
	if n < 0 {
		return "-1"
	}
	return strconv.FormatInt(n, 10)
}
