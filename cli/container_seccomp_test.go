package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSeccompOption runs a container with each form of the option; chown is what the
// custom profile refuses to containers without a capability.
func TestSeccompOption(t *testing.T) {
	c := newConsole(t)
	custom, broken := filepath.Join(t.TempDir(), "custom.json"), filepath.Join(t.TempDir(), "broken.json")
	for path, text := range map[string]string{
		custom: `{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}], "syscalls": [
			{"names": ["chown", "fchownat", "lchown"], "action": "SCMP_ACT_ERRNO", "errno": "EXDEV", "excludes": {"caps": ["CAP_SYS_TIME"]}}]}`,
		broken: `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "four"}}]}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	script := "grep Seccomp: /proc/self/status; touch /f; chown 1 /f 2>&1"
	for _, test := range []struct {
		args []string
		want string // of the output
	}{
		{[]string{"--security-opt", "seccomp=builtin"}, "Seccomp:\t2\n"},
		{[]string{"--security-opt", "seccomp=unconfined"}, "Seccomp:\t0\n"},
		{[]string{"--security-opt", "seccomp=" + custom}, "Seccomp:\t2\nchown: /f: Invalid cross-device link\n"},
		{[]string{"--security-opt", "seccomp=" + custom, "--cap-add", "SYS_TIME"}, "Seccomp:\t2\n"},
	} {
		args := append(append([]string{"run", "--rm", "--network", "none"}, test.args...), "busybox", "sh", "-c", script+"; true")
		if out := c.ok(args...); out != test.want {
			t.Errorf("%v: %q, want %q", test.args, out, test.want)
		}
	}
	_, _, err := c.naruIn(t.Context(), nil, "run", "--rm", "--security-opt", "seccomp="+broken, "busybox", "true")
	if err == nil || !strings.Contains(err.Error(), `syscalls[0].includes.minKernel: "four"`) {
		t.Errorf("a profile that is not understood: %v", err)
	}
}
