package runtime

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// idMap translates container ids to host ids.
type idMap struct{ uids, gids []specs.LinuxIDMapping }

func mapOf(spec *specs.Spec) idMap {
	if spec.Linux == nil || !hasNamespace(spec, specs.UserNamespace) {
		return idMap{}
	}
	return idMap{spec.Linux.UIDMappings, spec.Linux.GIDMappings}
}

func (m idMap) mapped() bool { return len(m.uids) > 0 }

func (m idMap) uid(id uint32) int { return translate(m.uids, id) }
func (m idMap) gid(id uint32) int { return translate(m.gids, id) }

// unmapped is the kernel's overflow id: what a host id without mapping looks like.
const unmapped = 65534

func translate(maps []specs.LinuxIDMapping, id uint32) int {
	if len(maps) == 0 {
		return int(id)
	}
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return int(m.HostID + id - m.ContainerID)
		}
	}
	return unmapped
}

// mapText is the content of /proc/<pid>/uid_map, user_namespaces(7).
func mapText(maps []specs.LinuxIDMapping) string {
	var b strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return b.String()
}

// mountMapText is the same with one more id, beyond the container's, for host
// root: overlayfs makes its scratch files as host root, whose id must have a
// place on the id-mapped layers. No process in the container can have or give it.
func mountMapText(maps []specs.LinuxIDMapping) string {
	end := uint32(0)
	for _, m := range maps {
		if m.HostID == 0 {
			return mapText(maps) // host root is inside already
		}
		end = max(end, m.ContainerID+m.Size)
	}
	return mapText(append(maps[:len(maps):len(maps)], specs.LinuxIDMapping{ContainerID: end, HostID: 0, Size: 1}))
}

func hasNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) bool {
	for _, n := range spec.Linux.Namespaces {
		if n.Type == kind {
			return true
		}
	}
	return false
}
