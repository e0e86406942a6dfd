package attacks

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/internal/loosen"
	"naru/sandbox/runtime"
	"naru/sandbox/runtime/launch/step"
)

// deadline bounds one container's run.
const deadline = 20 * time.Second

// box is one run of an attack: a container, and the canary around it.
type box struct {
	runtime.Config
	t     *testing.T
	layer string            // of the hostile image, over the common one
	host  string            // directory of the host with the file "canary"
	token string            // what the canary contains
	steps []stepEdit        // changes of the list of steps
	lan   *lan              // a network, where the row needs one
	drive func() result     // runs the container; default: to its end
	judge func(result) bool // whether the attack worked; default: exit code 42
	late  []change          // for the list of steps of an exec
}

type stepEdit func(step.Program) step.Program

// change takes something of a box away, or gives it something.
type change func(*box)

// result is how a run ended.
type result struct {
	code     int
	out, err string
	refused  error // no container was made
}

// common makes the layer that all images share: empty directories and the attacker.
var common = sync.OnceValues(makeCommon)

func makeCommon() (string, error) {
	dir, err := os.MkdirTemp("", "attacks-image")
	if err != nil {
		return "", err
	}
	for _, d := range []string{"etc", "tmp", "v"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	for name, mode := range map[string]os.FileMode{"attack": 0o755, "setuid": 0o755 | os.ModeSetuid, "filecaps": 0o755, "inherit": 0o755} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, program, 0o755), os.Chmod(path, mode)); err != nil {
			return "", err
		}
	}
	const dacOverride, effective, revision = 1 << unix.CAP_DAC_OVERRIDE, 1, 2
	return dir, errors.Join(
		unix.Setxattr(filepath.Join(dir, "filecaps"), "security.capability", fileCaps(effective, revision, dacOverride, 0), 0),
		unix.Setxattr(filepath.Join(dir, "inherit"), "security.capability", fileCaps(effective, revision, 0, dacOverride), 0))
}

// fileCaps is struct vfs_cap_data, capabilities(7).
func fileCaps(effective, revision byte, permitted, inheritable byte) []byte {
	b := make([]byte, 20)
	b[0], b[3], b[4], b[8] = effective, revision, permitted, inheritable
	return b
}

// newBox prepares the default container around a fresh canary.
func newBox(t *testing.T, userns bool) *box {
	t.Helper()
	image, err := common()
	must(t, err)
	base := t.TempDir()
	must(t, os.Chmod(filepath.Dir(base), 0o755)) // no attack may fail for this directory's mode
	id := "a" + strings.ToLower(rand.Text()[:12])
	var ids *runtime.IDRange
	if userns {
		ids = &runtime.IDRange{Base: 400000, Count: 65536}
	}
	b := &box{t: t, layer: filepath.Join(base, "layer"), host: filepath.Join(base, "host"), token: rand.Text()}
	for _, d := range []string{"layer", "host", "c", "upper", "work"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	must(t, os.WriteFile(b.canary(), []byte(b.token), 0o600))
	b.Config = runtime.Config{
		ID: id, Spec: runtime.DefaultSpec(ids), StateDir: filepath.Join(base, "run"), Dir: filepath.Join(base, "c"),
		Root:   runtime.Overlay{Lower: []string{image, b.layer}, Upper: filepath.Join(base, "upper"), Work: filepath.Join(base, "work")},
		Cgroup: "naru-attacks-" + id + "/c", LogMax: 1 << 20,
	}
	limit := int64(200)
	b.Spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	b.judge = func(r result) bool { return r.code == worked }
	b.drive = b.toEnd
	t.Cleanup(b.remove)
	return b
}

func (b *box) canary() string { return filepath.Join(b.host, "canary") }

// attack says what runs inside.
func (b *box) attack(name string, args ...string) {
	b.Spec.Process.Args = append([]string{"/attack", "attack", name}, args...)
}

// leaks judges by the token in the output.
func (b *box) leaks() { b.judge = func(r result) bool { return strings.Contains(r.out, b.token) } }

// overwrites judges by a changed canary file.
func (b *box) overwrites() {
	b.judge = func(result) bool {
		data, err := os.ReadFile(b.canary())
		must(b.t, err)
		return string(data) != b.token
	}
}

func (b *box) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	b.t.Cleanup(cancel)
	return b.loosened(ctx)
}

func (b *box) loosened(ctx context.Context) context.Context {
	return loosen.With(ctx, func(p step.Program) step.Program {
		for _, edit := range b.steps {
			p = edit(p)
		}
		return p
	})
}

// start makes the container and lets it run.
func (b *box) start() (*runtime.Container, error) {
	ctx := b.context()
	c, err := runtime.Create(ctx, b.Config)
	if err != nil {
		return nil, err
	}
	b.t.Cleanup(func() { c.Close() })
	return c, c.Start(ctx)
}

// toEnd runs the container to its end.
func (b *box) toEnd() result {
	c, err := b.start()
	if err != nil {
		return result{code: -1, refused: err}
	}
	return b.wait(c)
}

func (b *box) wait(c *runtime.Container) result {
	e, err := c.Wait(b.context())
	if err != nil {
		b.t.Fatalf("wait: %v", err)
	}
	var out, errs bytes.Buffer
	must(b.t, runtime.ReadLog(b.context(), b.Dir, runtime.LogOptions{}, &out, &errs))
	return result{code: e.Code, out: out.String(), err: errs.String()}
}

// exec runs one more process and returns its end.
func (b *box) exec(c *runtime.Container, p *specs.Process) result {
	out, err := os.CreateTemp(b.t.TempDir(), "out")
	must(b.t, err)
	defer out.Close()
	e, err := c.Exec(b.context(), runtime.ExecConfig{Process: p, Seccomp: b.Spec.Linux.Seccomp, Stdout: out, Stderr: out})
	if err != nil {
		return result{code: -1, refused: err}
	}
	_, err = out.Seek(0, io.SeekStart)
	must(b.t, err)
	data, err := io.ReadAll(out)
	must(b.t, err)
	return result{code: e.Code, out: string(data)}
}

// remove ends the container and checks that nothing of it is left.
func (b *box) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if c, err := runtime.Open(b.StateDir, b.Dir); err == nil {
		if err := c.Kill(ctx); err != nil {
			b.t.Errorf("kill: %v", err)
		}
		c.Close()
	}
	if err := runtime.Destroy(b.StateDir, b.Dir, b.Cgroup); err != nil {
		b.t.Errorf("destroy: %v", err)
	}
}

// file puts a file into the hostile layer.
func (b *box) file(path, content string, mode os.FileMode) {
	path = filepath.Join(b.layer, path)
	must(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(b.t, os.WriteFile(path, []byte(content), mode))
	must(b.t, os.Chmod(path, mode))
}

// link puts a symbolic link into the hostile layer.
func (b *box) link(path, target string) {
	path = filepath.Join(b.layer, path)
	must(b.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(b.t, os.Symlink(target, path))
}

// bind mounts a host path.
func (b *box) bind(source, target string) {
	b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: target, Source: source, Type: "bind", Options: []string{"rbind"}})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok or the time is over.
func eventually(within time.Duration, ok func() bool) bool {
	for end := time.Now().Add(within); !ok(); {
		if time.Now().After(end) {
			return false
		}
		<-time.After(2 * time.Millisecond)
	}
	return true
}
