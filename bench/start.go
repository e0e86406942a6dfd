package main

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed" // stamp.c
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
	var found budgets
	if err := b.beside(ctx, runs, &found); err != nil {
		return err
	}
	if err := errors.Join(b.sequence(ctx, max(100, 10*runs), &found), b.idle(ctx, &found)); err != nil {
		return err
	}
	paths(ctx, &found)
	found.print()
	return nil
}

// beside measures starts and whole commands in turns with those of the peers.
func (b *startBench) beside(ctx context.Context, runs int, found *budgets) (err error) {
	first := []*series{{name: "naru, no network", once: b.engine(sandbox.NetworkNone)}, {name: "naru, bridge network", once: b.engine("bridge")}}
	whole := []*series{{name: "naru run --rm --network none", once: b.command}}
	runc := &peer{first: &series{name: "runc run, no network", once: b.runcFirst}, whole: &series{name: "runc run", once: b.runcWhole}}
	if _, runc.err = exec.LookPath("runc"); runc.err == nil {
		runc.err = b.makeBundle(ctx)
	}
	d, dockerErr := startDocker(ctx, filepath.Join(b.dir, "docker"))
	if dockerErr == nil {
		defer func() { err = errors.Join(err, d.stop()) }()
		dockerErr = d.load(ctx, b.rootfs)
	}
	docker := &peer{first: &series{name: "docker run --network none", once: d.first}, whole: &series{name: "docker run --rm --network none", once: d.whole}, err: dockerErr}
	for _, p := range []*peer{runc, docker} {
		if p.err != nil {
			fmt.Printf("start: no figures of %s: %v\n", p.whole.name, p.err)
			continue
		}
		first, whole = append(first, p.first), append(whole, p.whole)
	}
	if err := interleave(ctx, runs, first...); err != nil {
		return err
	}
	report("container start to first instruction, same seccomp policy", first...)
	b.phases.print()
	if err := interleave(ctx, runs, whole...); err != nil {
		return err
	}
	report("the whole command", whole...)
	found.faster("start to first instruction, of runc run", 5, first[0], runc.first, runc.err)
	found.faster("start to first instruction, of docker run", 25, first[0], docker.first, docker.err)
	found.faster("the whole command, of runc run", 3, whole[0], runc.whole, runc.err)
	return nil
}

// peer is an engine beside ours; err says why it is not there.
type peer struct {
	first, whole *series
	err          error
}

// startBench is a root of its own with one image, whose program is stamp.
type startBench struct {
	dir, rootfs, naru string
	root, run         string
	e                 *sandbox.Engine
	phases            phases
	bundle            string
	bundles           int
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
	if b.rootfs, err = makeRoot(ctx, dir); err != nil {
		return nil, err
	}
	if b.naru, err = filepath.Abs("bin/naru"); err != nil {
		return nil, err
	}
	if _, err := os.Stat(b.naru); err != nil {
		return nil, fmt.Errorf("bin/naru is needed (make build): %w", err)
	}
	if b.e, err = sandbox.Open(sandbox.Options{Root: b.root, Run: b.run, Step: b.phases.step}); err != nil {
		return nil, err
	}
	f, err := os.Open(b.rootfs)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	_, err = b.e.Images().Import(ctx, f, "stamp", image.Config{})
	return b, err
}

func (b *startBench) close(ctx context.Context) error {
	return errors.Join(b.e.Reset(ctx), os.RemoveAll(b.run), os.RemoveAll(b.dir))
}

// makeRoot makes the root that all contestants get, as an archive: the program that
// says when its first instruction ran, one that waits, and the directories and files
// that every image has and that an engine mounts on. Without those each start would
// make them again, but for runc, whose root is written to by its first one.
func makeRoot(ctx context.Context, dir string) (string, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"dev/", "dev/pts/", "dev/shm/", "dev/mqueue/", "etc/", "proc/", "sys/"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"etc/hostname", "etc/hosts", "etc/resolv.conf"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644}); err != nil {
			return "", err
		}
	}
	for name, source := range map[string][]byte{"stamp": stampSource, "idle": idleSource} {
		program, err := compile(ctx, dir, name, source)
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(program))})
		}
		if err == nil {
			_, err = w.Write(program)
		}
		if err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "rootfs.tar")
	return path, os.WriteFile(path, b.Bytes(), 0o644)
}

func compile(ctx context.Context, dir, name string, source []byte) ([]byte, error) {
	from, to := filepath.Join(dir, name+".c"), filepath.Join(dir, name)
	if err := os.WriteFile(from, source, 0o644); err != nil {
		return nil, err
	}
	text, err := exec.CommandContext(ctx, "gcc", "-static", "-nostdlib", "-O2", "-o", to, from).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w: %s", name, err, text)
	}
	return os.ReadFile(to)
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
		if network == sandbox.NetworkNone {
			b.phases.begin()
		}
		c, err := b.e.Run(ctx, config, sandbox.Stdio{Stdout: w})
		b.phases.end()
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
func (b *startBench) sequence(ctx context.Context, n int, found *budgets) error {
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
	rate := float64(n) / took.Seconds()
	fmt.Printf("%d containers one after another, start to removal: %s, %.0f per second\n", n, took.Round(time.Millisecond), rate)
	found.add("one after another, without a network", "≥ 100 per second", fmt.Sprintf("%.0f (of %d)", rate, n), rate >= 100)
	return nil
}
