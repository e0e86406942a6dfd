package cli

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// otherRuntimes are runc, and our own command line in the place of another runtime's: this
// test binary, called naru-oci.
func otherRuntimes(t *testing.T) map[string]string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{ociName: filepath.Join(t.TempDir(), ociName)}
	if err := os.Symlink(exe, list[ociName]); err != nil {
		t.Fatal(err)
	}
	if runc, err := exec.LookPath("runc"); err == nil {
		list["runc"] = runc
	} else {
		t.Log("without runc: ", err)
	}
	return list
}

// TestOtherRuntimes types what a person would, with each runtime.
func TestOtherRuntimes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	for name, path := range otherRuntimes(t) {
		t.Run(name, func(t *testing.T) {
			c := newConsole(t)
			runAndCreate(t, c, path)
			verbsOf(t, c, path)
			endsOf(t, c, path)
		})
	}
}

func runAndCreate(t *testing.T, c console, path string) {
	out, errs, err := c.naruIn(t.Context(), nil, "run", "--rm", "--network", "none", "--runtime", path, "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
	if e, ok := err.(*ExitError); !ok || e.Code != 7 || out != "out\n" || !strings.Contains(errs, "err\n") {
		t.Errorf("run: %v, %q, %q", err, out, errs)
	}
	for command, want := range map[string]int{"nope": 127, "/bin": 126} {
		if code := c.code("run", "--rm", "--network", "none", "--runtime", path, "busybox", command); code != want {
			t.Errorf("run %s: exit code %d, want %d", command, code, want)
		}
	}
	_, errs, err = c.naruIn(t.Context(), nil, "create", "--name", "made", "--network", "none", "--runtime", path, "busybox", "echo", "later")
	if err != nil || !strings.Contains(errs, "WARNING: runtime "+path+": ") {
		t.Errorf("create: %v, %q", err, errs)
	}
	if out := c.ok("inspect", "--format", "{{.HostConfig.Runtime}}", "made"); out != path+"\n" {
		t.Errorf("inspect shows runtime %q", out)
	}
	if out := c.ok("start", "-a", "made"); out != "later\n" {
		t.Errorf("start says %q", out)
	}
}

func verbsOf(t *testing.T, c console, path string) {
	dir := t.TempDir()
	marker := filepath.Join(dir, "marker")
	if err := os.WriteFile(marker, []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := "mkdir -p " + dir + "; echo container > " + marker + "; trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
	c.ok("run", "-d", "--name", "on", "--runtime", path, "-v", "data:/data", "--memory", "64m", "busybox", "sh", "-c", script)
	waitFor(t, "it is ready", func() bool { return strings.Contains(c.ok("logs", "on"), "ready") })
	for _, args := range [][]string{
		{"exec", "on", "cat", marker},
		{"exec", "-u", "0:0", "on", "cat", marker},
		{"exec", "-w", dir, "on", "cat", "marker"},
	} {
		if out := c.ok(args...); out != "container\n" {
			t.Errorf("%q: %q", args, out)
		}
	}
	c.ok("cp", "on:"+marker, dir+"/copied")
	if data, err := os.ReadFile(dir + "/copied"); string(data) != "container\n" {
		t.Errorf("cp gives %q, %v", data, err)
	}
	c.ok("cp", marker, "on:/data/in")
	if out := c.ok("exec", "on", "cat", "/data/in"); out != "host\n" {
		t.Errorf("cp into a volume: %q", out)
	}
	if out := c.ok("diff", "on"); !strings.Contains(out, "A "+marker+"\n") {
		t.Errorf("diff %q", out)
	}
	if out := c.ok("top", "on"); !strings.Contains(out, "echo ready") || strings.Contains(out, "--bundle") {
		t.Errorf("top %q", out)
	}
	if out := c.ok("stats", "--no-stream", "on"); !strings.Contains(out, "64MiB") {
		t.Errorf("stats %q", out)
	}
	for command, want := range map[string]int{"nope": 127, "/bin": 126} {
		if code := c.code("exec", "on", command); code != want {
			t.Errorf("exec %s: exit code %d, want %d", command, code, want)
		}
	}
	if code := c.code("exec", "on", "sh", "-c", "exit 9"); code != 9 {
		t.Errorf("exec: exit code %d", code)
	}
}

func endsOf(t *testing.T, c console, path string) {
	c.ok("pause", "on")
	if code := c.code("exec", "on", "true"); code == 0 {
		t.Error("exec in a paused container")
	}
	c.ok("unpause", "on")
	c.ok("stop", "on")
	if out := c.ok("inspect", "--format", "{{.State.ExitCode}}", "on"); out != "5\n" {
		t.Errorf("stop: exit code %s", out)
	}
	c.ok("start", "on")
	// One that is killed before its program has begun ends with what its runtime says then.
	waitFor(t, "the program runs", func() bool { return c.code("exec", "on", "true") == 0 })
	c.ok("kill", "on")
	if out := c.ok("wait", "on"); out != "137\n" {
		t.Errorf("kill: exit code %s", out)
	}
	c.ok("rm", "-f", "on", "made")
	if left, err := os.ReadDir(filepath.Join(c.run, "c")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if code := c.code("run", "--rm", "--runtime", path+"-not-there", "busybox", "true"); code != 127 {
		t.Errorf("a runtime that is not there: exit code %d", code)
	}
	if code := c.code("run", "--rm", "--runtime", path, "--init", "busybox", "true"); code != 125 {
		t.Errorf("--init: exit code %d", code)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("timeout: ", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
