package sandbox

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

func volumeNames(t *testing.T, e *Engine) (names []string) {
	t.Helper()
	list, err := e.Volumes().List()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		names = append(names, v.Name)
	}
	return names
}

func TestAnonymousVolumesGoWithTheirContainer(t *testing.T) {
	e := newEngine(t)
	cfg := busyboxConfig()
	cfg.Config.Volumes = map[string]struct{}{"/srv/data": {}, "/cache": {}}
	if _, err := e.Images().Import(t.Context(), busyboxTar(t), "withvolume", cfg); err != nil {
		t.Fatal(err)
	}
	config := sh("ls -ld /srv/data; cat /srv/data/seed; touch /cache/x; mount; sleep 1000")
	config.Image = "withvolume"
	config.Mounts = []Mount{{Source: "named", Target: "/cache", Volume: true}, {Target: "/own", Volume: true}}
	c := runCached(t, e, config)
	names := volumeNames(t, e)
	if len(names) != 3 || !slices.Contains(names, "named") {
		t.Fatalf("volumes %v, want the named one, the image's and the container's own", names)
	}
	out := logOf(t, e, c.ID)
	if !strings.Contains(out, "drwxr-x---") || !strings.Contains(out, "plain") || !strings.Contains(out, "seed") {
		t.Errorf("the image's content is not in its volume: %s", out)
	}
	for _, name := range names {
		if err := e.RemoveVolume(name); !errors.Is(err, ErrInUse) {
			t.Errorf("volume %s in use was removed: %v", name, err)
		}
	}
	if err := e.RemoveWith(t.Context(), c.ID, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got := volumeNames(t, e); !slices.Equal(got, names) {
		t.Errorf("without -v: volumes %v, want %v", got, names)
	}
	if removed, err := e.PruneAnonymous(t.Context(), false); err != nil || len(removed) != 2 {
		t.Errorf("prune removed %v, %v", removed, err)
	}
	c = runCached(t, e, config)
	if err := e.RemoveWith(t.Context(), c.ID, RemoveOptions{Force: true, Volumes: true}); err != nil {
		t.Fatal(err)
	}
	config.Remove, config.Args = true, []string{"true"}
	runAndWait(t, e, config)
	config.Args = []string{"nosuch"}
	if _, err := e.Run(t.Context(), config, Stdio{}); err == nil {
		t.Error("nosuch was run")
	}
	if got := volumeNames(t, e); !slices.Equal(got, []string{"named"}) {
		t.Errorf("with -v, --rm, and after a failed start: volumes %v", got)
	}
	if removed, err := e.PruneAnonymous(t.Context(), true); err != nil || len(removed) != 1 {
		t.Errorf("prune -a removed %v, %v", removed, err)
	}
	checkNothingLeft(t, e)
}

func runCached(t *testing.T, e *Engine, c ContainerConfig) Container {
	t.Helper()
	made, err := e.Run(t.Context(), c, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container has written", func() bool { return strings.Contains(logOf(t, e, made.ID), "/cache") })
	return made
}

func runAndWait(t *testing.T, e *Engine, c ContainerConfig) {
	t.Helper()
	made, err := e.Run(t.Context(), c, Stdio{})
	if err == nil {
		_, err = e.Wait(t.Context(), made.ID)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
}

// The volume of an image is its own word: "/../x" must not name a place outside.
func TestVolumesOfAnImageAreInside(t *testing.T) {
	e := newEngine(t)
	for _, place := range []string{"/../../etc", "etc", "/", "/a/../..", "/a\x00b"} {
		cfg := busyboxConfig()
		cfg.Config.Volumes = map[string]struct{}{place: {}}
		if _, err := e.Images().Import(t.Context(), busyboxTar(t), "evil", cfg); err != nil {
			t.Fatal(err)
		}
		config := sh("true")
		config.Image = "evil"
		if c, err := e.Create(t.Context(), config, Stdio{}); err == nil {
			t.Errorf("%q was mounted: %+v", place, c.Config.Mounts)
		}
	}
	if got := volumeNames(t, e); len(got) != 0 {
		t.Errorf("volumes %v are left", got)
	}
}

// Owners in a volume are container ids, whoever mounts it, and attributes come along.
func TestVolumeContentComesFromTheImageWhole(t *testing.T) {
	e := newEngine(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := tar.Header{Name: "opt/tool", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1000, Gid: 1000, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"SCHILY.xattr.user.note": "kept"}}
	if err := errors.Join(w.WriteHeader(&h), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Images().Import(t.Context(), &b, "tool", image.Config{}); err != nil {
		t.Fatal(err)
	}
	config := ContainerConfig{Image: "tool", Args: []string{"/opt/tool"}, Network: NetworkNone, Mounts: []Mount{{Source: "opt", Target: "/opt", Volume: true}}}
	if c, err := e.Create(t.Context(), config, Stdio{}); err != nil {
		t.Fatal(err)
	} else if err := e.Remove(t.Context(), c.ID, true); err != nil {
		t.Fatal(err)
	}
	v, err := e.Volumes().Get("opt")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	path := filepath.Join(v.Path, "tool")
	if err := unix.Stat(path, &st); err != nil || st.Uid != 1000 || st.Gid != 1000 || st.Mode != unix.S_IFREG|0o4755 {
		t.Errorf("owner %d:%d, mode %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
	value := make([]byte, 16)
	n, err := unix.Getxattr(path, "user.note", value)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) && !storesXattrs(t) {
		t.Skip("no attributes of users here")
	}
	if err != nil || string(value[:max(n, 0)]) != "kept" {
		t.Errorf("attribute %q, %v", value[:max(n, 0)], err)
	}
}

// storesXattrs says whether the file system of the tests, and so the image store, keeps them.
func storesXattrs(t *testing.T) bool {
	t.Helper()
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return unix.Setxattr(f, "user.x", []byte("y"), 0) == nil
}

// What the host mounts later is seen inside where that was asked for, and read-only
// means the mounts below only where that was asked for.
func TestPropagationOfHostPaths(t *testing.T) {
	if !privately(t) {
		return
	}
	e := newEngine(t)
	src := t.TempDir()
	mount := func(at string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(at, 0o755), unix.Mount("test", at, "tmpfs", 0, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	mount(src)
	if err := unix.Mount("", src, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	mount(src + "/sub")
	containers := map[string]Container{}
	for _, kind := range []string{"", "rprivate", "rslave", "rshared"} {
		config := sh(deaf)
		config.Mounts, config.UserNS = []Mount{{Source: src, Target: "/x", Propagation: kind}}, userNSOnTmpfs(t)
		containers[kind] = runScript(t, e, config)
	}
	mount(src + "/late")
	if err := os.WriteFile(src+"/late/seen", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for kind, c := range containers {
		code, err := e.Exec(t.Context(), c.ID, ExecOptions{Args: []string{"test", "-e", "/x/late/seen"}})
		if seen := code == 0; err != nil || seen != (kind == "rslave" || kind == "rshared") {
			t.Errorf("propagation %q: seen %v, %v", kind, seen, err)
		}
	}
	for _, tree := range []bool{false, true} {
		config := sh("touch /x/sub/f")
		config.UserNS = UserNSHost
		config.Mounts = []Mount{{Source: src, Target: "/x", ReadOnly: true, ReadOnlyTree: tree}}
		if exit, out := runToEnd(t, e, config); (exit.Code != 0) != tree {
			t.Errorf("read-only tree %v: %+v %s", tree, exit, out)
		}
	}
	config := sh("true")
	config.Mounts = []Mount{{Source: src, Target: "/x", Propagation: "sideways"}}
	if _, err := e.Create(t.Context(), config, Stdio{}); err == nil {
		t.Error("propagation sideways was accepted")
	}
}
