package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

func TestCommand(t *testing.T) {
	img := image.RunConfig{ImageConfig: v1.ImageConfig{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}}}
	for _, test := range []struct {
		name             string
		entrypoint, args []string
		want             string
	}{
		{"the image's own", nil, nil, "entry cmd"},
		{"arguments replace the command", nil, []string{"a", "b"}, "entry a b"},
		{"an entrypoint drops the command", []string{"mine"}, nil, "mine"},
		{"an empty entrypoint clears it", []string{""}, []string{"a"}, "a"},
		{"nothing is left", []string{""}, nil, ""},
	} {
		argv, err := command(ContainerConfig{Entrypoint: test.entrypoint, Args: test.args}, img)
		if strings.Join(argv, " ") != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s: %q, %v", test.name, argv, err)
		}
	}
}

func TestEnvironmentLaterWins(t *testing.T) {
	got := environment([]string{"A=1", "B=2"}, []string{"B=3", "C=x=y"}, []string{"A="})
	if want := []string{"A=", "B=3", "C=x=y"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{"TERM": 15, "SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37} {
		if got, err := ParseSignal(text); got != want || err != nil {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "65", "-1", "NONE", "SIGRTMIN+99"} {
		if got, err := ParseSignal(text); err == nil {
			t.Errorf("%q was taken as %d", text, got)
		}
	}
}

func TestConfigRefusals(t *testing.T) {
	for name, change := range map[string]func(*ContainerConfig){
		"no image":          func(c *ContainerConfig) { c.Image = "" },
		"name with a slash": func(c *ContainerConfig) { c.Name = "../x" },
		"tiny memory":       func(c *ContainerConfig) { c.Memory = 1 },
		"negative cpus":     func(c *ContainerConfig) { c.CPUs = -1 },
		"environment":       func(c *ContainerConfig) { c.Env = []string{"=x"} },
		"relative workdir":  func(c *ContainerConfig) { c.Workdir = "x" },
		"mount on the root": func(c *ContainerConfig) { c.Mounts = []Mount{{Source: "/tmp", Target: "/x/.."}} },
		"two mounts": func(c *ContainerConfig) {
			c.Mounts = []Mount{{Source: "/tmp", Target: "/x"}, {Source: "/tmp", Target: "/x/"}}
		},
		"volume name":         func(c *ContainerConfig) { c.Mounts = []Mount{{Source: "..", Target: "/x", Volume: true}} },
		"host name":           func(c *ContainerConfig) { c.Hostname = "a b" },
		"unknown userns mode": func(c *ContainerConfig) { c.UserNS = "private" },
	} {
		c := ContainerConfig{Image: "busybox"}
		change(&c)
		if err := c.complete(); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// A power cut may leave files of the run directory cut off, where it is on a disk.
func TestRunFileCutOffCountsAsMissing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "started.json")
	for _, content := range []string{"", "{\"started\"", "\x00\x00"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if found, err := loadRun(path, new(starting)); found || err != nil {
			t.Errorf("%q: %v, %v", content, found, err)
		}
	}
}

// view makes a root view of a directory of the test.
func view(t *testing.T, files map[string]string) *rootView {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v, err := viewLayers([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func TestLookup(t *testing.T) {
	v := view(t, map[string]string{
		"etc/passwd": "root:x:0:0::/root:\nweb:x:33:34::/srv:\nhuge:x:4294967296:0::/:\nfar:x:70000:0::/:\n",
		"etc/group":  "root:x:0:\nmail:x:8:web,root\nweb:x:34:\n",
	})
	for _, test := range []struct {
		who      string
		uid, gid uint32
		groups   []uint32
		home     string
	}{
		{"", 0, 0, []uint32{8}, "/root"},
		{"web", 33, 34, []uint32{8}, "/srv"},
		{"web:mail", 33, 8, nil, "/srv"},
		{"33", 33, 34, []uint32{8}, "/srv"},
		{"1000", 1000, 0, nil, "/"},
		{"1000:1000", 1000, 1000, nil, "/"},
	} {
		a, err := v.lookup(test.who)
		if err != nil || a.UID != test.uid || a.GID != test.gid || a.Home != test.home || !slices.Equal(a.AdditionalGids, test.groups) {
			t.Errorf("%q: %+v, %v", test.who, a, err)
		}
	}
	for _, who := range []string{"nobody", "huge", "far", "4294967296", "4294967296:4294967296", "-1", "65536", "1000:nogroup", "99999999999999999999"} {
		if a, err := v.lookup(who); err == nil {
			t.Errorf("%q became %+v", who, a.User)
		}
	}
}

func TestViewDoesNotLeaveTheRoot(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:0:0::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{outside, "../../../../../../.." + outside, "/proc/self/root" + outside} {
		v := view(t, map[string]string{"etc/passwd": "-> " + target})
		if _, err := v.lookup("evil"); err == nil {
			t.Errorf("a link to %s was followed out of the image", target)
		}
	}
	v := view(t, map[string]string{"etc/x": ""})
	if err := unix.Mkfifoat(v.fd, "etc/passwd", 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.lookup("root"); err == nil {
		t.Error("a fifo was read as passwd")
	}
}

func TestCopyDirCopiesLinksAndStaysInside(t *testing.T) {
	outside := t.TempDir()
	v := view(t, map[string]string{"data/file": "content", "data/sub/deep": "deep", "data/out": "-> " + outside, "link": "-> data", "plain": "x"})
	to := t.TempDir()
	if err := v.copyDir(t.Context(), "/link", to); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(to, "sub/deep")); err != nil || string(data) != "deep" {
		t.Errorf("%q, %v", data, err)
	}
	if target, err := os.Readlink(filepath.Join(to, "out")); err != nil || target != outside {
		t.Errorf("link: %q, %v", target, err)
	}
	for _, path := range []string{"/missing", "/plain"} {
		empty := t.TempDir()
		if err := v.copyDir(t.Context(), path, empty); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if left, err := os.ReadDir(empty); err != nil || len(left) > 0 {
			t.Errorf("%s: copied %v, %v", path, left, err)
		}
	}
}

func TestLayersAreStackedForTheView(t *testing.T) {
	needRoot(t)
	bottom, top := t.TempDir(), t.TempDir()
	for dir, content := range map[string]string{bottom: "root:x:0:0::/old:\n", top: "root:x:0:0::/new:\n"} {
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v, err := viewLayers([]string{bottom, top})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if a, err := v.lookup("root"); err != nil || a.Home != "/new" {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestLocksEndWithTheirDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, lockFile)
	held, err := tryLock(path, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tryLock(path, unix.LOCK_EX); !errors.Is(err, ErrBusy) {
		t.Errorf("locked twice: %v", err)
	}
	waiting := make(chan error, 1)
	go func() {
		l, err := waitLock(t.Context(), path, unix.LOCK_EX)
		l.Unlock()
		waiting <- err
	}()
	if err := os.Rename(dir, dir+"-gone"); err != nil {
		t.Fatal(err)
	}
	held.Unlock()
	if err := <-waiting; !errors.Is(err, ErrNotFound) {
		t.Errorf("the lock of a removed container was given: %v", err)
	}
}
