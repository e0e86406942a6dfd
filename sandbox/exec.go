package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"naru/sandbox/runtime"
)

// ExecOptions is one more process for a running container.
type ExecOptions struct {
	Args                  []string
	Env                   []string // KEY=value, over the container's
	User                  string   // default: the container's
	Workdir               string   // default: the container's
	Stdin, Stdout, Stderr *os.File // nil: /dev/null
	// Terminal takes the master of a terminal for the command, before it runs; nil:
	// it gets none. Stdin, Stdout and Stderr are unused then.
	Terminal      func(master *os.File)
	Rows, Columns uint16 // of the terminal
	Detach        bool   // return as soon as the command runs
}

// Exec runs a command inside the container and returns its exit code. A
// program that cannot be executed is code 126 or 127 with the error.
func (e *Engine) Exec(ctx context.Context, ref string, o ExecOptions) (code int, err error) {
	id, err := e.resolve(ref)
	if err != nil {
		return 0, err
	}
	r, err := e.load(id)
	if err != nil {
		return 0, err
	}
	rt, err := e.open(id)
	if err != nil {
		return 0, err
	}
	if rt == nil {
		return 0, fmt.Errorf("%w: %s", ErrNotRunning, r.Name)
	}
	defer rt.Close() // the container needs no descriptor of ours
	switch rt.State() {
	case runtime.Running:
	case runtime.Paused:
		return 0, fmt.Errorf("%w: %s is paused, unpause it first", ErrNotRunning, r.Name)
	default:
		return 0, fmt.Errorf("%w: %s", ErrNotRunning, r.Name)
	}
	process, err := execProcess(r, rt, o)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", short(id), err)
	}
	policy, err := r.Config.Security.policy(process)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", short(id), err)
	}
	e.emit(r, "exec_start", "execCommand", strings.Join(o.Args, " "))
	exit, err := rt.Exec(ctx, runtime.ExecConfig{
		Process: process, Seccomp: policy, NoSeccomp: r.Config.Security.NoSeccomp,
		Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr,
		Terminal: o.Terminal, Detach: o.Detach,
	})
	if refused := new(runtime.StartError); errors.As(err, &refused) {
		return refused.Code(), err
	}
	e.emit(r, "exec_die", "exitCode", strconv.Itoa(exit.Code))
	return exit.Code, err
}

// execProcess is the container's own process with other arguments.
func execProcess(r *record, rt *runtime.Container, o ExecOptions) (*specs.Process, error) {
	if len(o.Args) == 0 || o.Args[0] == "" {
		return nil, errors.New("no command given")
	}
	p := *r.Process
	p.Args, p.Env = o.Args, environment(r.Process.Env, o.Env)
	if p.Terminal, p.ConsoleSize = o.Terminal != nil, nil; p.Terminal {
		p.Env = environment([]string{"TERM=xterm"}, p.Env)
		p.ConsoleSize = &specs.Box{Height: uint(o.Rows), Width: uint(o.Columns)}
	}
	if o.Workdir != "" {
		if !path.IsAbs(o.Workdir) {
			return nil, fmt.Errorf("working directory %q is not absolute", o.Workdir)
		}
		p.Cwd = o.Workdir
	}
	if o.User == "" {
		return &p, nil
	}
	// HOME was set for the container's user, unless somebody asked for it.
	if !hasKey(r.Config.Env, "HOME") && !hasKey(o.Env, "HOME") {
		p.Env = slices.DeleteFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") })
	}
	p.Capabilities = allOfBounding(r.Process) // not the default: some may have been dropped
	// As the container sees its files now, not as the image was. The first
	// process still lives or Exec fails, so the pid was not somebody else.
	view, _, err := viewProgram(rt)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", o.User, err)
	}
	defer view.Close() // read only: nothing can be lost
	return &p, asUser(&p, view, o.User)
}

func hasKey(env []string, key string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, key+"=") })
}
