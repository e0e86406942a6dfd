package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
)

func imagePull(env *Env) *cobra.Command {
	o, quiet := image.PullOptions{}, false
	c := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image from a registry",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			full, err := image.FullName(args[0])
			if err != nil {
				return usage("%w", err)
			}
			var end func()
			o.Out, o.Progress, end = showProgress(env, quiet)
			_, err = e.Images().Pull(ctx, args[0], o)
			end()
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, full)
			return nil
		}),
	}
	c.Flags().BoolVar(&o.Insecure, "insecure", false, "allow plain HTTP and unknown certificates")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	onePlatform(c, &o.Platform, "os/arch[/variant] (default: this machine's)")
	return c
}

func imagePush(env *Env) *cobra.Command {
	o, quiet, compression := image.PushOptions{}, false, ""
	c := &cobra.Command{
		Use:   "push NAME[:TAG]",
		Short: "Push an image to the registry in its name",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			switch o.Compression = image.Compression(compression); o.Compression {
			case "", image.Gzip, image.Zstd:
			default:
				return usage("--compression %q: want gzip or zstd", compression)
			}
			var end func()
			o.Out, o.Progress, end = showProgress(env, quiet)
			digest, err := e.Images().Push(ctx, args[0], o)
			end()
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, digest)
			return nil
		}),
	}
	c.Flags().BoolVar(&o.Insecure, "insecure", false, "allow plain HTTP and unknown certificates")
	c.Flags().StringVar(&compression, "compression", "", "gzip or zstd for all layers (default: as they came, new ones gzip)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	onePlatform(c, &o.Platform, "refuse an image of another os/arch[/variant]")
	return c
}

// showProgress chooses how progress is shown: not, in lines, or as bars on a
// terminal. Call end before anything else is written.
func showProgress(env *Env, quiet bool) (out io.Writer, tell func(image.Event), end func()) {
	switch {
	case quiet:
		return io.Discard, nil, func() {}
	case isTerminal(env.Stderr):
		bars := newBars(env.Stderr)
		return nil, bars.tell, bars.end
	}
	return env.Stderr, nil, func() {}
}
