package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// contestant builds contexts: naru, or a peer.
type contestant struct {
	name string
	// base gives it a docker archive as an image of this name.
	base func(ctx context.Context, name, archive string) error
	// build is the command that builds dir, whose base images are the named ones;
	// fresh does every step again.
	build func(dir, tag string, bases []string, fresh bool) []string
	// forget drops what it remembers of contexts, where it must not for a cold build.
	forget func(ctx context.Context) error
	// pid is its daemon's; 0: there is none, and the command is the engine.
	pid  int
	env  []string
	stop func() error
}

func nothing(context.Context) error { return nil }

// naruBuilder is the binary with a root of its own.
func naruBuilder(dir string) *contestant {
	naru := []string{"bin/naru", "--root", filepath.Join(dir, "root"), "--run", filepath.Join(dir, "run")}
	return &contestant{
		name: "naru build",
		base: func(ctx context.Context, name, archive string) error {
			return quiet(ctx, append(naru[:len(naru):len(naru)], "load", "-i", archive)...)
		},
		build: func(dir, tag string, _ []string, fresh bool) []string {
			return append(naru[:len(naru):len(naru)], "build", fmt.Sprintf("--no-cache=%t", fresh), "--progress", "plain", "-t", tag, dir)
		},
		forget: nothing,
		stop: func() error { // the network of builds stays up otherwise
			return quiet(context.Background(), append(naru[:len(naru):len(naru)], "system", "reset", "--force")...)
		},
	}
}

// buildKit starts buildkitd from the directory of its binaries. It gives its result to
// nobody, so nothing of it is compressed, and has the host's network for its
// steps: both are less than naru does.
func buildKit(ctx context.Context, bin, dir string) (*contestant, error) {
	if bin == "" {
		return nil, errors.New("no -buildkit DIR given")
	}
	address := "unix://" + filepath.Join(dir, "sock")
	control := func(args ...string) []string {
		return append([]string{filepath.Join(bin, "buildctl"), "--addr", address}, args...)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	daemon := exec.Command(filepath.Join(bin, "buildkitd"), "--root", filepath.Join(dir, "root"), "--addr", address,
		"--oci-worker-binary", "runc", "--oci-worker-snapshotter", "overlayfs", "--oci-worker-net", "host")
	stop, err := serve(ctx, daemon, filepath.Join(dir, "log"), control("debug", "workers"))
	if err != nil {
		return nil, err
	}
	images := map[string][]string{}
	return &contestant{
		name: "buildkit", pid: daemon.Process.Pid, stop: stop,
		base: func(ctx context.Context, name, archive string) error {
			layout := filepath.Join(dir, name)
			if err := quiet(ctx, "skopeo", "--insecure-policy", "copy", "docker-archive:"+archive, "oci:"+layout+":latest"); err != nil {
				return err
			}
			id, err := firstManifest(layout)
			images[name] = []string{"--oci-layout", name + "=" + layout, "--opt", "context:" + name + "=oci-layout://" + name + "@" + id}
			return err
		},
		build: func(dir, _ string, bases []string, fresh bool) []string {
			args := control("build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir)
			for _, b := range bases {
				args = append(args, images[b]...)
			}
			if fresh {
				args = append(args, "--no-cache")
			}
			return args
		},
		forget: func(ctx context.Context) error {
			return quiet(ctx, control("prune", "--filter", "type==source.local")...)
		},
	}, nil
}

func firstManifest(layout string) (string, error) {
	data, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return "", err
	}
	var index struct {
		Manifests []struct {
			Digest string `json:"digest"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(data, &index); err != nil || len(index.Manifests) == 0 {
		return "", fmt.Errorf("%s has no image: %w", layout, err)
	}
	return index.Manifests[0].Digest, nil
}

// dockerBuilder is the classic builder of an engine of our own.
func dockerBuilder(ctx context.Context, dir string) (*contestant, error) {
	d, err := startDocker(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &contestant{
		name: "docker build (classic)", pid: d.daemon.Process.Pid, stop: d.stop, env: append(d.env, "DOCKER_BUILDKIT=0"), forget: nothing,
		base: func(ctx context.Context, _, archive string) error {
			if text, err := d.command(ctx, "load", "-i", archive).CombinedOutput(); err != nil {
				return fmt.Errorf("docker load: %w: %s", err, text)
			}
			return nil
		},
		build: func(dir, tag string, _ []string, fresh bool) []string {
			return []string{"docker", "build", fmt.Sprintf("--no-cache=%t", fresh), "--network", "none", "-t", tag, dir}
		},
	}, nil
}

// buildahBuilder is Debian's.
func buildahBuilder(dir string) (*contestant, error) {
	if _, err := exec.LookPath("buildah"); err != nil {
		return nil, err
	}
	buildah := []string{"buildah", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay"}
	with := func(args ...string) []string { return append(buildah[:len(buildah):len(buildah)], args...) }
	return &contestant{
		name: "buildah bud", forget: nothing,
		base: func(ctx context.Context, name, archive string) error {
			return quiet(ctx, with("pull", "docker-archive:"+archive)...)
		},
		build: func(dir, tag string, _ []string, fresh bool) []string {
			return with("bud", "--layers", fmt.Sprintf("--no-cache=%t", fresh), "--isolation", "chroot", "--pull-never", "-t", tag, dir)
		},
		stop: func() error { // parts of its storage are mounted as long as they are there
			return errors.Join(quiet(context.Background(), with("rm", "-a")...), quiet(context.Background(), with("rmi", "-a", "-f")...))
		},
	}, nil
}

// run builds once. peak is the most memory that the engine's process had meanwhile.
func (c *contestant) run(ctx context.Context, args []string) (took time.Duration, peak int64, err error) {
	if c.pid > 0 { // 5 resets VmHWM, proc(5)
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.pid), []byte("5"), 0); err != nil {
			return 0, 0, err
		}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, c.env
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	pid := c.pid
	if pid == 0 {
		pid = cmd.Process.Pid
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			took = time.Since(began)
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out.Bytes()[max(0, out.Len()-2000):])
			}
			return took, max(peak, c.peak(c.pid)), err
		case <-tick.C:
			peak = max(peak, c.peak(pid))
		}
	}
}

func (c *contestant) peak(pid int) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // it has ended
	}
	_, text, _ := strings.Cut(string(data), "VmHWM:")
	var kib int64
	_, _ = fmt.Sscan(text, &kib) // none: a zombie
	return kib << 10
}

// serve starts a daemon and waits until a command of its client succeeds.
func serve(ctx context.Context, daemon *exec.Cmd, log string, asks []string) (stop func() error, err error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the daemon has its own
	daemon.Stdout, daemon.Stderr = f, f
	if err := daemon.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- daemon.Wait() }()
	stop = func() error {
		if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
			return err
		}
		select {
		case <-ended:
			return nil
		case <-time.After(30 * time.Second):
			return fmt.Errorf("%s (process %d) does not end", daemon.Path, daemon.Process.Pid)
		}
	}
	for range 300 {
		if err = quiet(ctx, asks...); err == nil {
			return stop, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, errors.Join(err, stop())
}
