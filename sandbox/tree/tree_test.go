package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func openTree(t *testing.T, dir string, ids IDs) *Tree {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tr := New(fd, ids)
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// names lists a tar.
func names(t *testing.T, data []byte) []string {
	t.Helper()
	var list []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, h.Name)
	}
}

func TestRoundTrip(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners need root")
	}
	from, to := t.TempDir(), t.TempDir()
	write(t, from+"/d/sub/file", "content")
	write(t, from+"/d/empty", "")
	err := errors.Join(os.Link(from+"/d/sub/file", from+"/d/hard"), os.Symlink("/etc/passwd", from+"/d/link"), unix.Mkfifo(from+"/d/fifo", 0o640),
		os.Chown(from+"/d/sub/file", 1005, 1006), os.Chmod(from+"/d/sub/file", 0o4751|fs.ModeSetuid), os.Chmod(from+"/d/sub", 0o500))
	if err != nil {
		t.Fatal(err)
	}
	src, dst := openTree(t, from, IDs{1000, 65536}), openTree(t, to, IDs{2000, 65536})
	var b bytes.Buffer
	if err := errors.Join(src.Pack(t.Context(), &b, "d", PackOptions{As: "x"}), dst.Unpack(t.Context(), &b, "", UnpackOptions{Archive: true})); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(to+"/x/sub/file", &st); err != nil || st.Uid != 2005 || st.Gid != 2006 || st.Mode&0o7777 != 0o4751 || st.Nlink != 2 {
		t.Errorf("file: %+v, %v", st, err)
	}
	if link, err := os.Readlink(to + "/x/link"); link != "/etc/passwd" || err != nil {
		t.Errorf("link: %q, %v", link, err)
	}
	if info, err := os.Stat(to + "/x/sub"); err != nil || info.Mode() != 0o500|fs.ModeDir {
		t.Errorf("directory: %v, %v", info, err)
	}
	if info, err := os.Lstat(to + "/x/fifo"); err != nil || info.Mode() != 0o640|fs.ModeNamedPipe {
		t.Errorf("fifo: %v, %v", info, err)
	}
	if data, err := os.ReadFile(to + "/x/hard"); string(data) != "content" || err != nil {
		t.Errorf("hard link: %q, %v", data, err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners need root")
	}
	for name, test := range map[string]struct {
		entries []tar.Header
		want    string
	}{
		"upwards":             {[]tar.Header{{Name: "a/../../x", Typeflag: tar.TypeReg}}, "leads upwards"},
		"link upwards":        {[]tar.Header{{Name: "x", Typeflag: tar.TypeLink, Linkname: "../out"}}, "leads upwards"},
		"through a link":      {[]tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/"}, {Name: "l/x", Typeflag: tar.TypeReg}}, "too many levels"},
		"through an old link": {[]tar.Header{{Name: "old/x", Typeflag: tar.TypeReg}}, "too many levels"},
		"device":              {[]tar.Header{{Name: "x", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, "devices are not copied"},
		"over a directory":    {[]tar.Header{{Name: "dir", Typeflag: tar.TypeReg}}, "cannot replace a directory"},
		"over a file":         {[]tar.Header{{Name: "file", Typeflag: tar.TypeDir}}, "cannot replace what is no directory"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/to/dir/x", "")
			write(t, dir+"/to/file", "")
			if err := os.Symlink("/", dir+"/to/old"); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for i := range test.entries {
				if err := w.WriteHeader(&test.entries[i]); err != nil {
					t.Fatal(err)
				}
			}
			err := errors.Join(w.Close(), openTree(t, dir, IDs{}).Unpack(t.Context(), &b, "to", UnpackOptions{}))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestPackLeavesOtherMountsAndTheKernelOut(t *testing.T) {
	root := openTree(t, "/", IDs{})
	if err := root.Pack(t.Context(), io.Discard, "/proc/self/status", PackOptions{As: "x"}); !errors.Is(err, ErrKernelFile) {
		t.Errorf("a file in /proc: %v", err)
	}
	var b bytes.Buffer
	if err := root.Pack(t.Context(), &b, "/proc/sys", PackOptions{As: "x"}); !errors.Is(err, ErrKernelFile) || b.Len() > 0 {
		t.Errorf("a directory in /proc: %v, %d bytes", err, b.Len())
	}
}

// TestLinksAreSwapped packs and unpacks below a directory that is exchanged with a
// link out of the tree all the time, faster than any container could.
func TestLinksAreSwapped(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners need root")
	}
	outside := t.TempDir()
	write(t, outside+"/file", "secret")
	before := listing(t, outside)
	dir := t.TempDir()
	write(t, dir+"/w/dir/file", "inside")
	if err := os.Symlink(outside, dir+"/w/link"); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	swapped := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			_ = unix.Renameat2(unix.AT_FDCWD, dir+"/w/dir", unix.AT_FDCWD, dir+"/w/link", unix.RENAME_EXCHANGE)
		}
		swapped <- n
	}()
	tr := openTree(t, dir, IDs{})
	read, written := 0, 0
	for i := range 3000 {
		tr.Links = i%2 == 0
		var b bytes.Buffer
		if tr.Pack(context.Background(), &b, "w/dir/file", PackOptions{As: "file"}) == nil {
			read++
			if bytes.Contains(b.Bytes(), []byte("secret")) {
				t.Fatal("a file outside of the tree was read")
			}
		}
		b.Reset()
		if tr.Pack(context.Background(), &b, "w", PackOptions{As: "w"}) == nil && bytes.Contains(b.Bytes(), []byte("secret")) {
			t.Fatalf("a file outside of the tree was read: %v", names(t, b.Bytes()))
		}
		b.Reset()
		w := tar.NewWriter(&b)
		h := &tar.Header{Name: "dir/new", Typeflag: tar.TypeReg, Mode: 0o600}
		if err := errors.Join(w.WriteHeader(h), w.Close()); err != nil {
			t.Fatal(err)
		}
		if tr.Unpack(context.Background(), &b, "w", UnpackOptions{}) == nil {
			written++
		}
	}
	stop.Store(true)
	if n := <-swapped; n == 0 || read == 0 || written == 0 {
		t.Errorf("%d swaps, %d reads, %d writes: there was no race", n, read, written)
	}
	if after := listing(t, outside); !slices.Equal(before, after) {
		t.Errorf("outside of the tree: %v, want %v", after, before)
	}
}

func listing(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			info, err = d.Info()
			list = append(list, path+" "+info.Mode().String()+" "+info.ModTime().String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
