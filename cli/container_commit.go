package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
)

func commitCommand(env *Env) *cobra.Command {
	o, pause := sandbox.CommitOptions{}, true
	var changes []string
	c := &cobra.Command{
		Use:   "commit CONTAINER [NAME]",
		Short: "Make an image of a container's files",
		Args:  cobra.RangeArgs(1, 2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			if len(args) == 2 {
				o.Name = args[1]
			}
			o.NoPause = !pause
			if err := applyChanges(&image.RunConfig{}, changes); err != nil {
				return err // before anything is copied
			}
			o.Change = func(c *image.RunConfig) error { return applyChanges(c, changes) }
			img, err := e.Commit(ctx, args[0], o)
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, img.ID)
			return nil
		}),
	}
	c.Flags().StringArrayVarP(&changes, "change", "c", nil, "a Dockerfile instruction: "+changeWords)
	c.Flags().StringVarP(&o.Author, "author", "a", "", "author of the image")
	c.Flags().StringVarP(&o.Message, "message", "m", "", "what it is")
	c.Flags().BoolVarP(&pause, "pause", "p", true, "pause the container meanwhile")
	return c
}
