package overlay

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMount stacks more layers than a string of fsconfig(2) can name, below a
// path with everything that overlayfs' options could stumble over.
func TestMount(t *testing.T) {
	needRoot(t)
	base := filepath.Join(t.TempDir(), `a,b:c\d e`)
	before := mounts(t)
	d := Dirs{Upper: filepath.Join(base, "up,per"), Work: filepath.Join(base, "w:ork")}
	for i := range 120 {
		d.Lower = append(d.Lower, filepath.Join(base, fmt.Sprintf("layer %d", i)))
	}
	for _, dir := range append([]string{d.Upper, d.Work}, d.Lower...) {
		must(t, os.MkdirAll(dir, 0o755))
	}
	must(t, os.WriteFile(filepath.Join(d.Lower[0], "bottom"), nil, 0o644))
	for i, dir := range d.Lower {
		must(t, os.WriteFile(filepath.Join(dir, "who"), fmt.Append(nil, i), 0o644))
	}

	fd, err := MountDirs(d, []string{"index=off", "metacopy=off"}, unix.MS_NODEV)
	must(t, err)
	root := fmt.Sprintf("/proc/self/fd/%d/", fd)
	who, err := os.ReadFile(root + "who")
	if err != nil || string(who) != "119" {
		t.Errorf("the top layer is %q (%v), want 119", who, err)
	}
	must(t, os.WriteFile(root+"new", nil, 0o600))
	must(t, os.Remove(root+"bottom"))
	if _, err := os.Stat(filepath.Join(d.Upper, "new")); err != nil {
		t.Error("what is written is not in upper:", err)
	}
	if _, err := os.Stat(filepath.Join(d.Lower[0], "bottom")); err != nil {
		t.Error("a lower layer was changed:", err)
	}
	must(t, unix.Close(fd))
	if after := mounts(t); after != before {
		t.Errorf("mounts are left:\n%s\nbefore:\n%s", after, before)
	}
}

// TestMountRefused leaves nothing either.
func TestMountRefused(t *testing.T) {
	needRoot(t)
	dir, before := t.TempDir(), mounts(t)
	if _, err := MountDirs(Dirs{Lower: []string{dir, dir}}, []string{"no_such_option=1"}, 0); err == nil {
		t.Error("an unknown option was accepted")
	}
	if _, err := MountDirs(Dirs{Lower: []string{filepath.Join(dir, "missing")}}, nil, 0); !os.IsNotExist(err) {
		t.Errorf("a missing layer: %v", err)
	}
	if after := mounts(t); after != before {
		t.Errorf("mounts are left:\n%s", after)
	}
}

// mounts is what this process' namespace has, as seen by any of its threads.
func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	must(t, err)
	return string(b)
}

// TestMountSparesChildren: a child with a parent-death signal ends with the
// thread that started it, so no thread may end by a mount.
func TestMountSparesChildren(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	lower := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for _, d := range lower {
		must(t, os.Mkdir(d, 0o755))
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				cmd := exec.Command("sleep", "60")
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				fd, err := MountDirs(Dirs{Lower: lower}, nil, unix.MS_RDONLY)
				if err != nil {
					t.Error(err)
				} else {
					unix.Close(fd)
				}
				cmd.Process.Kill()
				var exit *exec.ExitError
				if err := cmd.Wait(); errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Error("a child got the parent-death signal")
				}
			}
		})
	}
	all.Wait()
}
