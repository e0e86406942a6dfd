package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/runtime"
)

func restartCommand(env *Env) *cobra.Command {
	return graceCommand(env, "restart", "Stop containers and start them again", (*sandbox.Engine).Restart)
}

func pauseCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "pause CONTAINER...",
		Short: "Stop all processes of containers for a while",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return forEach(env, args, func(ref string) error { return e.Pause(ctx, ref) })
		}),
	}
}

func unpauseCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "unpause CONTAINER...",
		Short: "Let paused containers go on",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return forEach(env, args, func(ref string) error { return e.Unpause(ctx, ref) })
		}),
	}
}

// calledName is the command that monitors run; it is no person's.
const calledName = "container-called"

// callbackCommand is this program as a monitor calls it.
func callbackCommand(env *Env) ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	args := []string{exe}
	for flag, dir := range map[string]string{"--root": env.Root, "--run": env.Run} {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		args = append(args, flag, abs)
	}
	return append(args, calledName), nil
}

func calledCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:    calledName + " ID",
		Short:  "Look after a container whose monitor asks for it",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			e, err := openWithoutRegistries(env)
			if err != nil {
				return err
			}
			soon, err := e.Called(c.Context(), args[0])
			if err == nil && soon {
				return &ExitError{Code: runtime.CallbackSoon}
			}
			return err
		},
	}
}
