package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// createUnified makes the cgroup2 directory and turns controllers on above it.
func (g *Group) createUnified(wanted []string) error {
	for try := 0; ; try++ {
		err := makeDir(g.UnifiedDir())
		if err == nil {
			err = g.enable(wanted)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || try == 10 { // another container's Remove took an empty parent away
			return err
		}
	}
	b, err := readFile(filepath.Join(g.UnifiedDir(), "cgroup.type")) // Linux 4.14
	if kind := strings.TrimSpace(string(b)); err == nil && kind != "domain" {
		return fmt.Errorf("%s is a %q cgroup: a container needs one outside of threaded subtrees (cgroups(7))", g.UnifiedDir(), kind)
	}
	return nil
}

// enable turns the controllers on in every directory above the group's. Controllers
// that are not of the unified hierarchy are left out: dir reports them.
func (g *Group) enable(wanted []string) error {
	var names []string
	for _, c := range wanted {
		if c = unifiedName(c); g.host.V1[c] == "" && slices.Contains(g.host.Controllers, c) && !slices.Contains(names, c) {
			names = append(names, c)
		}
	}
	if len(names) == 0 {
		return nil
	}
	dir := g.host.Unified
	for _, next := range strings.Split(g.path, "/") {
		if err := enableIn(dir, names); err != nil {
			return err
		}
		dir = filepath.Join(dir, next)
	}
	return nil
}

// enableIn writes only what is missing, as every write stops all forks for a moment.
func enableIn(dir string, names []string) error {
	b, err := readFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	have := strings.Fields(string(b))
	var missing []string
	for _, n := range names {
		if !slices.Contains(have, n) {
			missing = append(missing, "+"+n)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	err = write(dir, "cgroup.subtree_control", strings.Join(missing, " "))
	switch {
	case errors.Is(err, unix.EBUSY):
		err = fmt.Errorf("%w: it has processes of its own, and a cgroup of v2 cannot have both them and limited children; move them into a child", err)
	case errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("%w: it is in a threaded subtree (cgroups(7))", err)
	case errors.Is(err, fs.ErrNotExist) && exists(dir, "cgroup.subtree_control"):
		err = errors.New("its parent does not hand these controllers down") // and not "the directory is gone"
	}
	if err != nil {
		return fmt.Errorf("turn on controllers %s in %s: %w", strings.Join(missing, " "), dir, err)
	}
	return nil
}

func exists(dir, file string) bool {
	_, err := os.Stat(filepath.Join(dir, file))
	return err == nil
}
