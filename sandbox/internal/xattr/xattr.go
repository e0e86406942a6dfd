// Package xattr reads the extended attributes of files that belong to the files
// wherever they go, and says how a tar carries them.
//
// Those are what users set (user.*), file capabilities and access lists. Labels of
// the host's security module, and the trusted.* of its overlays, stay where they are.
// A tar has them as PAX records SCHILY.xattr.NAME, as star, GNU tar and every image
// builder write them.
package xattr

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The attributes of the kernel's own that belong to a file (capabilities(7), acl(5)).
const (
	Capability = "security.capability"
	AccessACL  = "system.posix_acl_access"
	DefaultACL = "system.posix_acl_default" // what a directory gives to its new entries
)

// Portable says whether an attribute belongs to a file wherever it goes.
func Portable(name string) bool {
	switch name {
	case Capability, AccessACL, DefaultACL:
		return true
	}
	return strings.HasPrefix(name, "user.")
}

// List gives the names of all attributes of an open file, sorted; none where the
// file system knows no attributes.
func List(fd int) ([]string, error) {
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
		case n == 0:
			return nil, nil
		}
		names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		slices.Sort(names)
		return names, nil
	}
}

// Get reads one attribute of an open file; unix.ENODATA if it has none.
func Get(fd int, name string) (string, error) {
	buf := make([]byte, 256)
	n, err := unix.Fgetxattr(fd, name, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err = unix.Fgetxattr(fd, name, buf)
	}
	if err != nil {
		return "", fmt.Errorf("read attribute %s: %w", name, err)
	}
	return string(buf[:n]), nil
}

// Read gives the attributes of an open file whose names keep accepts.
func Read(fd int, keep func(name string) bool) (map[string]string, error) {
	names, err := List(fd)
	if err != nil {
		return nil, err
	}
	attrs := map[string]string{}
	for _, name := range names {
		if !keep(name) {
			continue
		}
		value, err := Get(fd, name)
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
			continue // gone since the list was made, or listed by a file system that has it not
		}
		if err != nil {
			return nil, err
		}
		attrs[name] = value
	}
	return attrs, nil
}

// Set gives an open file attributes, in the order of their names.
func Set(fd int, attrs map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		if err := unix.Fsetxattr(fd, name, []byte(attrs[name]), 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

const recordPrefix = "SCHILY.xattr."

// ToRecords are the PAX records of attributes; nil for none. A key cannot hold "=":
// it is written as GNU tar writes it.
func ToRecords(attrs map[string]string) map[string]string {
	if len(attrs) == 0 {
		return nil
	}
	escape := strings.NewReplacer("%", "%25", "=", "%3D")
	records := make(map[string]string, len(attrs))
	for name, value := range attrs {
		records[recordPrefix+escape.Replace(name)] = value
	}
	return records
}

// FromRecords are the attributes among PAX records whose names keep accepts.
func FromRecords(records map[string]string, keep func(name string) bool) map[string]string {
	if len(records) == 0 {
		return nil
	}
	unescape := strings.NewReplacer("%25", "%", "%3D", "=")
	attrs := map[string]string{}
	for key, value := range records {
		name, ok := strings.CutPrefix(key, recordPrefix)
		if name = unescape.Replace(name); ok && keep(name) {
			attrs[name] = value
		}
	}
	return attrs
}
