package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// stepEnv makes this test binary the process of a step.
const stepEnv = "NARU_BUILD_TEST_STEP"

func TestMain(m *testing.M) {
	if s := os.Getenv(stepEnv); s != "" {
		fmt.Fprintln(os.Stderr, runStep(s))
		os.Exit(125)
	}
	if c := os.Getenv(crashEnv); c != "" {
		crashBuild(c)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// chrootExecutor runs steps in an overlay in a mount namespace of its own, and
// nothing else: the sandbox is tested elsewhere.
type chrootExecutor struct {
	dir   string // mount points are made here
	runs  *int
	steps *[]Step
}

// stepsMu guards what the executors note: stages run at once.
var stepsMu sync.Mutex

type stepProcess struct {
	Step
	Root string
}

func (e chrootExecutor) Run(ctx context.Context, s Step) (int, error) {
	stepsMu.Lock()
	*e.runs++
	*e.steps = append(*e.steps, s)
	stepsMu.Unlock()
	root, err := os.MkdirTemp(e.dir, "root")
	if err != nil {
		return 0, err
	}
	out := s.Out
	s.Out = nil
	data, err := json.Marshal(stepProcess{s, root})
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = []string{stepEnv + "=" + string(data)}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() != 125 {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func runStep(text string) error {
	var s stepProcess
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	lower := slices.Clone(s.Lower)
	slices.Reverse(lower)
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,volatile,redirect_dir=off,metacopy=off", strings.Join(lower, ":"), s.Upper, s.Work)
	if err := unix.Mount("overlay", s.Root, "overlay", 0, opts); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	// What a runtime leaves behind in an image that has no such places.
	for _, dir := range []string{"dev", "proc", "sys", "etc"} {
		_ = os.Mkdir(filepath.Join(s.Root, dir), 0o755)
	}
	if f, err := os.OpenFile(filepath.Join(s.Root, "etc/resolv.conf"), os.O_CREATE, 0o644); err == nil {
		f.Close()
	}
	if err := errors.Join(unix.Chroot(s.Root), os.MkdirAll(s.Dir, 0o755), os.Chdir(s.Dir)); err != nil {
		return err
	}
	u, err := user.GetExecUserPath(s.User, &user.ExecUser{Home: "/"}, "/etc/passwd", "/etc/group")
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Setgroups(u.Sgids), unix.Setgid(u.Gid), unix.Setuid(u.Uid)); err != nil {
		return err
	}
	env := append([]string{"HOME=" + u.Home}, s.Env...)
	for _, dir := range []string{"", "/bin/"} {
		if err := unix.Exec(dir+s.Args[0], s.Args, env); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	os.Exit(127)
	return nil
}

// world is a store, a cache and an executor.
type world struct {
	t     *testing.T
	dir   string
	store *image.Store
	runs  int
	steps []Step
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("building needs root: overlayfs and chown")
	}
	w := &world{t: t, dir: t.TempDir()}
	if err := os.Chmod(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.store, err = image.Open(filepath.Join(w.dir, "images")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(w.dir, "mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := image.Config{OS: "linux"}
	cfg.Config.Env = []string{"BASE=yes"}
	cfg.Config.Cmd = []string{"basecmd"}
	cfg.Config.Labels = map[string]string{"base": "1"}
	w.importTar("base", cfg, baseTar(t))
	return w
}

func (w *world) importTar(name string, cfg image.Config, data []byte) image.Image {
	w.t.Helper()
	img, err := w.store.Import(w.t.Context(), bytes.NewReader(data), name, cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return img
}

// tarEntry is short for a header with content.
type tarEntry struct {
	name, data, link string
	kind             byte
	mode             int64
	uid, gid         int
	pax              map[string]string
}

func makeTar(t *testing.T, entries ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			Size: int64(len(e.data)), ModTime: time.Unix(1_600_000_000, 0), PAXRecords: e.pax,
		}
		if e.pax != nil {
			h.Format = tar.FormatPAX
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// baseTar is busybox with a merged /usr, accounts and a few traps.
func baseTar(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no /bin/busybox to make a base image of")
	}
	dir := func(name string, mode int64) tarEntry { return tarEntry{name: name, kind: tar.TypeDir, mode: mode} }
	list := []tarEntry{
		dir("bin/", 0o755), dir("etc/", 0o755), dir("usr/", 0o755), dir("usr/lib/", 0o755), dir("tmp/", 0o1777), dir("proc/", 0o555),
		{name: "lib", kind: tar.TypeSymlink, link: "usr/lib", mode: 0o777},
		{name: "escape", kind: tar.TypeSymlink, link: "../../../../../../tmp", mode: 0o777},
		{name: "bin/busybox", kind: tar.TypeReg, mode: 0o755, data: string(busybox)},
		{name: "etc/passwd", kind: tar.TypeReg, mode: 0o644, data: "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nfar:x:70000:1::/:/bin/sh\n"},
		{name: "etc/group", kind: tar.TypeReg, mode: 0o644, data: "root:x:0:\nstaff:x:50:app\napp:x:1001:\n"},
		{name: "etc/hostfile", kind: tar.TypeSymlink, link: "/etc/shadow", mode: 0o777},
		{name: "owned", kind: tar.TypeReg, mode: 0o4755, uid: 7, gid: 8, data: "owned"},
	}
	for _, name := range []string{"sh", "cat", "ls", "id", "touch", "mkdir", "env", "ln", "chmod", "chown", "rm", "echo", "stat", "true", "false", "seq", "sleep", "pwd", "mv", "cp", "yes", "head", "kill", "printf"} {
		list = append(list, tarEntry{name: "bin/" + name, kind: tar.TypeSymlink, link: "busybox", mode: 0o777})
	}
	return makeTar(t, list...)
}

func (w *world) builder() *Builder {
	return New(w.store, chrootExecutor{filepath.Join(w.dir, "mnt"), &w.runs, &w.steps}, filepath.Join(w.dir, "cache"))
}

// context writes files into a new directory. "name@link" has the target as its
// content, "name/" is a directory; mode 0644, or 0755 for "name*".
func (w *world) context(files map[string]string) string {
	w.t.Helper()
	dir, err := os.MkdirTemp(w.dir, "ctx")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		writeFile(w.t, dir, name, files[name])
	}
	return dir
}

func writeFile(t *testing.T, dir, name, data string) {
	t.Helper()
	p := filepath.Join(dir, strings.TrimSuffix(strings.TrimSuffix(name, "*"), "@link"))
	err := os.MkdirAll(filepath.Dir(p), 0o755)
	switch {
	case strings.HasSuffix(name, "/"):
		err = errors.Join(err, os.MkdirAll(p, 0o755))
	case strings.HasSuffix(name, "@link"):
		err = errors.Join(err, os.Symlink(data, p))
	case strings.HasSuffix(name, "*"):
		err = errors.Join(err, os.WriteFile(p, []byte(data), 0o755))
	default:
		err = errors.Join(err, os.WriteFile(p, []byte(data), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// build builds and returns the log too.
func (w *world) build(o Options) (image.Image, string, error) {
	w.t.Helper()
	var log bytes.Buffer
	o.Out = &log
	img, err := w.builder().Build(w.t.Context(), o)
	return img, log.String(), err
}

// mustBuild builds what has to work.
func (w *world) mustBuild(o Options) (image.Image, string) {
	w.t.Helper()
	img, log, err := w.build(o)
	if err != nil {
		w.t.Fatalf("build: %v\n%s", err, log)
	}
	return img, log
}

// look describes a path of an image: "f 644 0:0 content", "d 755 0:0",
// "l target", or "-".
func (w *world) look(img image.Image, p string) string {
	w.t.Helper()
	lower, err := w.store.Lower(img)
	if err != nil {
		w.t.Fatal(err)
	}
	tree, err := w.builder().viewOf(lower)
	if err != nil {
		w.t.Fatal(err)
	}
	defer tree.Close()
	return describe(w.t, tree, strings.TrimPrefix(p, "/"))
}

func describe(t *testing.T, tree *root, p string) string {
	t.Helper()
	st, err := tree.lstat(p)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "-"
	}
	if err != nil {
		t.Fatal(err)
	}
	owner := fmt.Sprintf("%o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "d " + owner
	case unix.S_IFLNK:
		target, err := tree.readlink(p)
		if err != nil {
			t.Fatal(err)
		}
		return "l " + target
	case unix.S_IFREG:
		data, err := tree.readFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) == 0 {
			return "f " + owner
		}
		return "f " + owner + " " + string(data)
	}
	return fmt.Sprintf("%o %s", st.Mode&unix.S_IFMT, owner)
}
