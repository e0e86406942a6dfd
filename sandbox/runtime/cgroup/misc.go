package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// pids plans resources.pids; negative and, as Docker has it, zero are no limit.
func (p *planner) pids(l *specs.LinuxPids) {
	if l == nil || l.Limit == nil {
		return
	}
	text := "max"
	if *l.Limit > 0 {
		text = strconv.FormatInt(*l.Limit, 10)
	}
	p.put(setting{field: "pids.limit", value: *l.Limit, text: text}, home{"pids", "pids.max", "pids.max"})
}

// hugetlb limits usage, and reservations where the kernel counts them (Linux 5.7).
func (p *planner) hugetlb(list []specs.LinuxHugepageLimit) {
	for i, l := range list {
		s := setting{field: fmt.Sprintf("hugepageLimits[%d]", i), value: fmt.Sprintf("%s %d", l.Pagesize, l.Limit), text: strconv.FormatUint(l.Limit, 10)}
		if l.Pagesize == "" || strings.ContainsAny(l.Pagesize, "/.") {
			p.fail(s, errors.New("invalid page size"))
			continue
		}
		name := "hugetlb." + l.Pagesize
		p.put(s, home{"hugetlb", name + ".limit_in_bytes", name + ".max"})
		if p.has("hugetlb", name+".rsvd.limit_in_bytes") || p.has("hugetlb", name+".rsvd.max") {
			p.put(s, home{"hugetlb", name + ".rsvd.limit_in_bytes", name + ".rsvd.max"})
		}
	}
}

// network plans what v1 alone has. Interfaces are those of the caller's network namespace.
func (p *planner) network(n *specs.LinuxNetwork) {
	if n == nil {
		return
	}
	if n.ClassID != nil && *n.ClassID != 0 {
		p.put(setting{field: "network.classID", value: *n.ClassID, text: strconv.FormatUint(uint64(*n.ClassID), 10)}, home{"net_cls", "net_cls.classid", ""})
	}
	for i, prio := range n.Priorities {
		text := fmt.Sprintf("%s %d", prio.Name, prio.Priority)
		p.put(setting{field: fmt.Sprintf("network.priorities[%d]", i), value: text, text: text}, home{"net_prio", "net_prio.ifpriomap", ""})
	}
}

func (p *planner) rdma(limits map[string]specs.LinuxRdma) {
	for _, device := range slices.Sorted(maps.Keys(limits)) {
		l, text := limits[device], device
		if l.HcaHandles != nil {
			text += fmt.Sprintf(" hca_handle=%d", *l.HcaHandles)
		}
		if l.HcaObjects != nil {
			text += fmt.Sprintf(" hca_object=%d", *l.HcaObjects)
		}
		if text != device {
			p.put(setting{field: "rdma", value: text, text: text}, home{"rdma", "rdma.max", "rdma.max"})
		}
	}
}

// unified plans resources.unified: files of v2 by name, each line written by itself.
// A file that a field above sets to something else is an error.
func (p *planner) unified(files map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		s := setting{field: "unified[" + name + "]", value: strconv.Quote(files[name]), dir: p.g.UnifiedDir(), file: name}
		if err := p.unifiedFile(name); err != nil {
			p.fail(s, err)
			continue
		}
		for _, line := range strings.Split(strings.TrimSuffix(files[name], "\n"), "\n") {
			s.text = line
			for _, other := range p.list {
				if other.dir == s.dir && other.file == name && other.text != line && sameKey(other.text, line) && !strings.HasPrefix(other.field, "unified") {
					p.fail(s, fmt.Errorf("resources.%s sets this to %q", other.field, other.text))
				}
			}
			p.list = append(p.list, s)
		}
	}
}

// sameKey says whether two lines are for the same device, or for none.
func sameKey(a, b string) bool {
	a, _, _ = strings.Cut(a, " ")
	b, _, _ = strings.Cut(b, " ")
	return a == b || !strings.Contains(a, ":") || !strings.Contains(b, ":")
}

// unifiedFile refuses what is no limit of this group.
func (p *planner) unifiedFile(name string) error {
	controller, rest, ok := strings.Cut(name, ".")
	switch {
	case p.g.host.Unified == "":
		return errors.New("the machine has no cgroup v2")
	case !ok || controller == "" || rest == "" || strings.Contains(name, "/"):
		return errors.New("a file has the name <controller>.<limit>")
	case controller == "cgroup" && !slices.Contains([]string{"max.depth", "max.descendants", "pressure"}, rest):
		return errors.New("it is no limit")
	case controller == "cgroup" || slices.Contains(p.g.host.Controllers, controller) || exists(p.g.UnifiedDir(), name):
		return nil
	case p.g.host.V1[v1Name(controller)] != "":
		return fmt.Errorf("controller %s is mounted as cgroup v1 here", controller)
	}
	return fmt.Errorf("the machine has no cgroup controller %s", controller)
}
