package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kill sends SIGKILL to everything in the group, also when it is frozen, and
// returns when nothing is left. A group that does not exist is empty.
func (g *Group) Kill(ctx context.Context) error {
	if err := g.valid(); err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	for wait := time.Millisecond / 4; ; wait = min(2*wait, 20*time.Millisecond) {
		if err := g.killOnce(); err != nil {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		empty, err := g.empty()
		if err != nil || empty {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

func (g *Group) killOnce() error {
	if dir := g.UnifiedDir(); dir != "" {
		err := write(dir, "cgroup.kill", "1") // Linux 5.14
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	pids, err := g.pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := killIn(pid, g.path); err != nil {
			return err
		}
	}
	if f := g.host.V1["freezer"]; f != "" && len(pids) > 0 {
		err := write(filepath.Join(f, g.path), "freezer.state", "THAWED") // v1 delivers SIGKILL on thawing only
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// killIn kills pid only if it still is in the group once a pidfd names it.
func killIn(pid int, path string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil || !memberOf(string(b), path) {
		return nil // it has ended or moved meanwhile
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// memberOf says whether a /proc/<pid>/cgroup has a line of this very group.
func memberOf(cgroups, path string) bool {
	for _, line := range strings.Split(cgroups, "\n") {
		f := strings.SplitN(line, ":", 3)
		if path != "" && len(f) == 3 && strings.TrimPrefix(f[2], "/") == path {
			return true
		}
	}
	return false
}

// valid refuses a path that would name a hierarchy's root, where every process
// of the machine is, or lead out of it.
func (g *Group) valid() error {
	if g.path == "" || g.path == "." || g.path != filepath.Clean(g.path) || !filepath.IsLocal(g.path) {
		return fmt.Errorf("invalid cgroup path %q", g.path)
	}
	return nil
}

// empty asks the unified hierarchy ("populated 0" in cgroup.events covers what
// is below as well), or reads the lists.
func (g *Group) empty() (bool, error) {
	if dir := g.UnifiedDir(); dir != "" {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return true, nil
		}
		return bytes.Contains(b, []byte("populated 0")), err
	}
	pids, err := g.pids()
	return len(pids) == 0, err
}

// pids lists the group's processes (or threads), in the first hierarchy that has it.
func (g *Group) pids() ([]int, error) {
	if err := g.valid(); err != nil {
		return nil, err
	}
	for _, file := range append([]string{filepath.Join(g.UnifiedDir(), "cgroup.procs")}, g.Tasks()...) {
		if !strings.HasPrefix(file, "/") {
			continue
		}
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var pids []int
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil && n > 0 {
				pids = append(pids, n)
			}
		}
		return pids, nil
	}
	return nil, nil
}

// Freeze stops all processes of the group, or lets them go on, and returns when
// that is so.
func (g *Group) Freeze(ctx context.Context, frozen bool) error {
	if err := g.valid(); err != nil {
		return fmt.Errorf("freeze cgroup: %w", err)
	}
	dir, file, value, done := g.UnifiedDir(), "cgroup.freeze", "0", "frozen 0"
	if frozen {
		value, done = "1", "frozen 1"
	}
	events := "cgroup.events"
	if dir == "" {
		dir, file, events, value = filepath.Join(g.host.V1["freezer"], g.path), "freezer.state", "freezer.state", "THAWED"
		if frozen {
			value = "FROZEN"
		}
		done = value
	}
	for {
		if err := write(dir, file, value); err != nil {
			return fmt.Errorf("freeze cgroup: %w", err)
		}
		b, err := os.ReadFile(filepath.Join(dir, events))
		if err != nil {
			return fmt.Errorf("freeze cgroup: %w", err)
		}
		if bytes.Contains(b, []byte(done)) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("freeze cgroup: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// Frozen says whether Freeze was called last with true.
func (g *Group) Frozen() bool {
	if g.valid() != nil {
		return false
	}
	dir, file, want := g.UnifiedDir(), "cgroup.freeze", "1"
	if dir == "" {
		dir, file, want = filepath.Join(g.host.V1["freezer"], g.path), "freezer.self_freezing", "1"
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	return err == nil && strings.TrimSpace(string(b)) == want
}

// Remove deletes the group's directories, those that processes of the container
// made below, and parents that have become empty. Nothing to remove is no error.
func (g *Group) Remove() error {
	if err := g.valid(); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	var errs []error
	seen := map[string]bool{}
	for _, mount := range g.host.mounts() {
		if !seen[mount] {
			seen[mount] = true
			errs = append(errs, removeTree(filepath.Join(mount, g.path)))
			removeParents(mount, filepath.Dir(g.path))
		}
	}
	return errors.Join(errs...)
}

func (h Host) mounts() []string {
	var all []string
	if h.Unified != "" {
		all = append(all, h.Unified)
	}
	for _, m := range h.V1 {
		all = append(all, m)
	}
	return all
}

// removeTree removes directories only, deepest first; a dying process keeps its
// directory busy for a moment.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	for try := 0; err != nil && !errors.Is(err, fs.ErrNotExist) && try < 50; try++ {
		entries, readErr := os.ReadDir(dir)
		if errors.Is(readErr, fs.ErrNotExist) {
			return nil
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		if err = unix.Rmdir(dir); errors.Is(err, unix.EBUSY) {
			time.Sleep(time.Duration(try) * 200 * time.Microsecond)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func removeParents(mount, path string) {
	for path != "." && path != "/" && unix.Rmdir(filepath.Join(mount, path)) == nil {
		path = filepath.Dir(path)
	}
}
