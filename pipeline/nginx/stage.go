package nginx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// test runs nginx -t on the whole configuration as it would be with these apps.
// Nothing that the running nginx reads is touched. The turn is held.
func (r *Router) test(ctx context.Context, apps map[string]app) error {
	stage := filepath.Join(r.dir, "stage")
	if err := os.RemoveAll(stage); err != nil {
		return fmt.Errorf("clear the staging copy: %w", err)
	}
	dir := filepath.Join(stage, "apps")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the staging copy: %w", err)
	}
	for name, a := range apps {
		if err := os.WriteFile(filepath.Join(dir, name+".conf"), a.file.text, 0o644); err != nil {
			return fmt.Errorf("write the staging copy: %w", err)
		}
	}
	size := r.size.cover(routesOf(apps))
	if !r.house.Managed {
		main, err := r.house.renderMain(size)
		if err != nil {
			return err
		}
		return r.testSystem(ctx, stage, main)
	}
	h := r.house
	h.Apps, h.Pid = dir, filepath.Join(stage, "pid")
	main, err := h.renderMain(size)
	if err != nil {
		return err
	}
	conf := filepath.Join(stage, "nginx.conf")
	if err := os.WriteFile(conf, main.text, 0o644); err != nil {
		return fmt.Errorf("write the staging copy: %w", err)
	}
	return complaint(r.command(ctx, filepath.Join(stage, "error.log"), "-t", "-q", "-c", conf))
}

// testSystem tests the machine's real configuration with our staged files mounted
// over the installed ones, in a mount namespace of its own: relative includes and
// everything else mean what they will mean.
func (r *Router) testSystem(ctx context.Context, stage string, main file) error {
	staged := filepath.Join(stage, "main")
	if err := os.WriteFile(staged, main.text, 0o644); err != nil {
		return fmt.Errorf("write the staging copy: %w", err)
	}
	if _, err := os.Lstat(r.main); errors.Is(err, os.ErrNotExist) {
		// The mount needs something to cover; an empty include changes nothing.
		if err := os.WriteFile(r.main, nil, 0o644); err != nil {
			return fmt.Errorf("make the include file: %w", err)
		}
	}
	cmd := r.command(ctx, filepath.Join(stage, "error.log"), "-t", "-q", "-c", r.conf)
	result := make(chan error)
	go func() {
		// The thread is never unlocked: it ends with the goroutine, and with it
		// the namespace.
		runtime.LockOSThread()
		result <- func() error {
			if err := cover(map[string]string{filepath.Join(stage, "apps"): r.house.Apps, staged: r.main}); err != nil {
				return err
			}
			return complaint(cmd)
		}()
	}()
	return <-result
}

// cover gives the calling thread its own mount namespace with mounts from → over.
func cover(mounts map[string]string) error {
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace to test in (system mode needs root): %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("make the mounts of the test private: %w", err)
	}
	for from, over := range mounts {
		if err := syscall.Mount(from, over, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s for the test: %w", from, err)
		}
	}
	return nil
}

// command prepares nginx; log takes what it says before it has read its
// configuration.
func (r *Router) command(ctx context.Context, log string, args ...string) *exec.Cmd {
	if r.house.Managed {
		args = append([]string{"-p", r.dir}, args...)
	}
	args = append(r.house.build.logFlag(log), args...)
	cmd := exec.CommandContext(ctx, r.house.build.path, args...)
	cmd.Env = environment()
	cmd.Dir = "/" // the workers' directory marks workers, so nobody else may stand in it
	return cmd
}

// complaint runs cmd to its end and returns what nginx had to say.
func complaint(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %s", cmd.Path, err, worst(string(out)))
}

// worst picks the lines that explain a refusal.
func worst(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "[emerg]") || strings.Contains(line, "[crit]") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) == 0 {
		return strings.TrimSpace(out)
	}
	return strings.Join(lines[:min(len(lines), 5)], "; ")
}
