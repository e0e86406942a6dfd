package sandbox

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// checkOptions refuses options that mean nothing for the kind of mount, or that
// the runtime would hand to the file system unseen.
func (m *Mount) checkOptions() error {
	kinds := []string{"", "private", "rprivate", "shared", "rshared", "slave", "rslave"}
	if !slices.Contains(kinds, m.Propagation) || m.Propagation != "" && (m.Volume || m.Tmpfs) {
		return fmt.Errorf("mount %s: propagation %q is not supported: a bind may have %s", m, m.Propagation, strings.Join(kinds[1:], ", "))
	}
	known := []string{"noexec", "exec"}
	if m.Tmpfs {
		known = append(known, "nosuid", "suid", "nodev", "dev", "noatime", "ro", "rw", "rprivate", "private")
		if m.Source != "" || m.Volume {
			return fmt.Errorf("mount %s: a tmpfs has no source", m)
		}
	}
	for _, o := range m.Options {
		key, value, isSet := strings.Cut(o, "=")
		if m.Tmpfs && isSet && value != "" && slices.Contains([]string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"}, key) {
			continue
		}
		if !slices.Contains(known, o) {
			return fmt.Errorf("mount %s: option %q is not supported", m, o)
		}
	}
	return nil
}

// tmpfs is the mount of a spec. As in Docker, everybody may write into it, and
// nothing in it is executed unless that was asked for.
func (m *Mount) tmpfs() specs.Mount {
	options := []string{"mode=1777", "noexec", "nosuid", "nodev"}
	has := func(o string) bool { return slices.Contains(m.Options, o) }
	options = slices.DeleteFunc(options, func(o string) bool {
		key, _, isSet := strings.Cut(o, "=")
		replaced := slices.ContainsFunc(m.Options, func(given string) bool { return isSet && strings.HasPrefix(given, key+"=") })
		return replaced || has(strings.TrimPrefix(o, "no"))
	})
	for _, o := range m.Options {
		if !slices.Contains(options, o) {
			options = append(options, o)
		}
	}
	if m.ReadOnly && !has("ro") {
		options = append(options, "ro")
	}
	return specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: m.Target, Options: options}
}
