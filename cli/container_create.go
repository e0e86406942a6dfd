package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// createCommand is run without the start: it has run's flags.
func createCommand(env *Env) *cobra.Command {
	f := &runFlags{}
	c := &cobra.Command{
		Use:   "create [flags] IMAGE [COMMAND] [ARG...]",
		Short: "Create a container for a later start, and print its id",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f.config.Image, f.config.Args = args[0], args[1:]
			if err := f.complete(c); err != nil {
				return engineError(err)
			}
			return engineError(createContainer(c.Context(), env, f))
		},
	}
	f.define(c)
	_ = c.Flags().MarkHidden("detach") // it always is
	c.SetFlagErrorFunc(engineUsage)
	return c
}

func createContainer(ctx context.Context, env *Env, f *runFlags) error {
	e, err := openEngine(env)
	if err != nil {
		return err
	}
	if err := pullFor(ctx, env, e, f); err != nil {
		return err
	}
	if err := f.cid.open(); err != nil {
		return err
	}
	defer f.cid.close()
	c, err := e.Define(ctx, f.config)
	if err != nil {
		return err
	}
	if err := f.cid.write(c.ID); err != nil {
		return errors.Join(err, e.Remove(context.WithoutCancel(ctx), c.ID, true))
	}
	warn(env, c)
	fmt.Fprintln(env.Stdout, c.ID)
	return nil
}

// cidFile is the file of --cidfile. It is made before the container, so that no
// container goes unnoticed because its id had nowhere to go.
type cidFile struct {
	path string
	f    *os.File
	done bool
}

func (c *cidFile) open() (err error) {
	if c.path == "" {
		return nil
	}
	if c.f, err = os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err != nil {
		return fmt.Errorf("--cidfile: %w", err)
	}
	return nil
}

func (c *cidFile) write(id string) error {
	if c.f == nil {
		return nil
	}
	if _, err := c.f.WriteString(id); err != nil {
		return fmt.Errorf("--cidfile: %w", err)
	}
	c.done = true
	return nil
}

// close removes a file that no id was written to.
func (c *cidFile) close() {
	if c.f == nil {
		return
	}
	_ = c.f.Close() // written or removed
	if !c.done {
		_ = os.Remove(c.path) // empty, and the error is on its way already
	}
}
