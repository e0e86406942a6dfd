package main

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed" // stamp.c
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

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox"
	"naru/sandbox/image"
	"naru/sandbox/runtime"
)

//go:embed stamp/stamp.c
var stampSource []byte

// start measures from the call that creates a container to the first
// instruction of its program, and the whole commands around that.
func start(ctx context.Context, runs int) (err error) {
	b, err := newStartBench(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close(context.WithoutCancel(ctx))) }()
	first := []*series{
		{name: "naru, no network", once: b.engine(sandbox.NetworkNone)},
		{name: "naru, bridge network", once: b.engine("bridge")},
	}
	whole := []*series{{name: "naru run --rm --network none", once: b.command}}
	if _, err := exec.LookPath("runc"); err != nil {
		fmt.Println("start: no runc here, so no peer")
	} else {
		if err := b.makeBundle(ctx); err != nil {
			return err
		}
		first = append(first, &series{name: "runc run, no network", once: b.runcFirst})
		whole = append(whole, &series{name: "runc run", once: b.runcWhole})
	}
	if err := interleave(ctx, runs, first...); err != nil {
		return err
	}
	report("container start to first instruction, same seccomp policy", first...)
	if err := interleave(ctx, runs, whole...); err != nil {
		return err
	}
	report("the whole command", whole...)
	return b.sequence(ctx, max(100, 10*runs))
}

// startBench is a root of its own with one image, whose program is stamp.
type startBench struct {
	dir, stamp, naru string
	root, run        string
	e                *sandbox.Engine
	bundle           string
	bundles          int
}

func newStartBench(ctx context.Context) (b *startBench, err error) {
	dir, err := os.MkdirTemp("", "naru-bench-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	b = &startBench{dir: dir, root: filepath.Join(dir, "root"), run: filepath.Join(dir, "run")}
	if err := os.MkdirAll("/dev/shm", 0o755); err == nil { // the run directory is on tmpfs in life
		if b.run, err = os.MkdirTemp("/dev/shm", "naru-bench-"); err != nil {
			return nil, err
		}
	}
	if b.stamp, err = buildStamp(ctx, dir); err != nil {
		return nil, err
	}
	if b.naru, err = filepath.Abs("bin/naru"); err != nil {
		return nil, err
	}
	if _, err := os.Stat(b.naru); err != nil {
		return nil, fmt.Errorf("bin/naru is needed (make build): %w", err)
	}
	if b.e, err = sandbox.Open(sandbox.Options{Root: b.root, Run: b.run}); err != nil {
		return nil, err
	}
	return b, importStamp(ctx, b.e, b.stamp)
}

func (b *startBench) close(ctx context.Context) error {
	return errors.Join(b.e.Reset(ctx), os.RemoveAll(b.run), os.RemoveAll(b.dir))
}

// buildStamp compiles the program that says when its first instruction ran.
func buildStamp(ctx context.Context, dir string) (string, error) {
	source, out := filepath.Join(dir, "stamp.c"), filepath.Join(dir, "stamp")
	if err := os.WriteFile(source, stampSource, 0o644); err != nil {
		return "", err
	}
	text, err := exec.CommandContext(ctx, "gcc", "-static", "-nostdlib", "-O2", "-o", out, source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile stamp: %w: %s", err, text)
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

// engine starts containers through the library, as the agent does.
func (b *startBench) engine(network string) func(context.Context) (time.Duration, error) {
	config := sandbox.ContainerConfig{Image: "stamp", Entrypoint: []string{"/stamp"}, Network: network, Memory: 64 << 20, Pids: 64}
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
		c, err := b.e.Run(ctx, config, sandbox.Stdio{Stdout: w})
		if err == nil {
			_, err = b.e.Wait(ctx, c.ID) // copies the output until the end
		}
		if err = errors.Join(err, w.Close()); err != nil {
			return 0, err
		}
		text, err := io.ReadAll(r)
		if err != nil {
			return 0, err
		}
		d, err := sinceStamp(began, string(text))
		return d, errors.Join(err, b.e.Remove(ctx, c.ID, true))
	}
}

// command is a whole `naru run`, from fork to exit.
func (b *startBench) command(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	out, err := exec.CommandContext(ctx, b.naru, "--root", b.root, "--run", b.run,
		"run", "--rm", "--network", "none", "--memory", "64m", "--pids-limit", "64", "--entrypoint", "/stamp", "stamp").CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("naru run: %w: %s", err, out)
	}
	return time.Since(began), nil
}

// sequence runs n containers one after another through the library.
func (b *startBench) sequence(ctx context.Context, n int) error {
	config := sandbox.ContainerConfig{
		Image: "stamp", Entrypoint: []string{"/stamp"}, Network: sandbox.NetworkNone, Memory: 64 << 20, Pids: 64, Remove: true,
	}
	began := time.Now()
	for range n {
		c, err := b.e.Run(ctx, config, sandbox.Stdio{})
		if err == nil {
			_, err = b.e.Wait(ctx, c.ID)
		}
		if err != nil {
			return err
		}
	}
	took := time.Since(began)
	fmt.Printf("%d containers one after another, start to removal: %s, %.0f per second\n", n, took.Round(time.Millisecond), float64(n)/took.Seconds())
	return nil
}

// makeBundle makes a bundle with runc's own default spec, without a terminal,
// with the same limits and the seccomp policy of naru.
func (b *startBench) makeBundle(ctx context.Context) error {
	b.bundle = filepath.Join(b.dir, "bundle")
	root := filepath.Join(b.bundle, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	program, err := os.ReadFile(b.stamp)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "stamp"), program, 0o755); err != nil {
		return err
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
