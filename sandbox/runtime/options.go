package runtime

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions are the options of one mount of the spec, sorted by who takes them.
type mountOptions struct {
	set       uint64      // MOUNT_ATTR_* of this mount
	recursive uint64      // MOUNT_ATTR_* of it and all below ("rro")
	bind      bool        // "bind" or "rbind"
	tree      bool        // "rbind"
	data      [][2]string // of the file system; the value may be empty
	idmap     *bool       // "idmap" forces, "noidmap" forbids
}

func attributes() map[string]uint64 {
	return map[string]uint64{
		"ro": unix.MOUNT_ATTR_RDONLY, "nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV,
		"noexec": unix.MOUNT_ATTR_NOEXEC, "noatime": unix.MOUNT_ATTR_NOATIME, "strictatime": unix.MOUNT_ATTR_STRICTATIME,
		"nodiratime": unix.MOUNT_ATTR_NODIRATIME, "nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
	}
}

// parseOptions reads options in mount(8)'s words. Propagation is always private:
// nothing that a container mounts may appear elsewhere.
func parseOptions(options []string) mountOptions {
	o := mountOptions{}
	attrs := attributes()
	yes, no := true, false
	for _, s := range options {
		switch s {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.tree = true, true
		case "rro":
			o.recursive |= unix.MOUNT_ATTR_RDONLY
		case "idmap", "ridmap":
			o.idmap = &yes
		case "noidmap":
			o.idmap = &no
		case "", "rw", "suid", "dev", "exec", "relatime", "atime", "diratime", "private", "rprivate", "slave", "rslave", "shared", "rshared", "defaults":
		default:
			if a, ok := attrs[s]; ok {
				o.set |= a
				continue
			}
			k, v, _ := strings.Cut(s, "=")
			o.data = append(o.data, [2]string{k, v})
		}
	}
	return o
}
