package cli

import (
	"context"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/runtime"
)

func startCommand(env *Env) *cobra.Command {
	attach, input := false, false
	f := attachFlags{}
	c := &cobra.Command{
		Use:   "start CONTAINER...",
		Short: "Start stopped containers",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			if !attach && !input {
				return forEach(env, args, func(ref string) error { return e.Start(ctx, ref) })
			}
			if len(args) > 1 {
				return usage("start --attach takes one container")
			}
			f.noStdin = !input
			return startAttached(ctx, env, e, args[0], f)
		}),
	}
	c.Flags().BoolVarP(&attach, "attach", "a", false, "show its output, and end with its exit code")
	c.Flags().BoolVarP(&input, "interactive", "i", false, "pass standard input on, and attach")
	c.Flags().BoolVar(&f.sigProxy, "sig-proxy", true, "pass signals on to the container")
	c.Flags().StringVar(&f.keys, "detach-keys", defaultDetachKeys, "keys that leave the container")
	return c
}

func startAttached(ctx context.Context, env *Env, e *sandbox.Engine, ref string, f attachFlags) error {
	c, err := e.Get(ctx, ref)
	if err != nil {
		return err
	}
	a, err := e.StartAttached(ctx, c.ID, runtime.AttachOptions{Once: !f.noStdin && c.Config.Stdin, Patience: foregroundPatience})
	if err != nil {
		return engineError(err)
	}
	return follow(ctx, env, watched{e, c, a}, f)
}
