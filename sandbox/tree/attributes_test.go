package tree

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/xattr"
)

// acl is a list of linux/posix_acl_xattr.h: the owner, one named user, the group, the
// mask and others.
func acl(user uint32) string {
	const none = 1<<32 - 1
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, none}, {0x02, 7, user}, {0x04, 4, none}, {0x10, 7, none}, {0x20, 4, none}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// capability is CAP_NET_BIND_SERVICE, permitted and effective; a root of 0 makes it version 2.
func capability(root uint32) string {
	b := make([]byte, capSize2)
	b[0], b[capVersion], b[5] = 1, 2, 4
	return withRoot(string(b), root)
}

// setAttributes skips the test where the file system has none.
func setAttributes(t *testing.T, path string, attrs map[string]string) {
	t.Helper()
	for name, value := range attrs {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); errors.Is(err, unix.ENOTSUP) {
			t.Skipf("the file system of %s does not know %s", path, name)
		} else if err != nil {
			t.Fatalf("%s of %s: %v", name, path, err)
		}
	}
}

// describe is everything about a tree that a copy keeps.
func describe(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s %o %d:%d", name, st.Mode, st.Uid, st.Gid)
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			fmt.Fprintf(&b, " -> %s\n", to)
			return err
		case d.Type()&fs.ModeNamedPipe != 0:
			b.WriteString("\n")
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close() // read only
		attrs, err := xattr.Read(int(f.Fd()), xattr.Portable)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, " %d %q", st.Mtim.Nano(), fmt.Sprint(attrs))
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " links %d size %d %x", st.Nlink, len(data), sha256.Sum256(data))
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// fullTree makes a directory with all that a copy keeps.
func fullTree(t *testing.T, base uint32) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("owners and capabilities need root")
	}
	dir := t.TempDir() + "/d"
	write(t, dir+"/prog", "#!")
	write(t, dir+"/sub/deep", "deep")
	sparse, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{1 << 20, 5 << 20, 5<<20 + 12345} {
		if _, err := sparse.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	id := int(base)
	if err := errors.Join(sparse.Truncate(8<<20), sparse.Close(), os.Link(dir+"/prog", dir+"/second"), os.Symlink("/etc/passwd", dir+"/out"),
		os.Symlink("second", dir+"/"+strings.Repeat("long", 50)), unix.Mkfifo(dir+"/sub/fifo", 0o620), os.Chmod(dir+"/sub", 0o2750),
		os.WriteFile(dir+"/gone", nil, 0o600), os.Truncate(dir+"/gone", 2<<20)); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, id+7, id+8))
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/prog", 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	setAttributes(t, dir+"/prog", map[string]string{"user.note": "a\x00b", "user.with=sign%": "1", "user.empty": "", xattr.Capability: capability(base)})
	setAttributes(t, dir+"/sub", map[string]string{"user.note": "of a directory", xattr.AccessACL: acl(base + 1000), xattr.DefaultACL: acl(base + 1001)})
	setAttributes(t, dir+"/sub/deep", map[string]string{xattr.AccessACL: acl(base + 5)})
	setAttributes(t, dir+"/sparse", map[string]string{"user.note": "of a file with holes"})
	setAttributes(t, dir, map[string]string{"user.root": "yes", xattr.DefaultACL: acl(base + 3)})
	old := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	for _, name := range []string{"/prog", "/sparse", "/sub", ""} {
		if err := os.Chtimes(dir+name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestCopyKeepsEverything copies within a range of ids, to another one and back.
func TestCopyKeepsEverything(t *testing.T) {
	const first, second = 100_000, 300_000
	dir, away, back := fullTree(t, first), t.TempDir(), t.TempDir()
	here, there := IDs{first, 65536}, IDs{second, 65536}
	archive := UnpackOptions{Archive: true, Root: true}
	ctx := t.Context()
	if err := openTree(t, dir, here).CopyTo(ctx, "/", PackOptions{As: "."}, Place{openTree(t, away, there), "/", archive}); err != nil {
		t.Fatal(err)
	}
	if n := blocks(t, away+"/sparse"); n > 1<<20 {
		t.Errorf("the holes were filled: it takes %d bytes", n)
	}
	want := describe(t, dir)
	moved := describe(t, away)
	for _, text := range []string{"100007:100008", "a0\\x86\\x01"} {
		if strings.Contains(moved, text) {
			t.Errorf("%q is still in\n%s", text, moved)
		}
	}
	if err := openTree(t, away, there).CopyTo(ctx, "/", PackOptions{As: "."}, Place{openTree(t, back, here), "/", archive}); err != nil {
		t.Fatal(err)
	}
	if got := describe(t, back); got != want {
		t.Errorf("after a copy there and back:\n%s\nbefore:\n%s", got, want)
	}
	// As it looks from inside: the root of the tree is id 0, and its capabilities are of version 2.
	f, err := os.Open(away + "/prog")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	attrs, err := there.attributesInside(int(f.Fd()))
	if err != nil || attrs[xattr.Capability] != capability(0) {
		t.Errorf("capability inside: %q, %v", attrs[xattr.Capability], err)
	}
	attrs, err = IDs{second + 1, 10}.attributesInside(int(f.Fd()))
	if _, ok := attrs[xattr.Capability]; ok || err != nil {
		t.Errorf("a capability of another root is seen: %q, %v", attrs, err)
	}
}

func TestCopyWithoutArchiveLeavesAttributesOut(t *testing.T) {
	dir, to := fullTree(t, 0), t.TempDir()
	if err := openTree(t, dir, IDs{}).CopyTo(t.Context(), "prog", PackOptions{As: "prog"}, Place{openTree(t, to, IDs{}), "/", UnpackOptions{}}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(to + "/prog")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	attrs, err := xattr.Read(int(f.Fd()), xattr.Portable)
	if info, e := f.Stat(); err != nil || e != nil || len(attrs) > 0 || info.Mode()&fs.ModeSetuid != 0 {
		t.Errorf("%v, %q, %v, %v", info.Mode(), attrs, err, e)
	}
}

// TestOtherProgramsReadSparse lets GNU tar unpack what Pack writes, and Unpack what
// GNU tar writes, in each of its sparse formats.
func TestOtherProgramsReadSparse(t *testing.T) {
	gnu, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("needs GNU tar")
	}
	if out, err := exec.Command(gnu, "--version").Output(); err != nil || !bytes.Contains(out, []byte("GNU tar")) {
		t.Skip("tar is not GNU tar")
	}
	dir := fullTree(t, 0)
	want := describe(t, dir)
	packed, to := filepath.Join(t.TempDir(), "t.tar"), t.TempDir()
	f, err := os.Create(packed)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(openTree(t, dir, IDs{}).Pack(t.Context(), f, "/", PackOptions{As: ".", Sparse: true}), f.Close()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(packed); err != nil || info.Size() > 1<<20 {
		t.Errorf("the tar has %d bytes: holes were written, %v", info.Size(), err)
	}
	if out, err := exec.Command(gnu, "-xpf", packed, "-C", to, "--xattrs", "--xattrs-include=*", "--numeric-owner", "--delay-directory-restore").CombinedOutput(); err != nil {
		t.Fatalf("tar -x: %v\n%s", err, out)
	}
	if got := describe(t, to); got != want {
		t.Errorf("unpacked by tar:\n%s\nwant:\n%s", got, want)
	}
	for _, format := range [][]string{{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		out, err := exec.Command(gnu, append(format, "-cSf", "-", "-C", dir, "sparse", "gone")...).Output()
		if err != nil {
			t.Fatal(err)
		}
		to := t.TempDir()
		if err := openTree(t, to, IDs{}).Unpack(t.Context(), bytes.NewReader(out), "/", UnpackOptions{Archive: true}); err != nil {
			t.Errorf("%v: %v", format, err)
			continue
		}
		data, err := os.ReadFile(to + "/sparse")
		if err != nil || len(data) != 8<<20 || string(data[1<<20:1<<20+4]) != "data" || blocks(t, to+"/sparse") > 1<<20 {
			t.Errorf("%v: %d bytes, %v", format, len(data), err)
		}
	}
}

// TestCompressed unpacks compressed tars; what is cut off or damaged behind the end of the
// tar is noticed, too.
func TestCompressed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners need root")
	}
	var plain, packed bytes.Buffer
	from := t.TempDir()
	write(t, from+"/file", "content")
	z := gzip.NewWriter(&packed)
	err := openTree(t, from, IDs{}).Pack(t.Context(), &plain, "/", PackOptions{})
	if err == nil {
		_, err = z.Write(append(plain.Bytes(), make([]byte, 8192)...)) // tar(1) fills up to 10 KiB
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	in := bytes.NewReader(packed.Bytes())
	if err := openTree(t, to, IDs{}).Unpack(t.Context(), in, "", UnpackOptions{}); err != nil || in.Len() > 0 {
		t.Errorf("%v, %d bytes were not read", err, in.Len())
	}
	if data, err := os.ReadFile(to + "/file"); string(data) != "content" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	damaged := bytes.Clone(packed.Bytes())
	damaged[len(damaged)-8] ^= 1 // its CRC32
	for _, data := range [][]byte{damaged, packed.Bytes()[:packed.Len()-8]} {
		if err := openTree(t, t.TempDir(), IDs{}).Unpack(t.Context(), bytes.NewReader(data), "", UnpackOptions{}); err == nil {
			t.Error("a damaged stream was taken")
		}
	}
}

// TestDirectoriesTwice unpacks a tar whose directories come after what is in them, and
// again with another owner.
func TestDirectoriesTwice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners need root")
	}
	to := t.TempDir()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "a/b/file", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: "a/b/", Typeflag: tar.TypeDir, Mode: 0o711, Uid: 5},
		{Name: "a/b", Typeflag: tar.TypeDir, Mode: 0o710, Uid: 6, ModTime: time.Unix(1000, 0)},
		{Name: "a/b/later", Typeflag: tar.TypeReg, Mode: 0o600},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), openTree(t, to, IDs{}).Unpack(t.Context(), &b, "", UnpackOptions{})); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(to+"/a/b", &st); err != nil || st.Uid != 6 || st.Mode&0o7777 != 0o710 || st.Mtim.Sec != 1000 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestAttributesRefused(t *testing.T) {
	ids := IDs{1000, 100}
	for _, attrs := range []map[string]string{
		{xattr.AccessACL: acl(100)}, {xattr.DefaultACL: acl(1<<32 - 2)}, {xattr.Capability: capability(100)},
	} {
		if got, err := ids.attributesOutside(xattr.ToRecords(attrs)); err == nil || !strings.Contains(err.Error(), "is outside 0..99") {
			t.Errorf("%q became %q, %v", attrs, got, err)
		}
	}
	foreign := map[string]string{"security.selinux": "x", "trusted.overlay.opaque": "y", "system.other": "z"}
	if got, err := ids.attributesOutside(xattr.ToRecords(foreign)); err != nil || len(got) > 0 {
		t.Errorf("foreign attributes came through: %q, %v", got, err)
	}
	odd := map[string]string{"user.a=b%3D": "v"}
	if got := xattr.FromRecords(xattr.ToRecords(odd), xattr.Portable); !maps.Equal(got, odd) {
		t.Errorf("%q became %q", odd, got)
	}
}
