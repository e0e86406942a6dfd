package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestEngines has Debian's Docker and Podman run containers through `naru oci`:
// run, exec with and without terminal, logs, pause, stop, and what they make of a
// program that is not there. `make oci-engines` installs both.
func TestEngines(t *testing.T) {
	if os.Getenv("NARU_ENGINES") == "" {
		t.Skip("needs docker.io and podman: make oci-engines")
	}
	naru, err := filepath.Abs("../bin/naru")
	if err == nil {
		_, err = os.Stat(naru)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	shim := filepath.Join(dir, ociName)
	if err := os.Symlink(naru, shim); err != nil {
		t.Fatal(err)
	}
	image := imageFile(t)
	t.Run("docker", func(t *testing.T) { startDocker(t, shim).drive(image) })
	t.Run("podman", func(t *testing.T) {
		d := t.TempDir()
		e := &engineCLI{t: t, command: []string{"podman", "--runtime", shim, "--cgroup-manager=cgroupfs", "--events-backend=file",
			"--storage-driver=vfs", "--root", filepath.Join(d, "root"), "--runroot", filepath.Join(d, "run")}}
		e.drive(image)
	})
}

// imageFile is a root file system of busybox as a tar archive.
func imageFile(t *testing.T) string {
	dir := t.TempDir()
	root, file := filepath.Join(dir, "root"), filepath.Join(dir, "root.tar")
	script := `mkdir -p "$1/bin" && cp "$(command -v busybox)" "$1/bin/busybox" && for n in sh sleep id tty; do ln -s busybox "$1/bin/$n"; done && tar -C "$1" -cf "$2" .`
	if out, err := exec.Command("sh", "-c", script, "sh", root, file).CombinedOutput(); err != nil {
		t.Fatalf("make image: %v: %s", err, out)
	}
	return file
}

// engineCLI is the command line of an engine.
type engineCLI struct {
	t       *testing.T
	command []string
	env     []string
	runs    []string // options of run
}

// startDocker starts a daemon of the test's own, without networks and rules.
func startDocker(t *testing.T, shim string) *engineCLI {
	dir := t.TempDir()
	config, err := json.Marshal(map[string]any{"runtimes": map[string]any{"naru": map[string]string{"path": shim}}})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "daemon.json"), config, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	socket := "unix://" + filepath.Join(dir, "d.sock")
	var log bytes.Buffer
	daemon := exec.Command("dockerd", "--config-file", filepath.Join(dir, "daemon.json"), "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"-H", socket, "-p", filepath.Join(dir, "pid"), "--iptables=false", "--bridge=none", "--ip-forward=false")
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := daemon.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		_ = daemon.Wait() // how it says that it was interrupted is its own affair
	})
	e := &engineCLI{t: t, command: []string{"docker"}, env: []string{"DOCKER_HOST=" + socket, "DOCKER_API_VERSION=1.41"}, runs: []string{"--runtime", "naru"}}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, code := e.try("info"); code == 0 {
			return e
		}
		if time.Now().After(end) {
			t.Fatalf("dockerd does not come up: %s", log.String())
		}
	}
}

func (e *engineCLI) try(args ...string) (string, int) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 30*time.Second)
	defer cancel()
	all := append(e.command[1:len(e.command):len(e.command)], args...)
	c := exec.CommandContext(ctx, e.command[0], all...)
	c.Env = append(os.Environ(), e.env...)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		e.t.Fatalf("%v: %v", args, err)
	}
	return string(out), c.ProcessState.ExitCode()
}

// want runs one command, whose output must contain and whose exit code must be.
func (e *engineCLI) want(contains string, code int, args ...string) {
	e.t.Helper()
	if out, got := e.try(args...); got != code || !strings.Contains(out, contains) {
		e.t.Errorf("%v: exit code %d, want %d with %q in the output\n%s", args, got, code, contains, out)
	}
}

func (e *engineCLI) drive(image string) {
	run := append([]string{"run", "--network", "none"}, e.runs...)
	with := func(args ...string) []string { return append(run[:len(run):len(run)], args...) }
	e.want("", 0, "import", image, "box")
	e.want("uid=7", 7, with("--rm", "-u", "7:7", "--read-only", "--tmpfs", "/tmp", "box", "/bin/sh", "-c", "id; exit 7")...)
	e.want("not found", 127, with("--rm", "box", "nowhere")...)
	e.want("/dev/pts/0", 0, with("--rm", "-t", "box", "/bin/tty")...)
	e.want("", 0, with("--rm", "--privileged", "box", "/bin/sh", "-c", "true")...)
	e.want("", 0, with("-d", "--name", "kept", "box", "/bin/sh", "-c", `trap "echo bye; exit 3" TERM; echo up; while :; do sleep 1 & wait; done`)...)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if out, _ := e.try("logs", "kept"); strings.Contains(out, "up") {
			break
		}
	}
	e.want("inside", 5, "exec", "kept", "/bin/sh", "-c", "echo inside; exit 5")
	e.want("/dev/pts/0", 0, "exec", "-t", "kept", "/bin/tty")
	e.want("", 0, "pause", "kept")
	e.want("aused", 0, "ps", "-a")
	e.want("", 0, "unpause", "kept")
	e.want("", 0, "stop", "-t", "5", "kept")
	e.want("3", 0, "inspect", "-f", "{{.State.ExitCode}}", "kept")
	e.want("bye", 0, "logs", "kept")
	e.want("", 0, "rm", "kept")
}
