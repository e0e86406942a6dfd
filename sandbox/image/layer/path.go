package layer

import (
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/openat"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // .wh..wh.plnk and others: AUFS's own files, of no meaning to anyone else
)

// clean turns the name of a tar entry into a path relative to the root without
// empty components, "." being the root. An absolute name means the same
// relative to the root (tar(1) and every builder agree); ".." is refused since
// no builder writes it.
func clean(name string, maxDepth int) (string, error) {
	if len(name) > unix.PathMax-1 {
		return "", refuse("a name of %d bytes", len(name))
	}
	parts := make([]string, 0, 8)
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return "", refuse("%q leaves the layer", name)
		case len(part) > unix.NAME_MAX:
			return "", refuse("a component of %d bytes", len(part))
		case strings.IndexByte(part, 0) >= 0:
			return "", refuse("%q contains a zero byte", name)
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) > maxDepth {
		return "", refuse("a path of %d components", len(parts))
	}
	if len(parts) == 0 {
		return ".", nil
	}
	return strings.Join(parts, "/"), nil
}

func split(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return ".", path
}

// openIn opens path below root; every symbolic link on the way, absolute or
// with "..", is resolved as if root were "/" (openat2(2), RESOLVE_IN_ROOT), and
// links of /proc are refused. Add O_NOFOLLOW for the last component.
func openIn(root int, path string, flags uint64) (int, error) {
	return openat.Open(root, path, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
}
