package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"naru/sandbox/image/layer/layertest"
)

const crashEnv = "NARU_IMAGE_TEST_CRASH" // "point,root,fixtures,host" in the killed child

func TestMain(m *testing.M) {
	if how := os.Getenv(crashEnv); how != "" {
		os.Exit(crashChild(strings.SplitN(how, ",", 4)))
	}
	os.Exit(m.Run())
}

// life is what happens to a store in these tests: one of each operation. It
// may run again on what a killed one left.
type life struct {
	store    *Store
	fixtures string // a directory with import.tar and archive.tar
	host     string // a registry with the image x

	mu        sync.Mutex
	operation string
	at        func(point string) // called at every step, with "operation: step"
}

func newLife(s *Store, fixtures, host string, at func(string)) *life {
	l := &life{store: s, fixtures: fixtures, host: host, at: at}
	s.step = func(name string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.at(l.operation + ": " + name)
	}
	return l
}

func (l *life) run() error {
	for _, op := range []struct {
		name string
		do   func() error
	}{
		{"import", l.importTar}, {"build", l.build},
		{"pull", func() error { _, err := l.store.Pull(ctx, l.host+"/x", PullOptions{}); return err }},
		{"load", l.load},
		{"tag", func() error { return l.store.Tag("imported", "other") }},
		{"save", func() error { return l.store.Save(ctx, io.Discard, "built:1") }},
		{"push", l.push},
		{"remove", func() error { return errors.Join(l.store.Remove("other", false), l.store.Remove("imported", false)) }},
		{"prune", func() error {
			_, err := l.store.Prune(ctx, func(img Image) bool { return !slices.Contains(img.Names, "built:1") })
			return err
		}},
	} {
		l.mu.Lock()
		l.operation = op.name
		l.mu.Unlock()
		l.store.step("begin")
		if err := op.do(); err != nil {
			return fmt.Errorf("%s: %w", op.name, err)
		}
	}
	return nil
}

func (l *life) importTar() error {
	f, err := os.Open(filepath.Join(l.fixtures, "import.tar"))
	if err != nil {
		return err
	}
	_, err = l.store.Import(ctx, f, "imported", Config{Created: &epoch})
	return errors.Join(err, f.Close())
}

func (l *life) load() error {
	f, err := os.Open(filepath.Join(l.fixtures, "archive.tar"))
	if err != nil {
		return err
	}
	_, err = l.store.Load(ctx, f, LoadOptions{})
	return errors.Join(err, f.Close())
}

func (l *life) push() error {
	to := l.host + "/pushed:1"
	if err := l.store.Tag("built:1", to); err != nil {
		return err
	}
	if _, err := l.store.Push(ctx, to, PushOptions{}); err != nil {
		return err
	}
	return l.store.Remove(to, false)
}

func (l *life) build() error {
	base, err := l.store.Get("imported")
	if err != nil {
		return err
	}
	upper, err := l.store.NewLayer()
	if err != nil {
		return err
	}
	l.store.step("layer made")
	path := filepath.Join(upper.Upper, "f")
	if err := errors.Join(os.WriteFile(path, []byte("f"), 0o600), os.Chtimes(path, epoch, epoch)); err != nil {
		return err
	}
	diffID, err := l.store.Commit(ctx, upper)
	if err != nil {
		return err
	}
	l.store.step("layer committed")
	_, err = l.store.Put(ctx, base.Config, append(base.Layers, diffID), "built:1")
	return err
}

// crashChild runs a life and kills itself at a point.
func crashChild(how []string) int {
	s, err := Open(how[1])
	if err == nil {
		err = newLife(s, how[2], how[3], func(point string) {
			if point == how[0] {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // until it arrives
			}
		}).run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A process is killed at each step of each operation, and at some moments
// between. The store it leaves is whole, and the same operations then work on
// it and give what they give without a crash.
func TestKilledAtEveryStep(t *testing.T) {
	fixtures, host := crashFixtures(t)
	s := newStore(t)
	var points []string
	if err := newLife(s, fixtures, host, func(p string) {
		if !slices.Contains(points, p) {
			points = append(points, p)
		}
	}).run(); err != nil {
		t.Fatal(err)
	}
	want := contents(t, s)
	if len(points) < 30 {
		t.Fatalf("only %d points: %q", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "images")
			out, err := crashCommand(point, root, fixtures, host).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child was not killed: %v\n%s", err, out)
			}
			checkAfterCrash(t, root, want, func(s *Store) *life { return newLife(s, fixtures, host, func(string) {}) })
		})
	}
	for _, delay := range []time.Duration{3, 8, 15, 25, 40, 70} {
		t.Run(fmt.Sprintf("after %d ms", delay), func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "images")
			cmd := crashCommand("never", root, fixtures, host)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			timer := time.AfterFunc(delay*time.Millisecond, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait() // killed, or done before
			timer.Stop()
			checkAfterCrash(t, root, want, func(s *Store) *life { return newLife(s, fixtures, host, func(string) {}) })
		})
	}
}

func crashFixtures(t *testing.T) (fixtures, host string) {
	t.Helper()
	_, _, archive := saved(t)
	fixtures = t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(fixtures, "archive.tar"), archive, 0o600),
		os.WriteFile(filepath.Join(fixtures, "import.tar"), layertest.Tar(t, threeLayers()[0]...), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	host = inProcess(t, nil)
	push(t, host+"/x", umociImage(t))
	return fixtures, host
}

func crashCommand(how ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashEnv+"="+strings.Join(how, ","))
	return cmd
}

func checkAfterCrash(t *testing.T, root, want string, again func(*Store) *life) {
	t.Helper()
	s := openStore(t, root)
	checkStore(t, s)
	if err := again(s).run(); err != nil {
		t.Fatalf("again: %v", err)
	}
	checkStore(t, s)
	if diff := cmp.Diff(want, contents(t, s)); diff != "" {
		t.Errorf("images (-without +with crash):\n%s", diff)
	}
}

// contents says which images a store has, with their names and layers.
func contents(t *testing.T, s *Store) string {
	t.Helper()
	images, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, img := range images {
		fmt.Fprintln(&b, img.ID, img.Names, img.Layers, img.Size)
	}
	layers, err := os.ReadDir(s.path("layers"))
	if err != nil {
		t.Fatal(err)
	}
	used := map[digest.Digest]bool{}
	for _, img := range images {
		for _, l := range img.Layers {
			used[l] = true
		}
	}
	if len(layers) < len(used) {
		t.Errorf("%d layers on disk, %d used", len(layers), len(used))
	}
	return b.String()
}
