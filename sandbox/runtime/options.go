package runtime

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountOptions are the options of one mount of the spec, sorted by who takes them.
type mountOptions struct {
	set, clear       uint64      // MOUNT_ATTR_* of this mount
	setAll, clearAll uint64      // MOUNT_ATTR_* of it and all below ("rro")
	bind             bool        // "bind" or "rbind"
	tree             bool        // "rbind"
	propagation      uint64      // MS_SHARED and its kin; 0 is private
	spread           bool        // the propagation of all below too ("rshared")
	data             [][2]string // of the file system; the value may be empty
	idmap            *bool       // "idmap" and "ridmap" force, "noidmap" forbids
	idmapAll         bool        // "ridmap"
	source           string      // as the mount table shows it; the type, where empty
	copyUp           bool        // "tmpcopyup": begin with what the image has there
}

// attribute is what one option does to a mount: bits to set, bits to clear.
type attribute struct{ set, clear uint64 }

// attributes are the options that belong to a mount, mount_setattr(2). With "r"
// before them they reach everything below too.
func attributes() map[string]attribute {
	bit := func(b uint64) attribute { return attribute{set: b} }
	not := func(b uint64) attribute { return attribute{clear: b} }
	atime := func(b uint64) attribute { return attribute{set: b, clear: unix.MOUNT_ATTR__ATIME} }
	return map[string]attribute{
		"ro": bit(unix.MOUNT_ATTR_RDONLY), "rw": not(unix.MOUNT_ATTR_RDONLY),
		"nosuid": bit(unix.MOUNT_ATTR_NOSUID), "suid": not(unix.MOUNT_ATTR_NOSUID),
		"nodev": bit(unix.MOUNT_ATTR_NODEV), "dev": not(unix.MOUNT_ATTR_NODEV),
		"noexec": bit(unix.MOUNT_ATTR_NOEXEC), "exec": not(unix.MOUNT_ATTR_NOEXEC),
		"nodiratime": bit(unix.MOUNT_ATTR_NODIRATIME), "diratime": not(unix.MOUNT_ATTR_NODIRATIME),
		"nosymfollow": bit(unix.MOUNT_ATTR_NOSYMFOLLOW), "symfollow": not(unix.MOUNT_ATTR_NOSYMFOLLOW),
		"noatime": atime(unix.MOUNT_ATTR_NOATIME), "strictatime": atime(unix.MOUNT_ATTR_STRICTATIME),
		"relatime": atime(unix.MOUNT_ATTR_RELATIME), "atime": atime(unix.MOUNT_ATTR_RELATIME),
		"norelatime": atime(unix.MOUNT_ATTR_STRICTATIME), "nostrictatime": atime(unix.MOUNT_ATTR_RELATIME),
	}
}

func propagations() map[string]uint64 {
	return map[string]uint64{"private": unix.MS_PRIVATE, "shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "unbindable": unix.MS_UNBINDABLE}
}

// superblock are options of a file system that mount(8) knows as flags; the kernel
// takes them by these names (fsconfig(2)). Those with an empty name are its default.
func superblock() map[string]string {
	return map[string]string{
		"sync": "sync", "dirsync": "dirsync", "mand": "mand", "lazytime": "lazytime", "iversion": "iversion",
		"async": "", "nomand": "", "nolazytime": "", "noiversion": "", "silent": "", "loud": "", "defaults": "", "": "",
	}
}

// MountOptions lists every option that is not a file system's own.
func MountOptions() []string {
	all := []string{"bind", "rbind", "idmap", "ridmap", "noidmap", "tmpcopyup"}
	for name := range attributes() {
		all = append(all, name, "r"+name)
	}
	for name := range propagations() {
		all = append(all, name, "r"+name)
	}
	for name := range superblock() {
		if name != "" {
			all = append(all, name)
		}
	}
	return all
}

// parseOptions reads options in mount(8)'s words. A mount that names no propagation
// is private: nothing that a container mounts may appear elsewhere.
func parseOptions(options []string) mountOptions {
	o := mountOptions{}
	attrs, kinds, flags := attributes(), propagations(), superblock()
	for _, s := range options {
		short := strings.TrimPrefix(s, "r")
		if a, ok := attrs[s]; ok {
			o.set, o.clear = o.set&^a.clear|a.set, o.clear&^a.set|a.clear
		} else if a, ok := attrs[short]; ok && short != s {
			o.setAll, o.clearAll = o.setAll&^a.clear|a.set, o.clearAll&^a.set|a.clear
		} else if k, ok := kinds[s]; ok {
			o.propagation, o.spread = k, false
		} else if k, ok := kinds[short]; ok {
			o.propagation, o.spread = k, true
		} else if name, ok := flags[s]; ok {
			if name != "" {
				o.data = append(o.data, [2]string{name, ""})
			}
		} else {
			o.other(s)
		}
	}
	return o
}

func (o *mountOptions) other(s string) {
	yes, no := true, false
	switch s {
	case "bind":
		o.bind = true
	case "rbind":
		o.bind, o.tree = true, true
	case "idmap":
		o.idmap = &yes
	case "ridmap":
		o.idmap, o.idmapAll = &yes, true
	case "noidmap":
		o.idmap = &no
	case "tmpcopyup":
		o.copyUp = true
	default:
		k, v, _ := strings.Cut(s, "=")
		o.data = append(o.data, [2]string{k, v})
	}
}

// change is the attribute change of the mount itself; atime is a field of its own
// that must be cleared to be set, mount_setattr(2).
func (o mountOptions) change() *unix.MountAttr {
	kind := o.propagation
	if kind == 0 {
		kind = unix.MS_PRIVATE
	}
	return &unix.MountAttr{Attr_set: o.set, Attr_clr: clearable(o.set, o.clear), Propagation: kind}
}

// changeAll is the change of it and of all below; ok is false where there is none.
func (o mountOptions) changeAll() (*unix.MountAttr, bool) {
	a := &unix.MountAttr{Attr_set: o.setAll, Attr_clr: clearable(o.setAll, o.clearAll)}
	if o.tree {
		a.Attr_set |= o.set & (unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
		if o.propagation == 0 || o.spread {
			a.Propagation = o.change().Propagation
		}
	}
	return a, a.Attr_set|a.Attr_clr|a.Propagation != 0
}

func clearable(set, clear uint64) uint64 {
	if (set|clear)&unix.MOUNT_ATTR__ATIME != 0 {
		clear |= unix.MOUNT_ATTR__ATIME
	}
	return clear
}
