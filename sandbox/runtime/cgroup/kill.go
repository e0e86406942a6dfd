package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
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
		if errors.Is(err, unix.ENODEV) {
			return nil // somebody removes it: another OCI runtime does, at the container's end
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	pids, err := g.Pids()
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
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}

// killIn kills pid only if it still is in the group once a pidfd names it.
func killIn(pid int, path string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // gone, but its number is still a session's
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b, err := readFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil || !memberOf(string(b), path) {
		return nil // it has ended or moved meanwhile
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// memberOf says whether a /proc/<pid>/cgroup has a line of this very group or of one
// below it.
func memberOf(cgroups, path string) bool {
	for _, line := range strings.Split(cgroups, "\n") {
		f := strings.SplitN(line, ":", 3)
		if path == "" || len(f) != 3 {
			continue
		}
		if p := strings.TrimPrefix(f[2], "/"); p == path || strings.HasPrefix(p, path+"/") {
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
		b, err := readFile(filepath.Join(dir, "cgroup.events"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return true, nil
		}
		return bytes.Contains(b, []byte("populated 0")), err
	}
	pids, err := g.Pids()
	return len(pids) == 0, err
}

// Pids lists the group's processes and those of groups below it, as numbers of the
// caller's pid namespace, in order. A group that does not exist has none.
func (g *Group) Pids() ([]int, error) {
	if err := g.valid(); err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	dir := g.UnifiedDir()
	for _, c := range controllers() {
		if dir == "" {
			dir = g.v1Dir(c)
		}
	}
	if dir == "" {
		return nil, nil
	}
	pids, err := pidsBelow(dir)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return pids, nil
}

// pidsBelow reads a directory and all below. Groups come and go meanwhile.
func pidsBelow(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			var b []byte
			b, err = readFile(filepath.Join(path, "cgroup.procs"))
			for _, f := range strings.Fields(string(b)) {
				if n, err := strconv.Atoi(f); err == nil && n > 0 {
					pids = append(pids, n)
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // gone, or threaded: its processes are in the list of the domain above
		}
		return err
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}
