package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/build"
	"naru/sandbox/internal/diskuse"
	"naru/sandbox/network"
	"naru/sandbox/runtime"
	"naru/sandbox/runtime/cgroup"
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

// stepDir is where the monitor of a step keeps its log and exit record: on tmpfs.
func (e *Engine) stepDir(id string) string { return e.stateDir(id) + ".step" }

// stepLog bounds that log in bytes. All output goes to the builder as well.
const stepLog = 64 << 10

// drainTime bounds the wait for output after a step has ended.
const drainTime = 5 * time.Second

// Run runs one step to its end, or kills it when ctx ends.
func (s stepRunner) Run(ctx context.Context, step build.Step) (exit build.StepExit, err error) {
	b, err := s.e.begin(ctx)
	if err != nil {
		return exit, fmt.Errorf("build step: %w", err)
	}
	r, err := s.e.planStep(b.id, step)
	if err == nil && r.Config.Network == networkBuild {
		err = s.e.ensureBuildNetwork(ctx)
	}
	if err != nil {
		return exit, errors.Join(fmt.Errorf("build step: %w", err), s.e.abandon(ctx, b))
	}
	if err := s.e.intend(ctx, r, b); err != nil {
		return exit, fmt.Errorf("build step: %w", err)
	}
	defer func() {
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, s.e.destroy(cleanup, r, b.lock))
	}()
	r.Process.Env = environment(r.Process.Env, step.Secrets) // after the record was written
	mounts, err := openStepMounts(r, step.Mounts)
	if err != nil {
		return exit, errors.Join(fmt.Errorf("build step: %w", err), b.monitor.Close(context.WithoutCancel(ctx)))
	}
	defer mounts.close()
	r.mounts = mounts
	if step.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, step.Timeout, &limitError{build.ReasonTime, fmt.Sprintf("the step took longer than its time limit of %s", step.Timeout)})
		defer stop()
	}
	ctx, over := context.WithCancelCause(ctx)
	defer over(nil)
	defer s.e.watchDisk(ctx, r, step, over)()
	exit, err = s.e.runStep(ctx, r, step, b.monitor)
	if limit := (*limitError)(nil); errors.As(context.Cause(ctx), &limit) && (err == nil || errors.Is(err, ctx.Err()) || errors.Is(err, limit)) {
		return build.StepExit{Code: 128 + int(unix.SIGKILL), Reason: limit.reason, Detail: limit.detail}, nil
	}
	return exit, err
}

// watchDisk begins to watch what a step writes; the returned function ends it.
func (e *Engine) watchDisk(ctx context.Context, r *record, step build.Step, over context.CancelCauseFunc) (stop func()) {
	begin, err := roomOf(step.Upper)
	if err != nil {
		over(err)
		return func() {}
	}
	d := &diskWatch{step: step, limit: diskuse.Use{Bytes: step.Disk, Inodes: step.Inodes}, begin: begin, pids: func() ([]int, error) {
		group, err := e.group(r.ID)
		if err != nil {
			return nil, err
		}
		return group.Pids()
	}}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.watch(ctx, over)
	}()
	return func() { cancel(); <-done }
}

// stepCapabilities are what installing software needs beside the default: setcap,
// chroot, device nodes, sudo's word to the audit log. They are of the step's own user
// namespace, and not given where there is none.
func stepCapabilities() []string { return []string{"SETFCAP", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE"} }

// stepShares lets a step have what apps leave of the processors: a sixteenth of one's
// weight when both want all. A machine that cannot weigh gives 0, no shares.
func stepShares() uint64 {
	if host, err := cgroup.Detect(); err != nil || !host.Has("cpu") {
		return 0
	}
	return 64
}

// planStep makes the record of a step. Its files are looked at as the step
// will see them: the unfinished layer on top.
func (e *Engine) planStep(id string, step build.Step) (*record, error) {
	c := ContainerConfig{
		Image: "build", Network: firstOf(step.Network, networkBuild), Hostname: firstOf(step.Hostname, "build"),
		Memory: step.Memory, Pids: step.Pids, CPUs: step.CPUs, UserNS: UserNSAuto,
		Net:       Networking{AddHosts: step.AddHosts, DNS: step.DNS, DNSSearch: step.DNSSearch, DNSOptions: step.DNSOptions},
		Resources: Resources{ShmSize: step.ShmSize, Ulimits: step.Ulimits, CPUShares: stepShares()},
	}
	if err := c.complete(); err != nil {
		return nil, err
	}
	if len(step.Args) == 0 {
		return nil, errors.New("no command given")
	}
	c.LogMax = stepLog
	r := &record{ID: id, Step: true, Config: c, Lower: step.Lower, Command: step.Args, Created: time.Now().UTC(), Boot: e.boot}
	r.Block, r.Warnings = e.userNamespace(c)
	if r.Block >= 0 {
		r.Config.Security.CapAdd = stepCapabilities()
	}
	p := *runtime.DefaultProcess()
	if err := r.Config.Security.process(&p); err != nil {
		return nil, err
	}
	p.Rlimits = step.Ulimits
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
	if err := asUser(&p, view, step.User); err != nil {
		return nil, err
	}
	// The group is one of the groups too, as everywhere else: without it a process that
	// gives its group up can read what is closed to that (CVE-2023-25173).
	if !slices.Contains(p.User.AdditionalGids, p.User.GID) {
		p.User.AdditionalGids = append([]uint32{p.User.GID}, p.User.AdditionalGids...)
	}
	return r, nil
}

func (e *Engine) runStep(ctx context.Context, r *record, step build.Step, m *runtime.Monitor) (end build.StepExit, err error) {
	out, done, err := pipeTo(step.Out)
	if err != nil {
		return end, errors.Join(err, m.Close(context.WithoutCancel(ctx)))
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
		return end, err
	}
	defer func() {
		// Whatever is left ends before the output is drained, or it never ends.
		cleanup, cancel := afterwards(ctx)
		defer cancel()
		err = errors.Join(err, e.killOpen(cleanup, rt), rt.Close())
	}()
	if err := rt.Start(ctx); err != nil {
		if refused := new(runtime.StartError); errors.As(err, &refused) && refused.Code() != 125 {
			// no such program is the step's failure, not ours
			return build.StepExit{Code: refused.Code(), Reason: build.ReasonExit, Detail: fmt.Sprintf("%s: %v", step.Args[0], refused.Err)}, nil
		}
		return end, err
	}
	exit, err := rt.Wait(ctx)
	if err != nil {
		return end, err
	}
	if !exit.Known {
		return end, errors.New("build step ended and nobody saw how")
	}
	return e.reasonOf(r, exit), nil
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
