// Package local runs replicas in the sandbox of this machine.
//
// A replica is a container with the replica's name and three labels: of which
// app, process and release it is. There is no other state: List reads the
// containers, so what a crash of the agent leaves is found again by looking.
// The life of one replica: Start creates the container with PORT set to the
// process's port and returns its address on the bridge, where the host's nginx
// reaches it without a published port; the container runs on by itself, agent
// or not; Stop asks it to end and removes it.
package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"naru/pipeline"
	"naru/sandbox"
	"naru/sandbox/runtime"
)

// Labels of a replica's container.
const (
	LabelApp     = "naru.app"
	LabelProcess = "naru.process"
	LabelRelease = "naru.release"
)

// reportLines is how much of the log a Report has.
const reportLines = 50

// Target implements pipeline.Target over a sandbox.
type Target struct{ engine *sandbox.Engine }

// New returns the target over an engine.
func New(e *sandbox.Engine) *Target { return &Target{e} }

// Start makes the replica run. The name is the key: a running container of that
// name is the replica, whatever it was started from; a dead one is replaced.
func (t *Target) Start(ctx context.Context, s pipeline.ReplicaSpec) (pipeline.Replica, error) {
	old, err := t.engine.Get(ctx, s.Name)
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
	case err != nil:
		return pipeline.Replica{}, fmt.Errorf("start replica %s: %w", s.Name, err)
	case old.State == string(runtime.Running):
		return replica(old), nil
	default:
		if err := t.remove(ctx, s.Name); err != nil {
			return pipeline.Replica{}, fmt.Errorf("replace replica %s: %w", s.Name, err)
		}
	}
	c, err := t.engine.Run(ctx, config(s), sandbox.Stdio{})
	if err != nil {
		return pipeline.Replica{}, fmt.Errorf("start replica %s: %w", s.Name, err)
	}
	return replica(c), nil
}

// Stop ends the replica and removes it. An unknown name is no error.
func (t *Target) Stop(ctx context.Context, name string, grace time.Duration) error {
	if grace == 0 {
		grace = -1 // the sandbox takes 0 for the container's own
	}
	err := t.engine.Stop(ctx, name, grace)
	if err == nil {
		err = t.remove(ctx, name)
	}
	if err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return fmt.Errorf("stop replica %s: %w", name, err)
	}
	return nil
}

func (t *Target) remove(ctx context.Context, name string) error {
	err := t.engine.Remove(ctx, name, true)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	return err
}

// List returns the replicas of an app by name; all apps for "". What a crash
// left of a release command is among them, as a replica of no process and no
// release: nobody wants it, so the next reconciliation stops it.
func (t *Target) List(ctx context.Context, app string) ([]pipeline.Replica, error) {
	list, err := t.engine.List(ctx, true, map[string]string{LabelApp: app})
	if err != nil {
		return nil, fmt.Errorf("list replicas: %w", err)
	}
	replicas := []pipeline.Replica{}
	for _, c := range list {
		replicas = append(replicas, replica(c))
	}
	slices.SortFunc(replicas, func(a, b pipeline.Replica) int { return strings.Compare(a.Name, b.Name) })
	return replicas, nil
}

// Report tells how the replica is or how it ended, with its last log lines.
func (t *Target) Report(ctx context.Context, name string) (pipeline.Report, error) {
	c, err := t.engine.Get(ctx, name)
	if err != nil {
		return pipeline.Report{}, fmt.Errorf("report on replica %s: %w", name, err)
	}
	var log bytes.Buffer
	if err := t.engine.Logs(ctx, c.ID, runtime.LogOptions{Tail: reportLines}, &log, &log); err != nil {
		return pipeline.Report{}, fmt.Errorf("report on replica %s: %w", name, err)
	}
	r := pipeline.Report{Running: c.State == string(runtime.Running), ExitCode: c.ExitCode, OOM: c.OOM, Log: []string{}}
	for line := range strings.Lines(log.String()) {
		r.Log = append(r.Log, strings.TrimRight(line, "\r\n"))
	}
	if extra := len(r.Log) - reportLines; extra > 0 {
		r.Log = r.Log[extra:] // Tail counts per stream
	}
	return r, nil
}

// Run runs a command once in a container like the replica's, with its output
// in log, and waits. It ends with ctx. What a crash left of an earlier try is
// ended first: two of one release command must never run side by side.
func (t *Target) Run(ctx context.Context, s pipeline.ReplicaSpec, command []string, log io.Writer) (code int, err error) {
	c := config(s)
	c.Args, c.Labels = command, map[string]string{LabelApp: s.App}
	if err := t.remove(ctx, c.Name); err != nil {
		return 0, fmt.Errorf("run command of %s: %w", s.Name, err)
	}
	out, done, err := pipeTo(log)
	if err != nil {
		return 0, fmt.Errorf("run command of %s: %w", s.Name, err)
	}
	made, err := t.engine.Run(ctx, c, sandbox.Stdio{Stdout: out, Stderr: out})
	if err == nil {
		for _, w := range made.Warnings {
			_, _ = fmt.Fprintf(out, "naru: warning: %s\n", w) // a broken log is the command's to notice
		}
		var exit runtime.Exit
		exit, err = t.engine.Wait(ctx, made.ID)
		code = exit.Code
		if err == nil && !exit.Known {
			err = errors.New("it ended and nobody saw how")
		}
	}
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err = errors.Join(err, t.remove(cleanup, c.Name), out.Close())
	<-done
	if err != nil {
		return 0, fmt.Errorf("run command of %s: %w", s.Name, err)
	}
	return code, nil
}

// config is the container of a replica.
func config(s pipeline.ReplicaSpec) sandbox.ContainerConfig {
	c := sandbox.ContainerConfig{
		Name: s.Name, Image: s.Image, Args: s.Process.Command, Hostname: hostname(s.Name),
		Memory: s.Process.Memory, CPUs: s.Process.CPUs, Pids: s.Process.Pids,
		Runtime: s.Runtime, StopSignal: s.Process.Signal, StopGrace: s.Process.StopGrace,
		Labels: map[string]string{
			LabelApp: s.App, LabelProcess: s.Process.Name, LabelRelease: strconv.Itoa(s.Release),
			portLabel: strconv.Itoa(s.Process.Port),
		},
	}
	for _, key := range slices.Sorted(maps.Keys(s.Env)) {
		c.Env = append(c.Env, key+"="+s.Env[key])
	}
	if s.Process.Port > 0 {
		c.Env = append(c.Env, "PORT="+strconv.Itoa(s.Process.Port))
	}
	for _, v := range s.Volumes {
		// Volumes of two apps may have one name and are not one volume.
		c.Mounts = append(c.Mounts, sandbox.Mount{Source: s.App + "." + v.Name, Target: v.Path, Volume: true})
	}
	return c
}

// portLabel keeps the process's port beside the container, so that List knows
// the address without the release's record.
const portLabel = "naru.port"

// hostname makes a host name of a replica's name (RFC 1123: letters, digits and
// dashes, at most 63).
func hostname(name string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name)
	return strings.Trim(clean[:min(len(clean), 63)], "-")
}

// replica reads a container back.
func replica(c sandbox.Container) pipeline.Replica {
	r := pipeline.Replica{
		Name: c.Name, App: c.Labels[LabelApp], Process: c.Labels[LabelProcess], Running: c.State == string(runtime.Running),
		Warnings: c.Warnings,
	}
	// Our own labels: a foreign one gives release 0, which is no release.
	r.Release, _ = strconv.Atoi(c.Labels[LabelRelease])
	port, err := strconv.ParseUint(c.Labels[portLabel], 10, 16)
	if err == nil && port > 0 && c.Address.IsValid() {
		r.Address = netip.AddrPortFrom(c.Address, uint16(port))
	}
	return r
}

// pipeTo returns the write end of a pipe that is copied to w until the last
// holder of the end has closed it; done is closed then.
func pipeTo(w io.Writer) (end *os.File, done <-chan struct{}, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		defer read.Close() // read only: nothing can be lost
		if _, err := io.Copy(w, read); err != nil {
			_, _ = io.Copy(io.Discard, read) // a broken log must not block the command
		}
	}()
	return write, finished, nil
}
