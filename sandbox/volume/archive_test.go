package volume

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/internal/xattr"
)

// describe is everything about a tree that a round trip must keep.
func describe(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st, err := statOf(info)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s %v %d:%d %d", name, info.Mode(), st.Uid, st.Gid, st.Nlink)
		if info.Mode()&os.ModeSymlink == 0 {
			fmt.Fprintf(&b, " %s", info.ModTime().Format(time.RFC3339Nano))
		} else if target, err := os.Readlink(path); err == nil {
			fmt.Fprintf(&b, " -> %s", target)
		}
		if info.Mode().IsRegular() || info.IsDir() {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			attrs, err := xattr.Read(int(f.Fd()), xattr.Portable)
			fmt.Fprintf(&b, " %q", attrs)
			if err = errors.Join(err, f.Close()); err != nil {
				return err
			}
		}
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %.20q", len(data), data)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestExportAndImportKeepEverything(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners and capabilities need root")
	}
	s := open(t)
	v, err := s.Create("data", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := v.Path
	do := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	long := strings.Repeat("long/", 60)
	do(os.MkdirAll(d+"/"+long, 0o700), os.WriteFile(d+"/"+long+"file", []byte("deep"), 0o640), os.Chown(d+"/"+long+"file", 1000, 2000))
	do(os.WriteFile(d+"/prog", []byte("#!"), 0o755), os.Chown(d+"/prog", 7, 7), os.Chmod(d+"/prog", 0o755|os.ModeSetuid))
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	do(unix.Setxattr(d+"/prog", "security.capability", []byte(capability), 0))
	if err := unix.Setxattr(d+"/prog", "user.note", []byte("a\x00b"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		t.Fatal(err)
	}
	do(os.Link(d+"/prog", d+"/zprog"), os.Symlink("/etc/passwd", d+"/out"), os.Lchown(d+"/out", 5, 6), os.Symlink("nowhere", d+"/dangling"))
	do(unix.Mkfifo(d+"/pipe", 0o620), os.Mkdir(d+"/sticky", 0o777), os.Chmod(d+"/sticky", 0o777|os.ModeSticky))
	sparse, err := os.Create(d + "/sparse")
	do(err)
	_, err = sparse.WriteAt([]byte("end"), 64<<20)
	do(err, sparse.Close(), os.WriteFile(d+"/uneven", append(make([]byte, 5000), 'x', 0, 0), 0o600))
	do(os.Chtimes(d+"/prog", old, old), os.Chtimes(d+"/sticky", old, old), os.Chtimes(d, old, old), os.Chmod(d, 0o750), os.Chown(d, 1000, 1000))
	want := describe(t, d)

	var b bytes.Buffer
	do(s.Export(t.Context(), "data", &b))
	do(s.Import(t.Context(), "copy", bytes.NewReader(b.Bytes()), false))
	c, err := s.Get("copy")
	do(err)
	if got := describe(t, c.Path); got != want {
		t.Errorf("after a round trip:\n%s\nbefore:\n%s", got, want)
	}
	u, err := s.Usage("copy")
	if err != nil || u.Bytes > 1<<20 || u.Files < 60 {
		t.Errorf("the copy takes %+v, %v: holes were filled", u, err)
	}
	if err := s.Import(t.Context(), "copy", bytes.NewReader(b.Bytes()), false); !errors.Is(err, ErrExists) {
		t.Errorf("imported into a volume that exists: %v", err)
	}
	// A tar that is cut off changes nothing.
	do(os.WriteFile(c.Path+"/mine", nil, 0o600))
	mine := describe(t, c.Path)
	if err := s.Import(t.Context(), "copy", bytes.NewReader(b.Bytes()[:b.Len()/2]), true); err == nil {
		t.Error("half a tar was imported")
	}
	if describe(t, c.Path) != mine {
		t.Error("half a tar changed the volume")
	}
	do(s.Import(t.Context(), "copy", bytes.NewReader(b.Bytes()), true))
	if got := describe(t, c.Path); got != want {
		t.Errorf("after a replacement:\n%s", got)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestHostileArchivesStayInside(t *testing.T) {
	s := open(t)
	outside := t.TempDir()
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink, Mode: 0o777}
	}
	file := tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}
	named := func(name string) tar.Header { h := file; h.Name = name; return h }
	for what, entries := range map[string][]tar.Header{
		"upwards":                {named("../evil")},
		"upwards inside":         {named("a/../../evil")},
		"through an absolute":    {link("a", outside), named("a/evil")},
		"through a relative":     {link("a", "../../../../../../../.."+outside), named("a/evil")},
		"through two":            {link("a", "b"), link("b", outside), named("a/evil")},
		"hard link out":          {link("a", outside), {Name: "h", Linkname: "a/x", Typeflag: tar.TypeLink}},
		"a device":               {{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}},
		"a character device":     {{Name: "mem", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 1, Mode: 0o666}},
		"a directory by a link":  {link("a", outside), {Name: "a", Typeflag: tar.TypeDir, Mode: 0o777}},
		"the directory itself":   {link(".", outside)},
		"an owner beyond 32 bit": {{Name: "x", Typeflag: tar.TypeReg, Uid: 1 << 33, Format: tar.FormatPAX}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Import(t.Context(), "evil", &b, false); err == nil {
			t.Errorf("%s: it was taken", what)
			if err := s.Remove("evil"); err != nil {
				t.Error(err)
			}
		}
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			t.Fatalf("%s: %v was made outside, %v", what, left, err)
		}
		if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", what, left, err)
		}
	}
	// A link that leads out is kept as it is, and replaced by what comes after it.
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{link("a", outside+"/x"), named("./a")} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), s.Import(t.Context(), "ok", &b, false)); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("written through a link: %v, %v", left, err)
	}
}
