package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
)

func imageLoad(env *Env) *cobra.Command {
	input, o, quiet := "", image.LoadOptions{}, false
	c := &cobra.Command{
		Use:   "load",
		Short: "Load images from an archive of docker save, or an OCI layout as archive or directory",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			loaded, err := loadImages(ctx, env, e, input, o)
			for _, img := range loaded {
				if len(img.Names) == 0 {
					fmt.Fprintln(env.Stdout, "Loaded image ID:", img.ID)
				}
				for _, name := range img.Names {
					fmt.Fprintln(env.Stdout, "Loaded image:", name)
				}
			}
			return err
		}),
	}
	c.Flags().StringVarP(&input, "input", "i", "", "file or directory (default: standard input)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "accepted for Docker's sake: there is nothing to leave out")
	onePlatform(c, &o.Platform, "os/arch[/variant] to take from an index (default: this machine's)")
	return c
}

func loadImages(ctx context.Context, env *Env, e *sandbox.Engine, input string, o image.LoadOptions) ([]image.Image, error) {
	if st, err := os.Stat(input); err == nil && st.IsDir() {
		return e.Images().LoadDir(ctx, input, o)
	}
	if (input == "" || input == "-") && isTerminal(env.Stdin) {
		return nil, usage("load reads an archive from its standard input, which is a terminal: use --input FILE or <FILE")
	}
	in, err := openInput(env, input)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return e.Images().Load(ctx, in, o)
}

func imageSave(env *Env) *cobra.Command {
	output, platform := "", ""
	c := &cobra.Command{
		Use:   "save IMAGE...",
		Short: "Save images to an archive that docker load and OCI tools read",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			if err := arePlatform(e, args, platform); err != nil {
				return err
			}
			switch st, err := os.Stat(output); {
			case (output == "" || output == "-") && isTerminal(env.Stdout):
				return usage("save will not write an archive to a terminal: use --output FILE or >FILE")
			case output == "" || output == "-":
				return e.Images().Save(ctx, env.Stdout, args...)
			case strings.HasSuffix(output, "/") || err == nil && st.IsDir():
				return e.Images().SaveDir(ctx, output, args...)
			}
			return saveTo(output, func(w io.Writer) error { return e.Images().Save(ctx, w, args...) })
		}),
	}
	c.Flags().StringVarP(&output, "output", "o", "", "file, or directory/ for an OCI layout (default: standard output)")
	onePlatform(c, &platform, "refuse images of another os/arch[/variant]")
	return c
}

// arePlatform says whether images are for a platform; "" is any.
func arePlatform(e *sandbox.Engine, refs []string, platform string) error {
	for _, ref := range refs {
		img, err := e.Images().Get(ref)
		if err != nil {
			return err
		}
		if err := image.CheckPlatform(img, platform); err != nil {
			return fmt.Errorf("image %s: %w", ref, err)
		}
	}
	return nil
}

// saveTo writes a file that is there whole or not at all.
func saveTo(path string, write func(io.Writer) error) (err error) {
	temp := path + ".part"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Rename(temp, path)
}
