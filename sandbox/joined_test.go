package sandbox

import (
	"bytes"
	"strings"
	"testing"
)

// TestExecEntersJoinedNamespaces: an exec belongs where the container's program is, also
// where that is another container's namespace, and not the host's.
func TestExecEntersJoinedNamespaces(t *testing.T) {
	e := newEngine(t)
	first := sh("echo ready; sleep 1000")
	first.UserNS = UserNSHost
	one := runReady(t, e, first)
	c := sh("ls -l /proc/self/ns; echo ready; sleep 1000")
	c.Network = NetworkContainer + one.Name
	c.Namespaces = Namespaces{IPC: "container:" + one.Name, UTS: "container:" + one.Name}
	two := runReady(t, e, c)
	var out bytes.Buffer
	if code, err := execTo(t, e, two.ID, &out, ExecOptions{Args: []string{"ls", "-l", "/proc/self/ns"}}); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	for _, kind := range []string{"net", "ipc", "uts", "mnt", "pid", "cgroup"} {
		want, got := namespaceIn(logOf(t, e, two.ID), kind), namespaceIn(out.String(), kind)
		if want == "" || got != want {
			t.Errorf("%s: exec is in %q, the program in %q", kind, got, want)
		}
	}
}

// namespaceIn finds "net:[4026531840]" in the output of ls.
func namespaceIn(ls, kind string) string {
	for word := range strings.FieldsSeq(ls) {
		if strings.HasPrefix(word, kind+":[") {
			return word
		}
	}
	return ""
}
