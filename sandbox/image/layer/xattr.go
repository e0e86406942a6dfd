package layer

import (
	"naru/sandbox/internal/xattr"
)

// layerXattrs gives the attributes of an open file that belong into a layer.
// Empty ones are left out: a PAX record without a value deletes (pax(1)).
func layerXattrs(fd int) (map[string]string, error) {
	attrs, err := xattr.Read(fd, keepXattr)
	for name, value := range attrs {
		if name == xattr.Capability {
			attrs[name] = withoutRootID(value)
		}
		if value == "" {
			delete(attrs, name)
		}
	}
	return attrs, err
}

// withoutRootID turns a version 3 file capability, which is bound to the user
// namespace it was set in, into the version 2 one that works in any container
// (capabilities(7), "File capability extended attribute versioning").
func withoutRootID(value string) string {
	const v3Size, v2, v3 = 24, 2, 3
	if len(value) != v3Size || value[3] != v3 {
		return value
	}
	return value[:3] + string(rune(v2)) + value[4:20]
}
