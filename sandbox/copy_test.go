package sandbox

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// runReady runs a container whose script says "ready" when it has done its part.
func runReady(t *testing.T, e *Engine, c ContainerConfig) Container {
	t.Helper()
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container is ready", func() bool { return strings.Contains(logOf(t, e, made.ID), "ready\n") })
	return made
}

func TestCopyFollowsDockersRules(t *testing.T) {
	e := newEngine(t)
	made := runReady(t, e, sh("mkdir -p /d/sub; echo deep > /d/sub/f; ln -s sub /d/link; echo ready; sleep 60"))
	host := t.TempDir()
	if err := os.WriteFile(host+"/file", []byte("host\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	in := func(p string) CopyPlace { return CopyPlace{made.Name, p} }
	out := func(p string) CopyPlace { return CopyPlace{Path: host + "/" + p} }
	for _, test := range []struct {
		from, to CopyPlace
		made     string // must be there afterwards; empty: refused
	}{
		{in("/d"), out("new"), host + "/new/sub/f"},
		{in("/d"), out("new"), host + "/new/d/sub/f"},
		{in("/d/."), out("."), host + "/sub/f"},
		{in("/d/link/"), out("followed"), host + "/followed/f"},
		{in("/d/sub/f"), out("g"), host + "/g"},
		{in("/d/sub/f"), out("none/"), ""},
		{in("/d/sub/f"), out("none/g"), ""},
		{in("/d"), out("file"), ""},
		{in("/missing"), out("x"), ""},
		{out("file"), in("/d/link"), "/d/sub/file"},
		{out("file"), in("/d/new"), "/d/new"},
		{out("new"), in("/d/tree"), "/d/tree/sub/f"},
		{out("file"), in("/d/file/"), ""},
		{out("file"), in("/proc/sys/kernel/core_pattern"), ""},
	} {
		err := e.Copy(t.Context(), test.from, test.to, CopyOptions{})
		if (err == nil) != (test.made != "") {
			t.Errorf("%v to %v: %v", test.from, test.to, err)
		}
		if test.made == "" {
			continue
		}
		if test.to.Container != "" {
			if code, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"test", "-e", test.made}}); code != 0 || err != nil {
				t.Errorf("%v to %v: %s is not there: %d, %v", test.from, test.to, test.made, code, err)
			}
		} else if _, err := os.Lstat(test.made); err != nil {
			t.Errorf("%v to %v: %v", test.from, test.to, err)
		}
	}
}

// TestCopySeesVolumesAndKeepsOwners copies in and out of a running container and of
// the same one when it has ended.
func TestCopySeesVolumesAndKeepsOwners(t *testing.T) {
	e := newEngine(t)
	c := sh("echo ready; sleep 60")
	c.Mounts = []Mount{{Source: "v", Target: "/vol", Volume: true}, {Target: "/tmpfs", Tmpfs: true}}
	made := runReady(t, e, c)
	v, err := e.Volumes().Get("v")
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(src, []byte("x"), 0o600), os.Chown(src, 7, 8)); err != nil {
		t.Fatal(err)
	}
	copyAll := func(suffix string, places ...string) {
		for _, p := range places {
			to := CopyPlace{made.ID, p + "/" + suffix}
			if err := e.Copy(t.Context(), CopyPlace{Path: src}, to, CopyOptions{Archive: true}); err != nil {
				t.Errorf("%s: %v", to.Path, err)
			}
			var b bytes.Buffer
			if err := e.CopyOut(t.Context(), to, CopyOptions{}, &b); err != nil {
				t.Errorf("%s: %v", to.Path, err)
			}
			h, err := tar.NewReader(&b).Next()
			if err != nil || h.Name != suffix || h.Uid != 7 || h.Gid != 8 || h.Mode != 0o600 {
				t.Errorf("%s: %+v, %v", to.Path, h, err)
			}
		}
	}
	copyAll("running", "/srv", "/vol", "/tmpfs")
	if err := e.Stop(t.Context(), made.ID, -1); err != nil {
		t.Fatal(err)
	}
	copyAll("stopped", "/srv", "/vol")
	for _, name := range []string{"running", "stopped"} {
		if _, err := os.Stat(filepath.Join(v.Path, name)); err != nil {
			t.Errorf("%s did not go to the volume: %v", name, err)
		}
	}
	if err := e.Start(t.Context(), made.ID); err != nil {
		t.Fatal(err)
	}
	if code, err := e.Exec(t.Context(), made.ID, ExecOptions{Args: []string{"sh", "-c", "test $(stat -c %u /srv/running /srv/stopped /vol/stopped | grep -c '^7$') = 3"}}); code != 0 || err != nil {
		t.Errorf("owners inside: %d, %v", code, err)
	}
}

// TestCopyRace copies 500 times while the container replaces a directory of the
// path by a link to a directory of the host, and back (CVE-2018-15664).
func TestCopyRace(t *testing.T) {
	e := newEngine(t)
	canary := t.TempDir()
	if err := os.WriteFile(canary+"/file", []byte("secret of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(canary)
	if err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	made := runReady(t, e, sh("mkdir -p /w/dir; echo inside > /w/dir/file; ln -s "+up+canary+" /w/link; ln -s /proc/1/root"+canary+" /w/magic; echo ready; cd /w;"+
		"while true; do mv dir d; mv link dir; mv dir link; mv magic dir; mv dir magic; mv d dir; done"))
	src := filepath.Join(t.TempDir(), "new")
	if err := os.WriteFile(src, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	read, written := 0, 0
	for i := 0; i < 250 || (read == 0 || written == 0) && i < 5000; i++ {
		var b bytes.Buffer
		if e.CopyOut(t.Context(), CopyPlace{made.ID, "/w/dir/file"}, CopyOptions{Follow: true}, &b) == nil {
			read++
		}
		if bytes.Contains(b.Bytes(), []byte("secret")) {
			t.Fatal("a file of the host was read")
		}
		if e.Copy(t.Context(), CopyPlace{Path: src}, CopyPlace{made.ID, "/w/dir/new"}, CopyOptions{}) == nil {
			written++
		}
	}
	if read == 0 || written == 0 {
		t.Errorf("%d reads and %d writes went through: that shows nothing", read, written)
	}
	after, err := os.Stat(canary)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(canary)
	if err != nil || len(left) != 1 || !after.ModTime().Equal(info.ModTime()) {
		t.Errorf("the directory of the host was touched: %v, %v", left, err)
	}
}

func TestDiffCommitExport(t *testing.T) {
	e := newEngine(t)
	c := sh("mkdir -p /d; echo deep > /d/f; rm /bin/tail; echo x >> /etc/notes; rm -r /srv; mkdir /srv; chmod 700 /root; echo vol > /vol/x; echo ready; sleep 60")
	c.Mounts = []Mount{{Source: "v", Target: "/vol", Volume: true}}
	made := runReady(t, e, c)
	want := []Change{
		{"C", "/bin"}, {"D", "/bin/tail"}, {"A", "/d"}, {"A", "/d/f"}, {"C", "/etc"}, {"C", "/etc/notes"}, {"C", "/root"}, {"C", "/srv"}, {"D", "/srv/data"},
	}
	for _, state := range []string{"running", "stopped"} {
		mustState(t, e, made.ID, state)
		if got, err := e.Diff(t.Context(), made.ID); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: diff %v, %v; want %v", state, got, err, want)
		}
		var b bytes.Buffer
		if err := e.Export(t.Context(), made.ID, &b); err != nil {
			t.Fatal(err)
		}
		checkExport(t, state, &b)
		name := "of-" + state
		img, err := e.Commit(t.Context(), made.ID, CommitOptions{Name: name, Message: "a test", Change: func(c *image.RunConfig) error {
			c.Cmd = []string{"sh", "-c", "cat /d/f; ls -d /bin/tail /srv/data /vol; ls -A /dev | grep -c nothing"}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if h := img.Config.History; h[len(h)-1].Comment != "a test" || len(img.Layers) != 2 {
			t.Errorf("%s: image %+v", state, img)
		}
		_, out := runToEnd(t, e, ContainerConfig{Image: name, Network: NetworkNone})
		if !strings.HasPrefix(out, "deep\n") || strings.Count(out, "No such file") != 3 {
			t.Errorf("%s: the image shows %q", state, out)
		}
		mustState(t, e, made.ID, state) // it was resumed
		if err := e.Stop(t.Context(), made.ID, -1); err != nil {
			t.Fatal(err)
		}
	}
}

func checkExport(t *testing.T, state string, r io.Reader) {
	t.Helper()
	found := map[string]fs.FileMode{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid > 65535 {
			t.Errorf("%s: %s belongs to %d", state, h.Name, h.Uid)
		}
		found[h.Name] = h.FileInfo().Mode()
	}
	for name, want := range map[string]bool{"d/f": true, "bin/busybox": true, "bin/tail": false, "vol/": true, "vol/x": false, "proc/": true, "proc/1/": false, "dev/null": false} {
		if _, ok := found[name]; ok != want {
			t.Errorf("%s: %s is in the export: %t, want %t", state, name, ok, want)
		}
	}
}

// TestCopyKeepsAttributes copies a file with a capability, an access list and an attribute of
// a user into containers, running and stopped, and back; on disk they are the container's.
func TestCopyKeepsAttributes(t *testing.T) {
	e := newEngine(t)
	made := runReady(t, e, sh("echo ready; sleep 60"))
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // net_bind_service, effective
	// Owner, the user 7, the group, the mask, others.
	acl := "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x07\x00\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	attrs := map[string]string{"security.capability": capability, "system.posix_acl_access": acl, "user.note": "kept"}
	host := t.TempDir()
	src := host + "/src"
	if err := os.WriteFile(src, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	for name, value := range attrs {
		if err := unix.Setxattr(src, name, []byte(value), 0); errors.Is(err, unix.ENOTSUP) {
			t.Skip("the file system of the tests has no extended attributes")
		} else if err != nil {
			t.Fatal(err)
		}
	}
	// Before Linux 6.2 a container, too, sees the ids of lists in its layers as they are on disk: as nobody.
	listsRead := func(state string) bool {
		var name unix.Utsname
		var kernel, major int
		if err := unix.Uname(&name); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &kernel, &major); err != nil {
			t.Fatal(err)
		}
		return state == "stopped" || kernel > 6 || kernel == 6 && major >= 2
	}
	check := func(path string) {
		t.Helper()
		for name, want := range attrs {
			if strings.Contains(name, "acl") && !listsRead(filepath.Base(path)) {
				continue
			}
			got := make([]byte, 256)
			n, err := unix.Getxattr(path, name, got)
			if err != nil || string(got[:n]) != want {
				t.Errorf("%s: %s is %q, %v; want %q", path, name, got[:max(n, 0)], err, want)
			}
		}
	}
	for _, state := range []string{"running", "stopped"} {
		mustState(t, e, made.ID, state)
		in := CopyPlace{made.ID, "/srv/" + state}
		back := CopyPlace{Path: host + "/" + state}
		err := e.Copy(t.Context(), CopyPlace{Path: src}, in, CopyOptions{Archive: true})
		if err == nil {
			err = e.Copy(t.Context(), in, back, CopyOptions{Archive: true})
		}
		if err != nil {
			t.Fatal(err)
		}
		check(back.Path)
		var st unix.Stat_t
		if err := unix.Stat(back.Path, &st); err != nil || st.Mode&0o7777 != 0o640 {
			t.Errorf("%s: mode %o, %v", back.Path, st.Mode, err)
		}
		if err := e.Stop(t.Context(), made.ID, -1); err != nil {
			t.Fatal(err)
		}
	}
	check(filepath.Join(e.upper(made.ID), "srv/stopped"))
	// Its root is 0 on disk, whichever version says so.
	got := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(e.upper(made.ID), "srv/running"), "security.capability", got)
	if err != nil || n < 20 || string(got[4:20]) != capability[4:] || strings.Trim(string(got[20:n]), "\x00") != "" {
		t.Errorf("on disk: %q, %v", got[:max(n, 0)], err)
	}
}
