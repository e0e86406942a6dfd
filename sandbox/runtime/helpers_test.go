package runtime

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch"
)

func TestMain(m *testing.M) {
	launch.Main()
	if os.Getenv(envCreator) != "" {
		actAsCreator()
	}
	os.Exit(m.Run())
}

// busybox makes a root file system of Debian's static busybox, one layer.
func busybox(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "busybox")
	for _, d := range []string{"bin", "etc", "tmp", "root"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs a static /bin/busybox:", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), bin, 0o755))
	list, err := exec.Command("/bin/busybox", "--list").Output()
	must(t, err)
	for _, name := range strings.Fields(string(list)) {
		if name != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// box is a container of the test's own, removed at its end.
type box struct {
	Config
	out, err bytes.Buffer
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// haveUserNS says whether the kernel id-maps the layers of an overlay (Linux 5.19).
var haveUserNS = sync.OnceValue(func() bool { return Features().Has(FeatureUserNS) })

// needUserNS skips what is about user namespaces themselves.
func needUserNS(t testing.TB) {
	t.Helper()
	if !haveUserNS() {
		t.Skip("needs " + FeatureUserNS)
	}
}

// newBox prepares a config with busybox. With userns it gets a user namespace
// where there are any: most promises do not depend on it.
func newBox(t testing.TB, userns bool, args ...string) *box {
	t.Helper()
	needRoot(t)
	base := t.TempDir()
	sum := sha256.Sum256([]byte(base))
	id := "t" + hex.EncodeToString(sum[:6])
	var ids *IDRange
	if userns && haveUserNS() {
		ids = &IDRange{Base: 300000, Count: 65536}
	}
	b := &box{Config: Config{
		ID: id, Spec: DefaultSpec(ids), StateDir: filepath.Join(base, "run"), Dir: filepath.Join(base, "c"),
		Root:   Overlay{Lower: []string{busybox(t)}, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work")},
		Cgroup: "naru-test-" + id + "/c",
	}}
	for _, d := range []string{"c", "upper", "work"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	b.Spec.Process.Args = args
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if c, err := Open(b.StateDir, b.Dir); err == nil {
			c.Kill(ctx)
			c.Wait(ctx)
			c.Close()
		}
		if err := Destroy(b.StateDir, b.Dir, b.Cgroup); err != nil {
			t.Errorf("destroy: %v", err)
		}
		for _, place := range []string{"/sys/fs/cgroup/*/naru-test-", "/sys/fs/cgroup/naru-test-"} { // v1 and hybrid, v2
			if left, _ := filepath.Glob(place + id); len(left) > 0 {
				t.Errorf("cgroups are left: %v", left)
			}
		}
	})
	return b
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// run creates, starts and waits, and returns stdout, stderr and the exit.
func (b *box) run(t testing.TB) (string, string, Exit) {
	t.Helper()
	ctx := testContext(t)
	c := b.create(t)
	must(t, c.Start(ctx))
	e, err := c.Wait(ctx)
	must(t, err)
	b.out.Reset()
	b.err.Reset()
	must(t, ReadLog(ctx, b.Dir, LogOptions{}, &b.out, &b.err))
	return b.out.String(), b.err.String(), e
}

func (b *box) create(t testing.TB) *Container {
	t.Helper()
	c, err := Create(testContext(t), b.Config)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func owner(t testing.TB, path string) (uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	return st.Uid, st.Gid
}

func memoryLimit(bytes int64) *specs.LinuxMemory {
	return &specs.LinuxMemory{Limit: &bytes, Swap: &bytes}
}
