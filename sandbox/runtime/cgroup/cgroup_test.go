package cgroup

import (
	"testing"
)

// A path that names a hierarchy's root would kill every process of the machine.
func TestPathsThatAreNoGroupAreRefused(t *testing.T) {
	h := Host{Unified: t.TempDir(), V1: map[string]string{"memory": t.TempDir()}}
	for _, path := range []string{"", ".", "/", "..", "../x", "a/..", "a//b", "a/", "/a"} {
		g := h.Open(path)
		for name, err := range map[string]error{
			"kill": g.Kill(t.Context()), "freeze": g.Freeze(t.Context(), true), "remove": g.Remove(),
		} {
			if err == nil {
				t.Errorf("%s of %q was accepted", name, path)
			}
		}
		if pids, err := g.Pids(); err == nil {
			t.Errorf("pids of %q: %v", path, pids)
		}
		if _, err := h.Create(path, nil); err == nil {
			t.Errorf("create of %q was accepted", path)
		}
	}
}

func TestMemberOfIsExact(t *testing.T) {
	const file = "8:pids:/naru-1/abc\n0::/naru-1/abc\n"
	for path, want := range map[string]bool{"naru-1/abc": true, "naru-1/ab": false, "naru-1/abc/d": false, "naru-1": true, "": false, "abc": false} {
		if memberOf(file, path) != want {
			t.Errorf("memberOf(%q) = %v", path, !want)
		}
	}
	if memberOf("0::/\n", "naru-1") {
		t.Error("a process in the root is no member")
	}
}
