package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"naru/agent"
	"naru/pipeline/nginx"
	"naru/sandbox"
)

func systemReset(env *Env) *cobra.Command {
	force := false
	c := &cobra.Command{
		Use:   "reset --force",
		Short: "Stop nginx and remove all containers and networks of this data directory",
		Long: "Stop the managed nginx and remove every container and network of this data directory, so that\n" +
			"nothing of it runs any more. No agent may run. Images, volumes and records stay as plain files.\n" +
			"The machine's own nginx (mode system) is left alone: remove naru's include file and reload it.",
		Args: cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) (err error) {
			if !force {
				return usage("this stops and removes everything that runs from %s: say --force", env.Root)
			}
			unlock, err := agent.Lock(env.Root)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, unlock()) }()
			return errors.Join(stopNginx(ctx, env), e.Reset(ctx))
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do it")
	return c
}

// stopNginx ends the managed nginx, if there is one.
func stopNginx(ctx context.Context, env *Env) error {
	dir := nginxDir(env.Root)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	router, err := nginx.Open(nginx.Options{Mode: "managed", Dir: dir, Run: nginxDir(env.Run), Listen: []string{"127.0.0.1:80"}})
	if err != nil {
		return err
	}
	return router.Shutdown(ctx)
}

// nginxDir is where the router's files are in the data and the run directory.
func nginxDir(under string) string { return filepath.Join(under, "nginx") }
