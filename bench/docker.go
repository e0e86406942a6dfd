package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// docker is an engine of Docker's of our own, beside whatever the machine runs: it
// has its own directories and socket, no bridge and no rules of a firewall.
type docker struct {
	daemon *exec.Cmd
	ended  chan error
	env    []string
}

// startDocker fails where Docker's engine is not installed or cannot start.
func startDocker(ctx context.Context, dir string) (_ *docker, err error) {
	for _, name := range []string{"dockerd", "docker"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	socket := "unix://" + filepath.Join(dir, "sock")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d := &docker{ended: make(chan error, 1), env: append(os.Environ(), "DOCKER_HOST="+socket, "DOCKER_API_VERSION=1.41", "DOCKER_CONFIG="+dir)}
	d.daemon = exec.Command("dockerd", "--host", socket, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge", "none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")
	d.daemon.Stdout, d.daemon.Stderr = log, log
	if err := d.daemon.Start(); err != nil {
		return nil, err
	}
	go func() { d.ended <- d.daemon.Wait() }()
	for range 300 {
		if d.command(ctx, "version").Run() == nil {
			return d, nil
		}
		select {
		case err := <-d.ended:
			text, _ := os.ReadFile(log.Name()) // the reason, if it gave one
			return nil, fmt.Errorf("dockerd ended: %w: %s", err, text[max(0, len(text)-300):])
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil, errors.Join(errors.New("dockerd does not answer"), d.stop())
}

func (d *docker) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = d.env
	return cmd
}

// load makes the image of a root file system.
func (d *docker) load(ctx context.Context, archive string) error {
	if text, err := d.command(ctx, "import", archive, "stamp").CombinedOutput(); err != nil {
		return fmt.Errorf("docker import: %w: %s", err, text)
	}
	return nil
}

// stop ends the daemon, which ends the containerd that it started.
func (d *docker) stop() error {
	if d == nil {
		return nil
	}
	if err := d.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.ended:
	case <-time.After(30 * time.Second):
		return fmt.Errorf("dockerd (process %d) does not end", d.daemon.Process.Pid)
	}
	return nil
}

// first is the time from the command to the first instruction of its container.
func (d *docker) first(ctx context.Context) (time.Duration, error) {
	began, err := monotonic()
	if err != nil {
		return 0, err
	}
	out, err := d.run(ctx)
	if err != nil {
		return 0, err
	}
	return sinceStamp(began, string(out))
}

// whole is the whole command.
func (d *docker) whole(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	_, err := d.run(ctx)
	return time.Since(began), err
}

func (d *docker) run(ctx context.Context) ([]byte, error) {
	out, err := d.command(ctx, "run", "--rm", "--network", "none", "--memory", "64m", "--pids-limit", "64", "stamp", "/stamp").Output()
	if failed := new(exec.ExitError); errors.As(err, &failed) {
		return nil, fmt.Errorf("docker run: %w: %s", err, failed.Stderr)
	}
	return out, err
}
