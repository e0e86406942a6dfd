package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// createHooks runs the hooks of the creation, in the order of runtime-spec: prestart,
// createRuntime, and in the container's namespaces createContainer.
func createHooks(ctx context.Context, h *specs.Hooks, init runtime.Identity, s specs.State) error {
	//lint:ignore SA1019 prestart is deprecated in the specification, and Docker's
	if err := runHooks(ctx, "prestart", h.Prestart, s, nil); err != nil {
		return err
	}
	if err := runHooks(ctx, "createRuntime", h.CreateRuntime, s, nil); err != nil {
		return err
	}
	return runHooks(ctx, "createContainer", h.CreateContainer, s, &init)
}

// stopHooks runs the poststop hooks; one that fails is a warning, and the others run.
func (r Runtime) stopHooks(ctx context.Context, h *specs.Hooks, s specs.State) {
	if h == nil {
		return
	}
	for i := range h.Poststop {
		if err := runHooks(ctx, "poststop", h.Poststop[i:i+1], s, nil); err != nil {
			r.warn("%v", err)
		}
	}
}

// runHooks runs hooks until one fails: on the machine, or inside an init's namespaces.
func runHooks(ctx context.Context, kind string, hooks []specs.Hook, s specs.State, inside *runtime.Identity) error {
	if len(hooks) == 0 {
		return nil
	}
	state, err := json.Marshal(s)
	if err != nil {
		return err
	}
	for i, h := range hooks {
		run := onMachine
		if inside != nil {
			run = func(ctx context.Context, h specs.Hook, state []byte) error { return within(ctx, *inside, h, state) }
		}
		err := func() error {
			if h.Timeout != nil {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
				defer cancel()
			}
			err := run(ctx, h, state)
			if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("killed after its timeout of %d s", *h.Timeout)
			}
			return err
		}()
		if err != nil {
			return fmt.Errorf("hooks.%s[%d], %s: %w", kind, i, h.Path, err)
		}
	}
	return nil
}

// outputMax bounds what is kept of a hook's output for the error message, in bytes.
const outputMax = 4096

// onMachine runs a hook in the caller's namespaces.
func onMachine(ctx context.Context, h specs.Hook, state []byte) error {
	var out bytes.Buffer
	c := exec.CommandContext(ctx, h.Path)
	c.Args, c.Env, c.Stdin = h.Args, h.Env, bytes.NewReader(state)
	if len(c.Args) == 0 {
		c.Args = []string{h.Path}
	}
	if c.Env == nil {
		c.Env = []string{} // nothing of ours
	}
	c.Stdout, c.Stderr = &out, &out
	c.WaitDelay = time.Second // a grandchild may hold the output open
	err := c.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return withOutput(err, out.Bytes())
}

// within runs a hook in the namespaces of the init; its input and output are files
// in memory, which nobody needs to serve.
func within(ctx context.Context, init runtime.Identity, h specs.Hook, state []byte) error {
	in, err := memory("state", state)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := memory("output", nil)
	if err != nil {
		return err
	}
	defer out.Close()
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	exit, err := runtime.RunInside(ctx, init, runtime.Inside{Path: h.Path, Args: args, Env: h.Env, Stdin: in, Stdout: out, Stderr: out})
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("exit status %d", exit.Code)
	}
	if err == nil {
		return nil
	}
	text := make([]byte, outputMax)
	n, _ := out.ReadAt(text, 0) // at its end it says io.EOF
	return withOutput(err, text[:n])
}

func memory(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(content, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func withOutput(err error, out []byte) error {
	text := strings.TrimSpace(string(out[:min(len(out), outputMax)]))
	if err == nil || text == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, text)
}
