package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"naru/sandbox/runtime"
)

// makeBundle makes a bundle with runc's own default spec, without a terminal,
// with the same limits and the seccomp policy of naru.
func (b *startBench) makeBundle(ctx context.Context) error {
	b.bundle = filepath.Join(b.dir, "bundle")
	root := filepath.Join(b.bundle, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if text, err := exec.CommandContext(ctx, "tar", "-xf", b.rootfs, "-C", root).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack root: %w: %s", err, text)
	}
	cmd := exec.CommandContext(ctx, "runc", "spec", "--bundle", b.bundle)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("runc spec: %w: %s", err, text)
	}
	return editSpec(filepath.Join(b.bundle, "config.json"))
}

func editSpec(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	spec.Process.Terminal, spec.Process.Args = false, []string{"/stamp"}
	spec.Process.Rlimits = nil // raising them needs a capability that a VM may lack
	memory, pids := int64(64<<20), int64(64)
	spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	spec.Linux.Seccomp = runtime.DefaultSpec(nil).Linux.Seccomp
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func (b *startBench) runcFirst(ctx context.Context) (time.Duration, error) {
	began, err := monotonic()
	if err != nil {
		return 0, err
	}
	out, err := b.runc(ctx)
	if err != nil {
		return 0, err
	}
	return sinceStamp(began, string(out))
}

func (b *startBench) runcWhole(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	_, err := b.runc(ctx)
	return time.Since(began), err
}

func (b *startBench) runc(ctx context.Context) ([]byte, error) {
	b.bundles++
	out, err := exec.CommandContext(ctx, "runc", "run", "--bundle", b.bundle, fmt.Sprintf("naru-bench-%d-%d", os.Getpid(), b.bundles)).Output()
	if failed := new(exec.ExitError); errors.As(err, &failed) {
		return nil, fmt.Errorf("runc run: %w: %s", err, failed.Stderr)
	}
	return out, err
}
