package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/image/layer/layertest"
	"naru/sandbox/internal/xattr"
)

// hostile are tars that try to reach something outside the layer. Whether one
// is refused or made harmless is said in want: "" means it unpacks, all of it inside.
var hostile = []struct {
	name    string
	entries []entry
	want    string
}{
	{"a name with ..", []entry{layertest.File("../canary")}, "leaves the layer"},
	{"a name with .. in the middle", []entry{layertest.Dir("a", 0o755), layertest.File("a/../../canary")}, "leaves the layer"},
	{"a name with .. that stays inside", []entry{layertest.Dir("a", 0o755), layertest.File("a/../b")}, "leaves the layer"},
	{"an absolute name", []entry{layertest.File("CANARY")}, ""},
	{"a directory named ..", []entry{layertest.Dir("..", 0o700)}, "leaves the layer"},
	{"the root as a symbolic link", []entry{layertest.Symlink(".", "/etc")}, "root is not a directory"},
	{"the root as a file", []entry{{Typeflag: tar.TypeReg, Name: "."}}, "root is not a directory"},
	{"a symbolic link out, then a write through it", []entry{layertest.Symlink("l", "OUTSIDE"), layertest.File("l/canary")}, "no such file"},
	{"a relative symbolic link out, then a write through it", []entry{layertest.Symlink("l", "../.."), layertest.File("l/canary")}, ""},
	{"a link to /, then a write through it", []entry{layertest.Symlink("l", "/"), layertest.File("lCANARY")}, ""},
	{"a chain of links out", []entry{layertest.Symlink("a", ".."), layertest.Symlink("b", "a/.."), layertest.Symlink("c", "b/.."), layertest.File("c/canary")}, ""},
	{"a write through a link with the file's name", []entry{layertest.Symlink("l", "CANARY"), layertest.File("l")}, ""},
	{"a directory over a link out", []entry{layertest.Symlink("l", "OUTSIDE"), layertest.Dir("l", 0o777), layertest.File("l/canary")}, ""},
	{"a link into /proc", []entry{layertest.Symlink("l", "/proc/self/root"), layertest.File("l/CANARY")}, "no such file"},
	{"a hard link to an absolute name outside", []entry{layertest.Link("l", "CANARY")}, "no such file"},
	{"a hard link with ..", []entry{layertest.Link("l", "../canary")}, "leaves the layer"},
	{"a hard link through a link out", []entry{layertest.Symlink("d", "OUTSIDE"), layertest.Link("l", "d/canary")}, "no such file"},
	{"a hard link to a link out, then a write", []entry{layertest.Symlink("d", "CANARY"), layertest.Link("l", "d"), layertest.File("l")}, ""},
	{"a hard link to a link out, then its mode", []entry{layertest.Symlink("d", "OUTSIDE"), layertest.Link("l", "d"), layertest.Dir("l", 0o777)}, ""},
	{"a hard link to a directory", []entry{layertest.Dir("d", 0o755), layertest.Link("l", "d")}, "which is no file"},
	{"a hard link to a whiteout", []entry{layertest.File(".wh.w"), layertest.Link("l", "w")}, "which is no file"},
	{"a hard link to the root", []entry{layertest.Link("l", "/")}, "which is no file"},
	{"a whiteout of ..", []entry{layertest.File(".wh...")}, "a whiteout of"},
	{"a whiteout of .", []entry{layertest.File(".wh..")}, "a whiteout of"},
	{"a whiteout of nothing", []entry{layertest.File(".wh.")}, "a whiteout of"},
	{"a whiteout through a link out", []entry{layertest.Symlink("l", "OUTSIDE"), layertest.File("l/.wh.canary")}, "no such file"},
	{"an opaque marker through a link out", []entry{layertest.Symlink("l", "../.."), layertest.File("l/.wh..wh..opq")}, ""},
	{"a file below a marker", []entry{layertest.File(".wh.a/b")}, "is below the marker"},
	{"a path through a file", []entry{layertest.File("f"), layertest.File("f/g")}, "not a directory"},
	{"trusted.overlay.redirect", []entry{{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755, PAXRecords: layertest.Xattrs("trusted.overlay.redirect", "OUTSIDE")}}, ""},
	{"trusted.overlay.metacopy", []entry{{Typeflag: tar.TypeReg, Name: "f", PAXRecords: layertest.Xattrs("trusted.overlay.metacopy", "x", "user.overlay.redirect", "/etc")}}, ""},
	{"an unknown type", []entry{{Typeflag: 'Z', Name: "z"}}, "is unknown"},
	{"an owner that means -1", []entry{{Typeflag: tar.TypeDir, Name: "d", Uid: 1<<32 - 1}}, "owner"},
	{"a device number that overflows", []entry{{Typeflag: tar.TypeBlock, Name: "b", Devmajor: 1 << 13}}, "device"},
	{"too deep", []entry{layertest.Dir(strings.Repeat("d/", 300), 0o755)}, "components"},
	{"a hundred thousand directories deep", []entry{layertest.Dir(strings.Repeat("d/", 100_000), 0o755)}, "a name of"},
	{"a hard link to a name that is too deep", []entry{layertest.Link("l", strings.Repeat("d/", 300)+"f")}, "components"},
	{"a symbolic link to nothing", []entry{{Typeflag: tar.TypeSymlink, Name: "l"}}, "a link target of 0 bytes"},
	{"a symbolic link that is too long", []entry{layertest.Symlink("l", strings.Repeat("x", 5000))}, "a link target of 5000 bytes"},
	{"links in a circle, then a write through them", []entry{layertest.Symlink("a", "b"), layertest.Symlink("b", "a"), layertest.File("a/canary")}, "too many levels"},
	{"a whiteout in a link out", []entry{layertest.Symlink("l", "../.."), layertest.File("l/.wh.canary")}, ""},
	{"a directory that becomes a link out between its files", []entry{layertest.Dir("d", 0o755), layertest.File("d/a"), layertest.File(".wh.d"), layertest.Symlink("d", "OUTSIDE"), layertest.File("d/canary")}, "no such file"},
	{"a device named like the canary through a link", []entry{layertest.Symlink("l", "OUTSIDE"), {Typeflag: tar.TypeChar, Name: "l/canary", Devmajor: 1, Devminor: 1}}, "no such file"},
	{"a fifo over a link out", []entry{layertest.Symlink("l", "CANARY"), {Typeflag: tar.TypeFifo, Name: "l", Mode: 0o777, Uid: 7}}, ""},
	{"a disk of the host", []entry{{Typeflag: tar.TypeBlock, Name: "sda", Mode: 0o666, Devmajor: 8}}, ""}, // kept: a container's root is nodev, and its device rules say no
	{"trusted.overlay.opaque and origin", []entry{{Typeflag: tar.TypeDir, Name: "d", PAXRecords: layertest.Xattrs("trusted.overlay.opaque", "y", "trusted.overlay.origin", "x")}}, ""},
	{"not UTF-8", []entry{{Typeflag: tar.TypeReg, Name: "\xff\xfe/\xc3\x28"}, layertest.Symlink("l\xff", "\xff/../../..")}, ""},
	{"the same name ten times", []entry{layertest.File("x"), layertest.Symlink("x", "CANARY"), layertest.File("x"), layertest.Dir("x", 0o700), layertest.File("x/y"), layertest.Symlink("x", "OUTSIDE"), layertest.File("x")}, ""},
	{"a component that is too long", []entry{layertest.File(strings.Repeat("x", 256))}, "component of 256 bytes"},
	{"a name that is too long", []entry{layertest.File(strings.Repeat("x/", 2500) + "x")}, "a name of"},
}

// Each hostile tar runs with a canary beside the layer: it must be as it was,
// and nothing new may be there.
func TestHostileTarsStayInside(t *testing.T) {
	for _, test := range hostile {
		t.Run(test.name, func(t *testing.T) {
			tree := newTree(t)
			outside := filepath.Dir(tree)
			canary := filepath.Join(outside, "canary")
			if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
				t.Fatal(err)
			}
			var entries []entry
			for _, h := range test.entries {
				place := strings.NewReplacer("CANARY", canary, "OUTSIDE", outside).Replace
				h.Name, h.Linkname = place(h.Name), place(h.Linkname)
				if h.Typeflag == tar.TypeReg && h.Size > 0 {
					h.Size = int64(len(h.Name))
				}
				entries = append(entries, h)
			}
			before := layertest.Describe(t, outside)
			_, err := Unpack(context.Background(), tree, bytes.NewReader(layertest.Tar(t, entries...)), Options{})
			switch {
			case test.want == "" && err != nil:
				t.Errorf("unpack: %v; want it inside", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("unpack: %v; want an error with %q", err, test.want)
			}
			if err := os.RemoveAll(tree); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(tree, 0o755); err != nil {
				t.Fatal(err)
			}
			if after := layertest.Describe(t, outside); withoutRootTime(after) != withoutRootTime(before) {
				t.Errorf("the outside changed:\n%s\nwas\n%s", after, before)
			}
		})
	}
}

// withoutRootTime drops the line of fs, whose time this test changes itself.
func withoutRootTime(s string) string {
	var lines []string
	for line := range strings.SplitSeq(s, "\n") {
		if !strings.HasPrefix(line, "fs ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

func TestOverlayAttributesFromOutsideAreDropped(t *testing.T) {
	tree, _ := unpack(t, entry{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755, PAXRecords: layertest.Xattrs(
		"trusted.overlay.opaque", "y", "trusted.overlay.redirect", "/x", "user.overlay.opaque", "y",
		"security.selinux", "label", "trusted.other", "1", "user.keep", "yes")})
	if got, want := layertest.Attributes(t, filepath.Join(tree, "d")), ` user.keep="yes"`; got != want {
		t.Errorf("attributes:%s, want%s", got, want)
	}
}

func TestWhiteoutsBecomeOverlayForm(t *testing.T) {
	tree, r := unpack(t,
		layertest.Dir("kept", 0o755), layertest.File("kept/.wh.gone"), layertest.File("kept/stays"),
		layertest.Dir("new", 0o755), layertest.File("new/.wh..wh..opq"), layertest.File("new/child"),
		layertest.File(".wh.first"), layertest.Dir("first", 0o700), // hidden below, new here
		layertest.File("second"), layertest.File(".wh.second"),
		layertest.Dir("third", 0o755), layertest.File("third/f"), layertest.File(".wh.third"),
		layertest.File(".wh.fourth"), layertest.File("fourth/f"),
		layertest.File(".wh..wh.plnk"),
	)
	for path, want := range map[string]string{
		"kept/gone": "whiteout", "kept/stays": "file", "kept": "dir", "new": "opaque", "new/child": "file",
		"first": "opaque", "second": "file", "third": "opaque", "third/f": "file", "fourth": "opaque", "fourth/f": "file",
		".wh..wh.plnk": "nothing", "new/.wh..wh..opq": "nothing",
	} {
		if got := kind(t, filepath.Join(tree, path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	if r.Opaque || len(r.Implied) > 0 {
		t.Errorf("result %+v, want nothing opaque or implied", r)
	}
}

func kind(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "nothing"
	}
	switch {
	case isWhiteout(&st):
		return "whiteout"
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if strings.Contains(layertest.Attributes(t, path), `trusted.overlay.opaque="y"`) {
			return "opaque"
		}
		return "dir"
	}
	return "file"
}

func TestOpaqueRootIsReported(t *testing.T) {
	if _, r := unpack(t, layertest.File(".wh..wh..opq"), layertest.File("f")); !r.Opaque {
		t.Error("the result does not say that the layer hides all others")
	}
}

func TestMetadataIsKept(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep, version 2
	tree, _ := unpack(t,
		layertest.Dir("./", 0o711),
		entry{Typeflag: tar.TypeReg, Name: "suid", Mode: 0o4755, Uid: 12, Gid: 34},
		entry{Typeflag: tar.TypeReg, Name: "cap", Mode: 0o755, Uid: 1, PAXRecords: layertest.Xattrs("security.capability", capability)},
		entry{Typeflag: tar.TypeDir, Name: "sticky", Mode: 0o1777},
		entry{Typeflag: tar.TypeDir, Name: "sgid", Mode: 0o2775, Gid: 50},
		layertest.File("sgid/child"),
		entry{Typeflag: tar.TypeBlock, Name: "blk", Mode: 0o660, Gid: 6, Devmajor: 8, Devminor: 1},
		entry{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		entry{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o622},
		entry{Typeflag: tar.TypeSymlink, Name: "sym", Linkname: "/etc/passwd", Uid: 7, Gid: 8},
		layertest.Link("hard", "/suid"),
	)
	want := `. mode=40711 owner=0:0
blk mode=60660 owner=0:6 mtime=1600000000 8:1
cap mode=100755 owner=1:0 mtime=1600000000 "" security.capability="` + `\x01\x00\x00\x02\x00\x04` + strings.Repeat(`\x00`, 14) + `"
fifo mode=10622 owner=0:0 mtime=1600000000
hard mode=104755 owner=12:34 mtime=1600000000 ""
null mode=20666 owner=0:0 mtime=1600000000 1:3
sgid mode=42775 owner=0:50 mtime=1600000000
sgid/child mode=100644 owner=0:0 mtime=1600000000 "sgid/child"
sticky mode=41777 owner=0:0 mtime=1600000000
suid mode=104755 owner=12:34 mtime=1600000000 "" = hard
sym mode=120777 owner=7:8 mtime=1600000000 -> /etc/passwd`
	if got := layertest.Describe(t, tree); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestDefaultACLDoesNotReachChildrenOfTheSameTar(t *testing.T) {
	// version 2; user::rwx group::r-x mask and user 1000 rwx, other::r-x
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" +
		"\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
	tree, _ := unpack(t,
		entry{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755, PAXRecords: layertest.Xattrs(xattr.DefaultACL, acl)},
		layertest.Dir("d/sub", 0o700), layertest.File("d/f"))
	if got := layertest.Attributes(t, filepath.Join(tree, "d")); !strings.Contains(got, xattr.DefaultACL) {
		t.Errorf("the directory lost its ACL:%s", got)
	}
	for _, child := range []string{"d/sub", "d/f"} {
		if got := layertest.Attributes(t, filepath.Join(tree, child)); got != "" {
			t.Errorf("%s inherited%s", child, got)
		}
	}
}

func TestLaterEntriesReplaceEarlierOnes(t *testing.T) {
	tree, _ := unpack(t,
		layertest.Dir("a", 0o755), layertest.File("a/f"), layertest.File("a"), // a directory with content by a file
		layertest.File("b"), layertest.Dir("b", 0o755), layertest.File("b/f"), // the reverse
		layertest.File("c"), layertest.Symlink("c", "b"), layertest.File("c/g"), // written where the link leads
		layertest.File("d"), layertest.Link("d", "d"), // a link to itself changes nothing
	)
	for path, want := range map[string]string{"a": "file", "b": "dir", "b/f": "file", "b/g": "file", "d": "file"} {
		if got := kind(t, filepath.Join(tree, path)); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

func TestImpliedDirectoriesTakeTheMetadataBelow(t *testing.T) {
	low, _ := unpack(t, layertest.Dir("tmp", 0o1777), entry{Typeflag: tar.TypeDir, Name: "srv", Mode: 0o750, Uid: 5, Gid: 6})
	mid, _ := unpack(t, layertest.File(".wh.srv"))
	top, r := unpack(t, layertest.File("tmp/x"), layertest.File("srv/x"), layertest.File("opt/deep/x"))
	if got := strings.Join(r.Implied, " "); got != "tmp srv opt opt/deep" {
		t.Fatalf("implied: %s", got)
	}
	if err := AdoptImplied(top, r.Implied, []string{low, mid}); err != nil {
		t.Fatal(err)
	}
	got := layertest.Describe(t, top)
	for _, want := range []string{
		"tmp mode=41777 owner=0:0 mtime=1600000000",
		"srv mode=40755 owner=0:0 mtime=0", // hidden by mid: not what low says
		"opt/deep mode=40755 owner=0:0 mtime=0",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nis not in\n%s", want, got)
		}
	}
}

func TestZerosBecomeHoles(t *testing.T) {
	const size = 8 << 20
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	data := make([]byte, size)
	copy(data[size-4:], "tail")
	if err := w.WriteHeader(&tar.Header{Name: "f", Size: size, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tree := newTree(t)
	if _, err := Unpack(context.Background(), tree, &buf, Options{}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(tree, "f"))
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("content differs (%v)", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(tree, "f"), &st); err != nil || st.Blocks*512 > size/4 {
		t.Errorf("%d bytes on disk (%v)", st.Blocks*512, err)
	}
}

func TestLimits(t *testing.T) {
	many := []entry{layertest.File("a"), layertest.File("b"), layertest.File("c")}
	for name, limits := range map[string]Limits{
		"entries": {Entries: 2, Depth: 9, Bytes: 100},
		"bytes":   {Entries: 9, Depth: 9, Bytes: 2},
	} {
		_, err := Unpack(context.Background(), newTree(t), bytes.NewReader(layertest.Tar(t, many...)), Options{Limits: limits})
		if !errors.Is(err, ErrHostile) {
			t.Errorf("%s: %v, want it refused", name, err)
		}
	}
}

// A few bytes of tar may claim a file of any size.
func TestSparseBombsEnd(t *testing.T) {
	data := layertest.Tar(t, layertest.File("bomb"))[:512]
	copy(data[124:136], "77777777777\x00") // 8 GiB - 1 in the octal size field
	copy(data[148:156], "        ")
	sum := 0
	for _, b := range data {
		sum += int(b)
	}
	copy(data[148:156], fmt.Sprintf("%06o\x00 ", sum))
	count := &Count{R: bytes.NewReader(data)}
	_, err := Unpack(context.Background(), newTree(t), count, Options{Compressed: count})
	if !errors.Is(err, ErrHostile) {
		t.Errorf("a size without data: %v, want it refused", err)
	}
	dir := t.TempDir()
	for name, size := range map[string]int64{"bomb": 1 << 40, "hole": 1 << 30} {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600), os.Truncate(filepath.Join(dir, name), size)); err != nil {
			t.Fatal(err)
		}
		for _, format := range []string{"gnu", "pax"} {
			packed, err := exec.Command("tar", "--create", "--sparse", "--format="+format, "--directory="+dir, name).Output()
			if err != nil {
				t.Skip("needs GNU tar: ", err)
			}
			tree, count := newTree(t), &Count{R: bytes.NewReader(packed)}
			_, err = Unpack(context.Background(), tree, count, Options{Compressed: count})
			if name == "bomb" && !errors.Is(err, ErrHostile) {
				t.Errorf("%s, %s: %v, want it refused", name, format, err)
			}
			var st unix.Stat_t
			if name == "hole" && (err != nil || unix.Stat(filepath.Join(tree, name), &st) != nil || st.Size != size || st.Blocks > 1024) {
				t.Errorf("%s, %s: %v, %d bytes in %d blocks", name, format, err, st.Size, st.Blocks)
			}
		}
	}
}

// A directory may come after what is in it: its own entry counts.
func TestADirectoryAfterItsChildren(t *testing.T) {
	tree, _ := unpack(t, layertest.File("d/f"), layertest.File("e/.wh.x"), layertest.Dir("d", 0o711), layertest.Dir("e", 0o700), layertest.Dir("e", 0o750))
	got := layertest.Describe(t, tree)
	for _, want := range []string{"d mode=40711 owner=0:0 mtime=1600000000", "e mode=40750 owner=0:0 mtime=1600000000"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nis not in\n%s", want, got)
		}
	}
}

// The other names of a file stay what they were when one of them becomes
// something else.
func TestLinksToWhatIsReplacedLater(t *testing.T) {
	tree, _ := unpack(t, layertest.Dir("a", 0o755), layertest.Dir("b", 0o755), layertest.File("a/f"), layertest.Link("b/f", "a/f"),
		layertest.Dir("a/f", 0o755), layertest.File("a/f/inside"), layertest.File(".wh.a"))
	if data, err := os.ReadFile(filepath.Join(tree, "b/f")); err != nil || string(data) != "a/f" {
		t.Errorf("b/f holds %q (%v)", data, err)
	}
	if got := kind(t, filepath.Join(tree, "a/f")); got != "dir" {
		t.Errorf("a/f is %s", got)
	}
}

func TestNanosecondsAndGNUFormat(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	long := strings.Repeat("long/", 40) + strings.Repeat("n", 200)
	when := time.Unix(1_500_000_000, 123_456_789)
	for _, h := range []entry{
		{Typeflag: tar.TypeReg, Name: "pax", ModTime: when, Format: tar.FormatPAX},
		{Typeflag: tar.TypeDir, Name: "dir", Mode: 0o700, ModTime: when, Format: tar.FormatPAX},
		{Typeflag: tar.TypeReg, Name: long, ModTime: when, Format: tar.FormatGNU},
		{Typeflag: tar.TypeSymlink, Name: "sym", Linkname: "/" + long, ModTime: when, Format: tar.FormatGNU},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tree := newTree(t)
	if _, err := Unpack(context.Background(), tree, &buf, Options{}); err != nil {
		t.Fatal(err)
	}
	for name, nanos := range map[string]int64{"pax": 123_456_789, "dir": 123_456_789, long: 0} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(tree, name), &st); err != nil || st.Mtim.Nsec != nanos || st.Mtim.Sec != when.Unix() {
			t.Errorf("%s: %d.%d, %v", name, st.Mtim.Sec, st.Mtim.Nsec, err)
		}
	}
	if target, err := os.Readlink(filepath.Join(tree, "sym")); err != nil || target != "/"+long {
		t.Errorf("sym leads to %q (%v)", target, err)
	}
}

func TestGuardEndsABomb(t *testing.T) {
	count := &Count{R: strings.NewReader("tiny")}
	if _, err := count.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	limits := Limits{Bytes: 1 << 40, Ratio: 10, Floor: 5}
	n, err := bytes.NewBuffer(nil).ReadFrom(limits.Guard(bytes.NewReader(make([]byte, 1000)), count))
	if !errors.Is(err, ErrHostile) || n > 45 {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

func TestCancelEndsUnpack(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Unpack(ctx, newTree(t), bytes.NewReader(layertest.Tar(t, layertest.File("f"))), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
