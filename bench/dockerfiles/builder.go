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
	"time"
)

// builder is naru or a peer.
type builder interface {
	// begin gives it the image "base", a docker archive.
	begin(ctx context.Context, base string) error
	// build makes the image of a case, whose context is in dir, as a docker archive.
	// A build that fails is an error with its output.
	build(ctx context.Context, c *testCase, dir, archive string) error
	// end stops what was started.
	end() error
}

// buildTime bounds one build.
const buildTime = 2 * time.Minute

// command runs a program; its output is in the error.
func command(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// placed are a case's flags with the context's directory put in.
func (c *testCase) placed(dir string) []string {
	out := make([]string, len(c.flags))
	for i, f := range c.flags {
		out[i] = strings.ReplaceAll(f, "$CONTEXT", dir)
	}
	return out
}

// naru is the binary under test, with a root of its own.
type naru struct {
	bin, dir string
	cache    bool // use what earlier builds have left
}

// use is the flag that goes with cache.
func (n naru) use() string { return fmt.Sprintf("--no-cache=%t", !n.cache) }

func (n naru) run(ctx context.Context, args ...string) error {
	return command(ctx, n.bin, append([]string{"--root", filepath.Join(n.dir, "root"), "--run", filepath.Join(n.dir, "run")}, args...)...)
}

func (n naru) begin(ctx context.Context, base string) error { return n.run(ctx, "load", "-i", base) }
func (n naru) end() error                                   { return nil }

func (n naru) build(ctx context.Context, c *testCase, dir, archive string) error {
	if c.hasBase() {
		if err := n.run(ctx, "build", n.use(), "-t", "made", "-f", filepath.Join(dir, "base/Dockerfile"), dir); err != nil {
			return err
		}
	}
	if err := n.run(ctx, append(append([]string{"build", n.use(), "-t", "out"}, c.placed(dir)...), dir)...); err != nil {
		return err
	}
	return n.run(ctx, "save", "-o", archive, "out")
}

// buildah is Debian's.
type buildah struct{ dir string }

func (b buildah) run(ctx context.Context, args ...string) error {
	return command(ctx, "buildah", append([]string{"--root", filepath.Join(b.dir, "root"), "--runroot", filepath.Join(b.dir, "run"), "--storage-driver", "overlay"}, args...)...)
}

func (b buildah) begin(ctx context.Context, base string) error {
	return b.run(ctx, "pull", "docker-archive:"+base)
}

// end empties the storage, of which parts are mounted as long as they are there.
func (b buildah) end() error {
	ctx := context.Background()
	return errors.Join(b.run(ctx, "rm", "-a"), b.run(ctx, "rmi", "-a", "-f"))
}

func (b buildah) build(ctx context.Context, c *testCase, dir, archive string) error {
	bud := func(args ...string) error {
		return b.run(ctx, append([]string{"bud", "--isolation", "chroot", "--pull-never", "--format", "docker"}, args...)...)
	}
	if c.hasBase() {
		if err := bud("-t", "made", "-f", filepath.Join(dir, "base/Dockerfile"), dir); err != nil {
			return err
		}
	}
	if err := bud(append(append([]string{"-t", "out"}, c.placed(dir)...), dir)...); err != nil {
		return err
	}
	return b.run(ctx, "push", "out", "docker-archive:"+archive+":out:latest")
}

// docker is the classic builder of a daemon of our own.
type docker struct {
	dir    string
	daemon *exec.Cmd
}

func (d *docker) run(ctx context.Context, args ...string) error {
	return command(ctx, "env", append([]string{"DOCKER_API_VERSION=1.41", "DOCKER_BUILDKIT=0", "docker", "-H", "unix://" + filepath.Join(d.dir, "sock")}, args...)...)
}

func (d *docker) begin(ctx context.Context, base string) error {
	d.daemon = exec.Command("dockerd", "--data-root", filepath.Join(d.dir, "data"), "--exec-root", filepath.Join(d.dir, "exec"),
		"--pidfile", filepath.Join(d.dir, "pid"), "-H", "unix://"+filepath.Join(d.dir, "sock"), "--iptables=false", "--bridge=none", "--storage-driver=overlay2")
	if err := started(ctx, d.daemon, filepath.Join(d.dir, "log"), func() error { return d.run(ctx, "version") }); err != nil {
		return err
	}
	return d.run(ctx, "load", "-i", base)
}

func (d *docker) end() error { return stopped(d.daemon) }

func (d *docker) build(ctx context.Context, c *testCase, dir, archive string) error {
	if c.hasBase() {
		if err := d.run(ctx, "build", "-t", "made", "-f", filepath.Join(dir, "base/Dockerfile"), dir); err != nil {
			return err
		}
	}
	if err := d.run(ctx, append(append([]string{"build", "--no-cache", "-t", "out"}, c.placed(dir)...), dir)...); err != nil {
		return err
	}
	return d.run(ctx, "save", "-o", archive, "out")
}

// buildkit is buildkitd and buildctl of the module, with Debian's runc.
type buildkit struct {
	bin, dir string
	daemon   *exec.Cmd
}

func (b *buildkit) run(ctx context.Context, args ...string) error {
	return command(ctx, filepath.Join(b.bin, "buildctl"), append([]string{"--addr", "unix://" + filepath.Join(b.dir, "sock")}, args...)...)
}

func (b *buildkit) begin(ctx context.Context, base string) error {
	b.daemon = exec.Command(filepath.Join(b.bin, "buildkitd"), "--root", filepath.Join(b.dir, "root"), "--addr", "unix://"+filepath.Join(b.dir, "sock"),
		"--oci-worker-binary", "runc", "--oci-worker-snapshotter", "overlayfs", "--oci-worker-net", "host", "--allow-insecure-entitlement", "network.host")
	if err := started(ctx, b.daemon, filepath.Join(b.dir, "log"), func() error { return b.run(ctx, "debug", "workers") }); err != nil {
		return err
	}
	return command(ctx, "skopeo", "--insecure-policy", "copy", "docker-archive:"+base, "oci:"+filepath.Join(b.dir, "base")+":latest")
}

// layout are the flags that give buildctl an OCI layout as an image.
func layout(name, dir string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, err
	}
	var index struct {
		Manifests []struct {
			Digest string `json:"digest"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, err
	}
	if len(index.Manifests) == 0 {
		return nil, fmt.Errorf("%s has no image", dir)
	}
	return []string{"--oci-layout", name + "=" + dir, "--opt", "context:" + name + "=oci-layout://" + name + "@" + index.Manifests[0].Digest}, nil
}

func (b *buildkit) end() error { return stopped(b.daemon) }

func (b *buildkit) build(ctx context.Context, c *testCase, dir, archive string) error {
	images, err := layout("base", filepath.Join(b.dir, "base"))
	if err != nil {
		return err
	}
	if c.hasBase() {
		made := filepath.Join(dir+".made", "layout")
		defer os.RemoveAll(dir + ".made")
		args := append([]string{"build", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + filepath.Join(dir, "base"),
			"--output", "type=oci,tar=false,name=made,dest=" + made}, images...)
		if err := b.run(ctx, args...); err != nil {
			return err
		}
		base, err := layout("made", made)
		if err != nil {
			return err
		}
		images = append(images, base...)
	}
	args := append([]string{"build", "--no-cache", "--frontend", "dockerfile.v0", "--local", "context=" + dir, "--local", "dockerfile=" + dir,
		"--output", "type=docker,name=out,dest=" + archive}, images...)
	more, err := asOptions(c.placed(dir))
	if err != nil {
		return err
	}
	if err := b.run(ctx, append(args, more...)...); err != nil {
		return err
	}
	// A context is remembered by size and time of its files, which is wrong for ours.
	return b.run(ctx, "prune", "--filter", "type==source.local")
}

// asOptions turns Docker's flags into those of buildctl.
func asOptions(flags []string) (out []string, err error) {
	for i := 0; i < len(flags); i++ {
		name, value, ok := strings.Cut(flags[i], "=")
		if !ok && name != "--no-cache" {
			if i++; i == len(flags) {
				return nil, fmt.Errorf("flag %s has no value", name)
			}
			value = flags[i]
		}
		switch name {
		case "--no-cache":
			out = append(out, "--no-cache")
		case "--target":
			out = append(out, "--opt", "target="+value)
		case "-f", "--file":
			out = append(out, "--opt", "filename="+filepath.Base(value))
		case "--build-arg":
			key, _, given := strings.Cut(value, "=")
			if !given {
				value += "=" + os.Getenv(key)
			}
			out = append(out, "--opt", "build-arg:"+value)
		case "--label":
			out = append(out, "--opt", "label:"+value)
		case "--build-context":
			key, dir, _ := strings.Cut(value, "=")
			out = append(out, "--local", key+"="+dir, "--opt", "context:"+key+"=local:"+key)
		case "--secret":
			out = append(out, "--secret", value)
		case "--ssh":
			out = append(out, "--ssh", value)
		case "--add-host":
			host, ip, _ := strings.Cut(value, ":")
			out = append(out, "--opt", "add-hosts="+host+"="+ip)
		default:
			return nil, fmt.Errorf("flag %s is not known to the peer", name)
		}
	}
	return out, nil
}

// started starts a daemon and waits until it answers.
func started(ctx context.Context, cmd *exec.Cmd, log string, answers func() error) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close() // the daemon has its own
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := answers()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			text, _ := os.ReadFile(log)
			return errors.Join(fmt.Errorf("%s does not answer: %w\n%s", filepath.Base(cmd.Path), err, text), stopped(cmd))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func stopped(cmd *exec.Cmd) error {
	if cmd == nil || cmd.Process == nil {
		return nil
	}
	_ = cmd.Process.Signal(os.Interrupt)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done: // it was told to end: how it does is its own business
		return nil
	case <-time.After(20 * time.Second):
		return errors.Join(fmt.Errorf("%s does not stop", filepath.Base(cmd.Path)), cmd.Process.Kill())
	}
}
