package tree

import (
	"encoding/binary"
	"fmt"

	"naru/sandbox/internal/xattr"
)

// Two kinds of attributes hold ids, which are translated as owners are.

// attributesInside are the portable attributes of an open file, with the ids of the
// tree's own view.
func (i IDs) attributesInside(fd int) (map[string]string, error) {
	attrs, err := xattr.Read(fd, xattr.Portable)
	if err != nil {
		return nil, err
	}
	if value, ok := attrs[xattr.Capability]; ok {
		root := rootOf(value)
		if inside := i.inside(root); inside == nobody && root != nobody {
			delete(attrs, xattr.Capability) // of another container's root: it means nothing in this one
		} else {
			attrs[xattr.Capability] = withRoot(value, uint32(inside))
		}
	}
	return attrs, i.lists(attrs, func(id uint32) (uint32, error) { return uint32(i.inside(id)), nil })
}

// attributesOutside are those of PAX records, with the ids of this side.
func (i IDs) attributesOutside(records map[string]string) (map[string]string, error) {
	attrs := xattr.FromRecords(records, xattr.Portable)
	outside := func(id uint32) (uint32, error) {
		out, err := i.outside(int(id))
		return uint32(out), err
	}
	if value, ok := attrs[xattr.Capability]; ok {
		root, err := outside(rootOf(value))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", xattr.Capability, err)
		}
		attrs[xattr.Capability] = withRoot(value, root)
	}
	return attrs, i.lists(attrs, outside)
}

// lists translates the ids of access lists.
func (i IDs) lists(attrs map[string]string, translate func(uint32) (uint32, error)) error {
	if i.Count == 0 {
		return nil
	}
	for _, name := range []string{xattr.AccessACL, xattr.DefaultACL} {
		value, ok := attrs[name]
		if !ok {
			continue
		}
		list, err := translateACL([]byte(value), translate)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		attrs[name] = string(list)
	}
	return nil
}

// translateACL goes through a struct posix_acl_xattr_header, 4 bytes, and its entries
// of 8 bytes: tag, permissions, id (linux/posix_acl_xattr.h). A list that is none
// is left to the kernel, which refuses it.
func translateACL(list []byte, translate func(uint32) (uint32, error)) ([]byte, error) {
	const header, entry, user, group = 4, 8, 0x02, 0x08
	for at := header; at+entry <= len(list); at += entry {
		if tag := binary.LittleEndian.Uint16(list[at:]); tag != user && tag != group {
			continue // of the file's own owner or group, or of others: no id
		}
		id, err := translate(binary.LittleEndian.Uint32(list[at+4:]))
		if err != nil {
			return nil, err
		}
		binary.LittleEndian.PutUint32(list[at+4:], id)
	}
	return list, nil
}

// A file capability of version 3 is that of version 2 and the id of the root user for
// whose namespaces it counts; version 2 is the machine's root's (capabilities(7), "File
// capability extended attribute versioning").
const (
	capSize2, capSize3 = 20, 24
	capVersion         = 3 // the index of its byte
)

// rootOf is the root user of a file capability.
func rootOf(value string) uint32 {
	if len(value) != capSize3 || value[capVersion] != 3 {
		return 0
	}
	return binary.LittleEndian.Uint32([]byte(value[capSize2:]))
}

// withRoot gives a file capability another root user.
func withRoot(value string, root uint32) string {
	if len(value) != capSize2 && len(value) != capSize3 {
		return value // the kernel refuses it
	}
	b := []byte(value[:capSize2])
	b[capVersion] = 2
	if root != 0 {
		b[capVersion] = 3
		b = binary.LittleEndian.AppendUint32(b, root)
	}
	return string(b)
}
