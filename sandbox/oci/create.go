package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"naru/internal/atomicfile"
	"naru/sandbox/runtime"
)

// IO says what a process's descriptors are connected to.
type IO struct {
	// Stdin, Stdout and Stderr are handed over as they are.
	Stdin, Stdout, Stderr *os.File
	// Preserve become descriptors 3, 4, ….
	Preserve []*os.File
	// Console takes the master of the terminal, if the process has one.
	Console func(master *os.File) error
}

// CreateOptions are those of Create.
type CreateOptions struct {
	ID string
	// Bundle is the directory of config.json.
	Bundle string
	// PidFile receives the init's pid, if not empty.
	PidFile string
	// KeepKeyring leaves the caller's session keyring to the container.
	KeepKeyring bool
	IO
}

// Create makes a container, whose process waits for Start. After an error, or when
// the caller is killed before it returns, nothing of it runs.
func (r Runtime) Create(ctx context.Context, o CreateOptions) error {
	if err := checkID(o.ID); err != nil {
		return err
	}
	bundle, spec, err := r.load(o.Bundle)
	if err != nil {
		return err
	}
	if spec.Process.Terminal && o.Console == nil {
		return errors.New("process.terminal: needs a console socket")
	}
	l, err := r.lockNew(o.ID)
	if err != nil {
		return err
	}
	defer l.release()
	if err := r.create(ctx, o, bundle, spec); err != nil {
		return errors.Join(startError(spec.Process, err), r.remove(o.ID))
	}
	return nil
}

// load reads and checks config.json.
func (r Runtime) load(bundle string) (string, *specs.Spec, error) {
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return "", nil, err
	}
	if bundle, err = filepath.EvalSymlinks(bundle); err != nil {
		return "", nil, fmt.Errorf("bundle: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return "", nil, fmt.Errorf("bundle: %w", err)
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(b, spec); err != nil {
		return "", nil, fmt.Errorf("bundle %s: config.json: %w", bundle, err)
	}
	spec, warnings, err := runtime.CheckBundle(spec)
	for _, w := range warnings {
		r.warn("%s", w)
	}
	if err != nil {
		return "", nil, fmt.Errorf("bundle %s: config.json: %w", bundle, err)
	}
	return bundle, spec, nil
}

func (r Runtime) create(ctx context.Context, o CreateOptions, bundle string, spec *specs.Spec) error {
	path, err := r.cgroupPath(o.ID, spec)
	if err != nil {
		return err
	}
	rec := record{Version: recordVersion, OCIVersion: specs.Version, ID: o.ID, Bundle: bundle, Annotations: spec.Annotations,
		Created: time.Now().UTC(), Owner: os.Getuid(), Cgroup: path, Config: spec}
	state := func(pid int, status specs.ContainerState) specs.State {
		return specs.State{Version: specs.Version, ID: o.ID, Status: status, Pid: pid, Bundle: bundle, Annotations: spec.Annotations}
	}
	stops := false
	c := runtime.SoloConfig{
		ID: o.ID, Spec: spec, Bundle: bundle, StateDir: r.dir(o.ID), Cgroup: path, KeepKeyring: o.KeepKeyring,
		Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Preserve: o.Preserve, Console: o.Console,
		Listener: func(f *os.File, pid int) error {
			return sendListener(f, spec.Linux.Seccomp, pid, state(pid, specs.StateCreating))
		},
		Save: func(init runtime.Solo) error {
			rec.Init = init
			if err := r.save(rec); err != nil {
				return err
			}
			return writePid(o.PidFile, init.Pid)
		},
	}
	//lint:ignore SA1019 prestart is deprecated in the specification, and Docker's
	if h := spec.Hooks; h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 {
		c.Halt = func(ctx context.Context, init runtime.Identity) error {
			stops = true
			return createHooks(ctx, h, init, state(init.Pid, specs.StateCreated))
		}
	}
	err = runtime.CreateSolo(ctx, c)
	if err != nil && stops { // it had an environment: it is stopped now, and goes as a container goes
		r.stopHooks(context.WithoutCancel(ctx), spec.Hooks, state(0, specs.StateStopped))
	}
	return err
}

// writePid writes a pid file as a whole or not at all.
func writePid(file string, pid int) error {
	if file == "" {
		return nil
	}
	if err := atomicfile.Replace(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	return nil
}
