package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"naru/sandbox"
)

func stopCommand(env *Env) *cobra.Command {
	return graceCommand(env, "stop", "Ask containers to end, and kill them if they do not", (*sandbox.Engine).Stop)
}

// graceCommand asks containers to end before it does something.
func graceCommand(env *Env, verb, short string, do func(*sandbox.Engine, context.Context, string, time.Duration) error) *cobra.Command {
	seconds := 0
	c := &cobra.Command{Use: verb + " CONTAINER...", Short: short, Args: cobra.MinimumNArgs(1)}
	c.Flags().IntVarP(&seconds, "timeout", "t", 0, "seconds until the kill (default: the container's own, 10)")
	c.RunE = withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
		grace := time.Duration(seconds) * time.Second
		if c.Flags().Changed("timeout") && seconds <= 0 {
			grace = -1 // at once
		}
		return forEach(env, args, func(ref string) error { return do(e, ctx, ref, grace) })
	})
	return c
}

func killCommand(env *Env) *cobra.Command {
	name := ""
	c := &cobra.Command{
		Use:   "kill CONTAINER...",
		Short: "Send a signal to containers",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			sig, err := sandbox.ParseSignal(name)
			if err != nil {
				return usage("%w", err)
			}
			return forEach(env, args, func(ref string) error { return e.Kill(ctx, ref, unix.Signal(sig)) })
		}),
	}
	c.Flags().StringVarP(&name, "signal", "s", "KILL", "signal, by name or number")
	return c
}

func rmCommand(env *Env) *cobra.Command {
	o := sandbox.RemoveOptions{}
	c := &cobra.Command{
		Use:   "rm CONTAINER...",
		Short: "Remove containers",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return forEach(env, args, func(ref string) error {
				err := e.RemoveWith(ctx, ref, o)
				if o.Force && errors.Is(err, sandbox.ErrNotFound) {
					fmt.Fprintln(env.Stderr, "naru:", err)
					return nil
				}
				return err
			})
		}),
	}
	c.Flags().BoolVarP(&o.Force, "force", "f", false, "kill them first if they run")
	c.Flags().BoolVarP(&o.Volumes, "volumes", "v", false, "delete their anonymous volumes too")
	return c
}

func waitCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "wait CONTAINER...",
		Short: "Wait until containers have ended, and print their exit codes",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			errs := []error{}
			for _, ref := range args {
				exit, err := e.Wait(ctx, ref)
				if errs = append(errs, err); err == nil {
					fmt.Fprintln(env.Stdout, exit.Code)
				}
			}
			return errors.Join(errs...)
		}),
	}
}

// execFlags are the flags of exec.
type execFlags struct {
	env           []string
	user, workdir string
	stdin, tty    bool
	detach        bool
	detachKeys    string
}

func execCommand(env *Env) *cobra.Command {
	f := execFlags{}
	c := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Args:  cobra.MinimumNArgs(2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return execIn(ctx, env, e, f, args)
		}),
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringArrayVarP(&f.env, "env", "e", nil, "environment variable KEY=value, or KEY to pass one on")
	c.Flags().StringVarP(&f.user, "user", "u", "", "user[:group], names or numbers")
	c.Flags().StringVarP(&f.workdir, "workdir", "w", "", "working directory inside")
	c.Flags().BoolVarP(&f.stdin, "interactive", "i", false, "pass standard input on")
	c.Flags().BoolVarP(&f.tty, "tty", "t", false, "give it a terminal")
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "do not wait for its end")
	c.Flags().StringVar(&f.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave the terminal")
	return c
}

func execIn(ctx context.Context, env *Env, e *sandbox.Engine, f execFlags, args []string) error {
	vars, err := readEnv(nil, f.env)
	if err != nil {
		return engineError(err)
	}
	x := execution{engine: e, ref: args[0], flags: f}
	x.options = sandbox.ExecOptions{Args: args[1:], Env: vars, User: f.user, Workdir: f.workdir, Detach: f.detach}
	code, err := 0, error(nil)
	switch {
	case f.detach:
		_, err = e.Exec(ctx, x.ref, x.options)
	case f.tty:
		code, err = x.onTerminal(ctx, env)
	default:
		code, err = x.onPipes(ctx, env)
	}
	if errors.Is(err, sandbox.ErrNotFound) || errors.Is(err, sandbox.ErrNotRunning) {
		return err // exit code 1, as Docker has it
	}
	if err != nil {
		return engineError(err)
	}
	if code != 0 {
		return &ExitError{Code: code}
	}
	return nil
}
