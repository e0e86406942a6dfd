package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// MakeElsewhere makes the group in the v1 hierarchies where Create has no use for it,
// and its parents with it. Another OCI runtime enters all hierarchies; parents that it
// had to make itself would stay for ever, as nobody knows whose they are.
func (g *Group) MakeElsewhere() error {
	if err := g.valid(); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	others, err := otherMounts(g.host)
	for _, mount := range append(slices.Collect(maps.Values(g.host.V1)), others...) {
		if err == nil {
			err = makeDir(filepath.Join(mount, g.path))
		}
	}
	if mount := g.host.V1["cpuset"]; mount != "" && err == nil {
		err = inheritCpuset(mount, g.path)
	}
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// RemoveElsewhere removes what Remove does not look at: the group in hierarchies that
// this package has no use for.
func (g *Group) RemoveElsewhere() error {
	if err := g.valid(); err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	others, err := otherMounts(g.host)
	for _, mount := range others {
		err = errors.Join(err, removeTree(filepath.Join(mount, g.path)))
		removeParents(mount, filepath.Dir(g.path))
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}

// otherMounts are v1 hierarchies without a controller of ours, such as name=systemd.
func otherMounts(h Host) (list []string, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	known := slices.Collect(maps.Values(h.V1))
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if dash < 5 || len(f) < dash+4 || f[3] != "/" || f[dash+1] != "cgroup" || slices.Contains(known, f[4]) || slices.Contains(list, f[4]) {
			continue
		}
		list = append(list, f[4])
	}
	return list, nil
}
