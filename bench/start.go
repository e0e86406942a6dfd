package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox"
	"naru/sandbox/image"
)

// start measures from the call that creates a container to the first
// instruction of its program.
func start(ctx context.Context, runs int) (err error) {
	dir, err := os.MkdirTemp("", "naru-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	stamp, err := goBuild(ctx, dir, "stamp", "naru/bench/stamp")
	if err != nil {
		return err
	}
	e, err := sandbox.Open(sandbox.Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, e.Networks().Teardown(context.WithoutCancel(ctx)))
	}()
	if err := importStamp(ctx, e, stamp); err != nil {
		return err
	}
	all := []*series{
		{name: "naru, no network", once: naruStart(e, sandbox.NetworkNone)},
		{name: "naru, bridge network", once: naruStart(e, "bridge")},
	}
	if _, err := exec.LookPath("runc"); err != nil {
		fmt.Println("start: no runc here, so no peer")
	} else {
		bundle, err := runcBundle(ctx, dir, stamp)
		if err != nil {
			return err
		}
		all = append(all, &series{name: "runc run, no network, no seccomp", once: runcStart(bundle)})
	}
	if err := interleave(ctx, runs, all...); err != nil {
		return err
	}
	report("container start to first instruction", all...)
	return nil
}

func goBuild(ctx context.Context, dir, name, pkg string) (string, error) {
	out := filepath.Join(dir, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, text)
	}
	return out, nil
}

func importStamp(ctx context.Context, e *sandbox.Engine, stamp string) error {
	program, err := os.ReadFile(stamp)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err = w.WriteHeader(&tar.Header{Name: "stamp", Mode: 0o755, Size: int64(len(program))})
	if err == nil {
		_, err = w.Write(program)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	_, err = e.Images().Import(ctx, &b, "stamp", image.Config{})
	return err
}

func monotonic() (int64, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano(), err
}

// sinceStamp is the time from began to what the program printed.
func sinceStamp(began int64, printed string) (time.Duration, error) {
	at, err := strconv.ParseInt(strings.TrimSpace(printed), 10, 64)
	return time.Duration(at - began), err
}

func naruStart(e *sandbox.Engine, network string) func(context.Context) (time.Duration, error) {
	return func(ctx context.Context) (time.Duration, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		defer r.Close()
		began, err := monotonic()
		if err != nil {
			return 0, err
		}
		c, err := e.Run(ctx, sandbox.ContainerConfig{
			Image: "stamp", Entrypoint: []string{"/stamp"}, Network: network, Memory: 64 << 20, Pids: 64,
		}, sandbox.Stdio{Stdout: w})
		if err == nil {
			_, err = e.Wait(ctx, c.ID) // copies the output until the end
		}
		if err = errors.Join(err, w.Close()); err != nil {
			return 0, err
		}
		text, err := io.ReadAll(r)
		if err != nil {
			return 0, err
		}
		d, err := sinceStamp(began, string(text))
		return d, errors.Join(err, e.Remove(ctx, c.ID, true))
	}
}

// runcBundle makes a bundle with runc's own default spec, without a terminal
// and with the same limits.
func runcBundle(ctx context.Context, dir, stamp string) (string, error) {
	bundle := filepath.Join(dir, "bundle")
	root := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	program, err := os.ReadFile(stamp)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(root, "stamp"), program, 0o755); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "runc", "spec", "--bundle", bundle)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("runc spec: %w: %s", err, text)
	}
	return bundle, editSpec(filepath.Join(bundle, "config.json"))
}

func editSpec(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	process := spec["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/stamp"}
	delete(process, "rlimits") // raising them needs a capability that a VM may lack
	linux := spec["linux"].(map[string]any)
	resources := linux["resources"].(map[string]any)
	resources["memory"], resources["pids"] = map[string]any{"limit": 64 << 20}, map[string]any{"limit": 64}
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func runcStart(bundle string) func(context.Context) (time.Duration, error) {
	n := 0
	return func(ctx context.Context) (time.Duration, error) {
		n++
		cmd := exec.CommandContext(ctx, "runc", "run", "--bundle", bundle, fmt.Sprintf("naru-bench-%d-%d", os.Getpid(), n))
		began, err := monotonic()
		if err != nil {
			return 0, err
		}
		out, err := cmd.Output()
		if err != nil {
			return 0, err
		}
		return sinceStamp(began, string(out))
	}
}
