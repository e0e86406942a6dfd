package layer

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

type xattr struct{ name, value string }

// listXattrs gives the names of all extended attributes of an open file, sorted.
func listXattrs(fd int) ([]string, error) {
	buf := make([]byte, 1024)
	for {
		n, err := unix.Flistxattr(fd, buf)
		switch {
		case errors.Is(err, unix.ERANGE):
			buf = make([]byte, 4*len(buf)) // the kernel ends this at 64 KiB with E2BIG
			continue
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("list attributes: %w", err)
		}
		names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		if n == 0 {
			return nil, nil
		}
		slices.Sort(names)
		return names, nil
	}
}

// getXattr reads one attribute; "" if there is none, or it cannot be read.
func getXattr(fd int, name string) string {
	buf := make([]byte, 256)
	n, err := unix.Fgetxattr(fd, name, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = unix.Fgetxattr(fd, name, buf)
	}
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// layerXattrs gives the attributes of an open file that belong into a layer.
// Empty ones are left out: a PAX record without a value deletes (pax(1)).
func layerXattrs(fd int) ([]xattr, error) {
	names, err := listXattrs(fd)
	if err != nil {
		return nil, err
	}
	var attrs []xattr
	for _, name := range names {
		if !keepXattr(name) {
			continue
		}
		value := getXattr(fd, name)
		if name == capabilityAttr {
			value = withoutRootID(value)
		}
		if value != "" {
			attrs = append(attrs, xattr{name, value})
		}
	}
	return attrs, nil
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
