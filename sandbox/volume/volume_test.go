package volume

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "volumes"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVolumesComeAndGo(t *testing.T) {
	s := open(t)
	fills := 0
	fill := func(dir string) error {
		fills++
		return os.WriteFile(filepath.Join(dir, "seed"), []byte("seed"), 0o600)
	}
	v, err := s.Create("data", map[string]string{"a": "b"}, fill)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(v.Path, "seed")); err != nil || v.Labels["a"] != "b" || v.Created.IsZero() {
		t.Errorf("%+v, %v", v, err)
	}
	again, err := s.Create("data", nil, fill)
	if err != nil || again.Path != v.Path || fills != 1 {
		t.Errorf("made twice: %+v, %v, filled %d times", again, err, fills)
	}
	if _, err := s.Create("another", nil, nil); err != nil {
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Name != "another" {
		t.Errorf("%+v, %v", list, err)
	}
	if err := s.Remove("data"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("data"); !errors.Is(err, ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
	if err := s.Remove("data"); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
}

func TestNamesCannotLeaveTheStore(t *testing.T) {
	s := open(t)
	for _, name := range []string{"", ".", "..", "../x", "a/b", ".new-1", "-x", "a b", "a\x00"} {
		if _, err := s.Create(name, nil, nil); err == nil {
			t.Errorf("%q was taken", name)
		}
		if _, err := s.Get(name); err == nil {
			t.Errorf("%q was found", name)
		}
	}
}

func TestAFailedFillLeavesNothing(t *testing.T) {
	s := open(t)
	failure := errors.New("no")
	if _, err := s.Create("data", nil, func(string) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestRacingCreatorsGetOneVolume(t *testing.T) {
	s := open(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			v, err := s.Create("data", nil, nil)
			if err != nil || v.Name != "data" {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
	all.Wait()
	if left, err := os.ReadDir(s.dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestSweepRemovesWhatACrashLeft(t *testing.T) {
	s := open(t)
	for _, name := range []string{".new-1", ".rm-1", ".new-2"} {
		if err := os.MkdirAll(filepath.Join(s.dir, name, dataDir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(s.dir, ".new-1"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) != 1 || left[0].Name() != ".new-2" {
		t.Errorf("left: %v, %v; want only the one that may be in the making", left, err)
	}
}

func TestDiscardDoesNotEmptyWhatIsMounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	behind, dir := t.TempDir(), filepath.Join(t.TempDir(), "tree")
	if err := os.WriteFile(filepath.Join(behind, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "a", "mounted")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // one on top of the other
		if err := unix.Mount(behind, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := Discard(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(behind, "precious")); err != nil {
		t.Errorf("what was mounted is gone: %v", err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tree is still there: %v", err)
	}
	if err := Discard(dir); err != nil {
		t.Errorf("a second time: %v", err)
	}
}
