// Package layertest makes layer tars for tests and says what is in unpacked
// trees. It imports testing, so only tests may import it.
package layertest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is one header of a tar.
type Entry = tar.Header

// Dir is a directory.
func Dir(name string, mode int64) Entry {
	return Entry{Typeflag: tar.TypeDir, Name: name, Mode: mode}
}

// Link is a hard link.
func Link(name, target string) Entry {
	return Entry{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}

// File is a file with its name as content; a whiteout is empty, as it must be.
func File(name string) Entry {
	h := Entry{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(name))}
	if strings.HasPrefix(filepath.Base(name), ".wh.") {
		h.Size = 0
	}
	return h
}

// Xattrs gives the PAX records of attributes, listed as name, value, name, value.
func Xattrs(pairs ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m["SCHILY.xattr."+pairs[i]] = pairs[i+1]
	}
	return m
}

// Tar writes entries to a tar. Their time is 2020-09-13 unless they have one:
// not now, so that it shows.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg && h.Size == int64(len(h.Name)) {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// NeedRoot skips the test, with the reason, where layers cannot be unpacked.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers hold owners, devices and trusted.* attributes")
	}
}

// Describe gives one line for each file of a tree, sorted, with everything
// that a layer keeps of it.
func Describe(t testing.TB, tree string) string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		line, err := describe(path, rel, first)
		lines = append(lines, line+Attributes(t, path))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func describe(path, rel string, first map[uint64]string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	line := fmt.Sprintf("%s mode=%o owner=%d:%d", rel, st.Mode, st.Uid, st.Gid)
	whiteout := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
	if !whiteout && rel != "." { // neither has a time in a layer
		line += fmt.Sprintf(" mtime=%d", st.Mtim.Sec)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" %q", data)
		if name, ok := first[st.Ino]; ok {
			line += " = " + name
		}
		first[st.Ino] = rel
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		line += " -> " + target
	case unix.S_IFCHR, unix.S_IFBLK:
		line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	return line, nil
}

// Attributes gives the extended attributes of a file as ` name="value"`, sorted.
func Attributes(t testing.TB, path string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for name := range strings.SplitSeq(strings.Trim(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 256)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf(" %s=%q", name, value[:n]))
	}
	sort.Strings(out)
	return strings.Join(out, "")
}
