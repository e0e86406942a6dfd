package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

func gzipped(t *testing.T, data []byte) string {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func zstded(t *testing.T, data []byte) string {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(w.EncodeAll(data, nil))
}

func xzed(t *testing.T, data []byte, c xz.WriterConfig) string {
	t.Helper()
	var buf bytes.Buffer
	w, err := c.NewWriter(&buf)
	must(t, err)
	_, err = w.Write(data)
	must(t, err)
	must(t, w.Close())
	return buf.String()
}

func bzip2ed(t *testing.T, data []byte) string {
	t.Helper()
	cmd := exec.Command("bzip2", "-c")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Skip("no bzip2 to make a test file with")
	}
	return string(out)
}

func TestAdd(t *testing.T) {
	archive := makeTar(t,
		tarEntry{name: "./", kind: tar.TypeDir, mode: 0o700, uid: 9, gid: 9},
		tarEntry{name: "d/", kind: tar.TypeDir, mode: 0o750, uid: 5, gid: 6},
		tarEntry{name: "d/f", kind: tar.TypeReg, mode: 0o4755, uid: 5, gid: 6, data: "F"},
		tarEntry{name: "deep/er/g", kind: tar.TypeReg, mode: 0o600, data: "G"},
		tarEntry{name: "d/l", kind: tar.TypeSymlink, link: "/d/f"},
		tarEntry{name: "d/h", kind: tar.TypeLink, link: "d/f"},
		tarEntry{name: "d/p", kind: tar.TypeFifo, mode: 0o640},
	)
	want := map[string]string{
		"n": "d 755 0:0", "n/d": "d 750 5:6", "n/d/f": "f 4755 5:6 F", "n/d/h": "f 4755 5:6 F", "n/d/l": "l /d/f",
		"n/deep": "d 755 0:0", "n/deep/er/g": "f 600 0:0 G", "n/d/p": "10000 640 0:0",
	}
	ctx := map[string]string{"a.tar": string(archive), "a.tgz": gzipped(t, archive), "a.zst": zstded(t, archive), "plain.gz": gzipped(t, []byte("no tar")), "file": "x",
		"a.xz": xzed(t, archive, xz.WriterConfig{}), "b.xz": "\xfd7zXZ\x00" + strings.Repeat("x", 100), "broken.tgz": gzipped(t, archive)[:60]}
	cases := []buildCase{
		{name: "tar", file: "FROM scratch\nADD a.tar /n", ctx: ctx, want: want, log: "unpacked a.tar"},
		{name: "gzip", file: "FROM scratch\nADD a.tgz /n/", ctx: ctx, want: want},
		{name: "zstd", file: "FROM scratch\nADD a.zst /n/", ctx: ctx, want: want},
		{name: "xz", file: "FROM scratch\nADD a.xz /n/", ctx: ctx, want: want},
		{name: "xz not unpacked", file: "FROM scratch\nADD --unpack=false a.xz /n/", ctx: ctx, want: map[string]string{"n/d": "-"}},
		{name: "no xz", file: "FROM scratch\nADD b.xz /n/", ctx: ctx, want: map[string]string{"n/b.xz": "f 644 0:0 " + ctx["b.xz"]}},
		{name: "chmod is not for archives", file: "FROM scratch\nADD --chmod=700 a.tar file /n/m/", ctx: ctx, want: map[string]string{"n": "d 755 0:0", "n/m/d/f": "f 4755 5:6 F", "n/m/file": "f 700 0:0 x"}},
		{name: "no archive", file: "FROM scratch\nADD file plain.gz /n/", ctx: ctx, want: map[string]string{"n/file": "f 644 0:0 x"}},
		{name: "copy keeps it packed", file: "FROM scratch\nCOPY a.tar /n/", ctx: ctx, want: map[string]string{"n/d": "-"}},
		{name: "chown", file: "FROM base\nADD --chown=app a.tar /n", ctx: ctx, want: map[string]string{"n": "d 755 1000:1001", "n/d/f": "f 4755 1000:1001 F"}},
		{name: "through links of the image", file: "FROM base\nADD l.tar /", ctx: map[string]string{"l.tar": string(makeTar(t,
			tarEntry{name: "lib/x", kind: tar.TypeReg, mode: 0o644, data: "X"}))}, want: map[string]string{"lib": "l usr/lib", "usr/lib/x": "f 644 0:0 X"}},
		{name: "replaces", file: "FROM scratch\nADD a.tar /n\nADD b.tar /n", ctx: map[string]string{"a.tar": string(archive), "b.tar": string(makeTar(t,
			tarEntry{name: "d", kind: tar.TypeReg, mode: 0o644, data: "now a file"}))}, want: map[string]string{"n/d": "f 644 0:0 now a file", "n/d/f": "-"}},
		{name: "broken", file: "FROM scratch\nADD broken.tgz /n/", ctx: ctx, want: map[string]string{"n/broken.tgz": "f 644 0:0 " + gzipped(t, archive)[:60]}},
	}
	runCases(t, cases)
	t.Run("bzip2", func(t *testing.T) {
		runCases(t, []buildCase{{name: "bzip2", file: "FROM scratch\nADD a.bz2 /n/", ctx: map[string]string{"a.bz2": bzip2ed(t, archive)}, want: want}})
	})
}

// TestHostileArchives unpacks archives that try to get out of the directory
// they are unpacked to, and looks at what they tried to change.
func TestHostileArchives(t *testing.T) {
	reg := func(name string) tarEntry {
		return tarEntry{name: name, kind: tar.TypeReg, mode: 0o644, data: "EVIL"}
	}
	link := func(name, to string) tarEntry { return tarEntry{name: name, kind: tar.TypeSymlink, link: to} }
	hard := func(name, to string) tarEntry { return tarEntry{name: name, kind: tar.TypeLink, link: to} }
	for name, c := range map[string]struct {
		entries []tarEntry
		err     string
		inside  string // where the file must be
	}{
		"dots":              {entries: []tarEntry{reg("../../canary")}, inside: "n/canary"},
		"absolute":          {entries: []tarEntry{reg("CANARY")}, inside: "nCANARY"},
		"link then file":    {entries: []tarEntry{link("l", "CANARYDIR"), reg("l/canary")}, inside: "nCANARYDIR/canary"},
		"link up":           {entries: []tarEntry{link("l", "../../../../../.."), reg("l/canary")}, inside: "n/canary"},
		"link to link":      {entries: []tarEntry{link("a", "/"), link("b", "a/.."), reg("b/tmp/canary")}, inside: "n/tmp/canary"},
		"over link":         {entries: []tarEntry{link("l", "CANARY"), reg("l")}, inside: "n/l"},
		"hard link out":     {entries: []tarEntry{hard("h", "CANARY"), reg("h")}, err: "no such file"},
		"hard link by link": {entries: []tarEntry{link("l", "CANARYDIR"), hard("h", "l/canary")}, err: "no such file"},
		"proc":              {entries: []tarEntry{link("p", "/proc/self/root"), reg("p/canary")}, inside: "n/proc/self/root/canary"},
		"loop":              {entries: []tarEntry{link("a", "b"), link("b", "a"), reg("a/x")}, err: "too many levels"},
		"whiteout":          {entries: []tarEntry{reg(".wh.bin")}, err: "names that begin with .wh."},
		"whiteout device":   {entries: []tarEntry{{name: "bin", kind: tar.TypeChar, mode: 0o644}}, err: "operation not permitted"},
		"whiteout parent":   {entries: []tarEntry{reg(".wh..wh..opq/x")}, err: "names that begin with .wh."},
		"twice":             {entries: []tarEntry{{name: "CANARY", kind: tar.TypeReg, mode: 0o600, data: "first"}, reg("CANARY")}, inside: "nCANARY"},
		"link replaced":     {entries: []tarEntry{link("l", "CANARYDIR"), {name: "l", kind: tar.TypeDir, mode: 0o755}, reg("l/canary")}, inside: "n/l/canary"},
		"directory to link": {entries: []tarEntry{{name: "d", kind: tar.TypeDir, mode: 0o755}, link("d", "CANARYDIR"), reg("d/canary")}, inside: "nCANARYDIR/canary"},
		"opaque":            {entries: []tarEntry{{name: "d/", kind: tar.TypeDir, mode: 0o755, pax: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y"}}, reg("d/f")}, inside: "n/d/f"},
		"pax path":          {entries: []tarEntry{{name: "../../CANARY", kind: tar.TypeReg, mode: 0o644, data: "EVIL", pax: map[string]string{"comment": "x"}}}, inside: "nCANARY"},
		"deep":              {entries: []tarEntry{reg(strings.Repeat("d/", 100_000) + "f")}, err: "name is longer than"},
		"long link":         {entries: []tarEntry{link("l", strings.Repeat("x", 5000))}, err: "name is longer than"},
		"long element":      {entries: []tarEntry{reg(strings.Repeat("x", 300))}, err: "too long"},
		"owner":             {entries: []tarEntry{{name: "f", kind: tar.TypeReg, uid: 200000}}, err: "outside 0..65535"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			outside := filepath.Join(w.dir, "outside")
			canary := filepath.Join(outside, "canary")
			if err := os.Mkdir(outside, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(canary, []byte("good"), 0o600); err != nil {
				t.Fatal(err)
			}
			fill := strings.NewReplacer("CANARYDIR", outside, "CANARY", canary)
			for i := range c.entries {
				c.entries[i].name, c.entries[i].link = fill.Replace(c.entries[i].name), fill.Replace(c.entries[i].link)
			}
			dir := w.context(map[string]string{"Dockerfile": "FROM scratch\nADD x.tar /n/", "x.tar": string(makeTar(t, c.entries...))})
			img, log, err := w.build(Options{Context: dir})
			if data, readErr := os.ReadFile(canary); readErr != nil || string(data) != "good" {
				t.Fatalf("the canary is %q, %v", data, readErr)
			}
			if list, _ := os.ReadDir(outside); len(list) != 1 {
				t.Fatalf("outside there is %v", list)
			}
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("%v, want %q\n%s", err, c.err, log)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			if got := w.look(img, fill.Replace(c.inside)); got != "f 644 0:0 EVIL" {
				t.Errorf("%s: %s", c.inside, got)
			}
		})
	}
}

func TestArchiveBomb(t *testing.T) {
	w := newWorld(t)
	var headers bytes.Buffer
	tw := tar.NewWriter(&headers)
	for range 11 {
		must(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": strings.Repeat("x", 100_000)}}))
	}
	must(t, tw.Close())
	for name, data := range map[string][]byte{
		"file":    makeTar(t, tarEntry{name: "z", kind: tar.TypeReg, data: strings.Repeat("\x00", 1<<20)}),
		"headers": headers.Bytes(), // nothing is written at all
		"sparse":  []byte(sparseTar(t, 1<<40)),
	} {
		tree, err := openRoot(t.TempDir())
		must(t, err)
		x := extraction{ctx: w.t.Context(), into: tree, left: 1<<20 - 1, buf: make([]byte, 1<<16)}
		if err := x.run(strings.NewReader(gzipped(t, data))); err == nil || !strings.Contains(err.Error(), "more than is allowed") {
			t.Errorf("%s: %v", name, err)
		}
		must(t, tree.Close())
	}
	tree, err := openRoot(t.TempDir())
	must(t, err)
	defer tree.Close()
	x := extraction{ctx: w.t.Context(), into: tree, left: 1 << 30, buf: make([]byte, 1<<16)}
	must(t, x.run(strings.NewReader(sparseTar(t, 100<<20))))
	st, err := tree.lstat("s")
	must(t, err)
	if st.Size != 100<<20 || st.Blocks > 1000 {
		t.Errorf("%d bytes in %d blocks", st.Size, st.Blocks)
	}
	cut := makeTar(t, tarEntry{name: "z", kind: tar.TypeReg, data: strings.Repeat("x", 1<<20)})[:100_000]
	if err := x.run(bytes.NewReader(cut)); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("cut off: %v", err)
	}
}

// sparseTar is an archive of one file of this size that holds a single byte, in
// the old GNU format, which needs no room for the holes.
func sparseTar(t *testing.T, size int64) string {
	t.Helper()
	h := make([]byte, 512)
	octal := func(at, width int, n int64) { copy(h[at:], fmt.Sprintf("%0*o", width-1, n)) }
	base256 := func(at int, n int64) {
		h[at] = 0x80
		binary.BigEndian.PutUint64(h[at+4:], uint64(n))
	}
	h[0] = 's'
	octal(100, 8, 0o644)
	octal(108, 8, 0)
	octal(116, 8, 0)
	octal(124, 12, 1) // bytes in the archive
	octal(136, 12, 0)
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	base256(386, size-1) // the one part
	octal(398, 12, 1)
	base256(483, size)
	copy(h[148:], "        ")
	sum := int64(0)
	for _, b := range h {
		sum += int64(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return string(h) + "x" + strings.Repeat("\x00", 511+1024)
}

// TestCapabilities: security.capability is the one attribute that a layer keeps.
func TestCapabilities(t *testing.T) {
	w := newWorld(t)
	raw, err := base64.StdEncoding.DecodeString("AQAAAgAEAAAAAAAAAAAAAAAAAAA=") // cap_net_bind_service=ep
	if err != nil {
		t.Fatal(err)
	}
	data := makeTar(t, tarEntry{name: "f", kind: tar.TypeReg, mode: 0o755, data: "x", pax: map[string]string{
		"SCHILY.xattr." + capsName: string(raw), "SCHILY.xattr.user.x": "y"}})
	dir := w.context(map[string]string{"a.tar": string(data), "Dockerfile": "FROM scratch AS a\nADD a.tar /n/\nFROM scratch\nCOPY --from=a /n/ /m/\n"})
	img, _ := w.mustBuild(Options{Context: dir})
	lower, err := w.store.Lower(img)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := openRoot(lower[len(lower)-1])
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	f, err := tree.open("m/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := caps(int(f.Fd())); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("capabilities %x, want %x, %v", got, raw, err)
	}
	if _, err := unix.Fgetxattr(int(f.Fd()), "user.x", make([]byte, 8)); err != unix.ENODATA {
		t.Errorf("user.x: %v", err)
	}
}
