package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"naru/sandbox/build"
	"naru/sandbox/network"
	"naru/sandbox/runtime"
)

// stepRunner runs the steps of builds (build.Executor). Each is a container of
// its own on the layer that is being built. The builder's lock on it is held as
// long as the step runs: when the builder dies, Recover finds it free and ends
// the step.
type stepRunner struct{ e *Engine }

// networkBuild is the network of build steps that name none: what a build runs
// reaches the outside, and neither the host nor other containers.
const networkBuild = "naru-build"

// ensureBuildNetwork makes it on first use.
func (e *Engine) ensureBuildNetwork(ctx context.Context) error {
	if _, err := e.networks.Inspect(networkBuild); !errors.Is(err, network.ErrNotFound) {
		return err
	}
	_, err := e.networks.Create(ctx, networkBuild, network.Options{Untrusted: true})
	if errors.Is(err, network.ErrExists) {
		return nil // another build was faster
	}
	return err
}

// drainTime bounds the wait for output after a step has ended.
const drainTime = 5 * time.Second

// Run runs one step to its end, or kills it when ctx ends.
func (s stepRunner) Run(ctx context.Context, step build.Step) (code int, err error) {
	b, err := s.e.begin(ctx)
	if err != nil {
		return 0, fmt.Errorf("build step: %w", err)
	}
	r, err := s.e.planStep(b.id, step)
	if err == nil && r.Config.Network == networkBuild {
		err = s.e.ensureBuildNetwork(ctx)
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("build step: %w", err), s.e.abandon(ctx, b))
	}
	if err := s.e.intend(ctx, r, b); err != nil {
		return 0, fmt.Errorf("build step: %w", err)
	}
	defer func() {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, s.e.destroy(cleanup, r, b.lock))
	}()
	return s.e.runStep(ctx, r, step, b.monitor)
}

// planStep makes the record of a step. Its files are looked at as the step
// will see them: the unfinished layer on top.
func (e *Engine) planStep(id string, step build.Step) (*record, error) {
	c := ContainerConfig{
		Image: "build", Network: firstOf(step.Network, networkBuild), Hostname: firstOf(step.Hostname, "build"),
		Memory: step.Memory, Pids: step.Pids, CPUs: step.CPUs, UserNS: UserNSAuto,
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	if len(step.Args) == 0 {
		return nil, errors.New("no command given")
	}
	r := &record{ID: id, Step: true, Config: c, Lower: step.Lower, Command: step.Args, Created: time.Now().UTC(), Boot: e.boot}
	r.Block, r.Warnings = e.userNamespace(c)
	p := *runtime.DefaultProcess()
	p.Args, p.Env, p.Cwd, p.Terminal = step.Args, environment(step.Env), firstOf(step.Dir, "/"), false
	r.Process = &p
	layers := step.Lower
	if step.Upper != "" {
		layers = append(layers[:len(layers):len(layers)], step.Upper)
	}
	view, err := viewLayers(layers)
	if err != nil {
		return nil, err
	}
	defer view.Close() // read only: nothing can be lost
	return r, asUser(&p, view, step.User)
}

func (e *Engine) runStep(ctx context.Context, r *record, step build.Step, m *runtime.Monitor) (code int, err error) {
	out, done, err := pipeTo(step.Out)
	if err != nil {
		return 0, errors.Join(err, m.Close(context.WithoutCancel(ctx)))
	}
	defer func() {
		_ = out.Close() // a pipe of our own: nothing can be lost
		select {
		case <-done:
		case <-time.After(drainTime):
		}
	}()
	for _, w := range r.Warnings { // what isolation the kernel lacks must be seen in the build's log
		_, _ = fmt.Fprintln(step.Out, "naru: warning:", w)
	}
	root := runtime.Overlay{Lower: step.Lower, Upper: step.Upper, Work: step.Work, Volatile: true}
	rt, err := e.prepare(ctx, r, Stdio{Stdout: out, Stderr: out}, root, m)
	if err != nil {
		return 0, err
	}
	defer func() {
		// Whatever is left ends before the output is drained, or it never ends.
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, e.killOpen(cleanup, rt), rt.Close())
	}()
	if err := rt.Start(ctx); err != nil {
		if refused := new(runtime.StartError); errors.As(err, &refused) && refused.Code() != 125 {
			return refused.Code(), nil // no such program is the step's failure, not ours
		}
		return 0, err
	}
	exit, err := rt.Wait(ctx)
	if err != nil {
		return 0, err
	}
	if !exit.Known {
		return 0, errors.New("build step ended and nobody saw how")
	}
	if exit.OOM {
		_, _ = fmt.Fprintln(step.Out, "naru: killed: the step needs more memory than its limit")
	}
	return exit.Code, nil
}

// pipeTo returns the write end of a pipe that is copied to w until every
// holder of the end has closed it; done is closed then.
func pipeTo(w io.Writer) (end *os.File, done <-chan struct{}, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("create pipe: %w", err)
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		defer read.Close() // read only: nothing can be lost
		if w == nil {
			w = io.Discard
		}
		if _, err := io.Copy(w, read); err != nil {
			_, _ = io.Copy(io.Discard, read) // a broken log must not block the step
		}
	}()
	return write, finished, nil
}
