package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"naru/sandbox"
	"naru/sandbox/image"
)

func imageCommand(env *Env) *cobra.Command {
	return group("image", "Manage images",
		buildCommand(env), imageList(env), imageHistory(env), imageImport(env), imageLoad(env), imageSave(env), imagePull(env), imagePush(env),
		imageRemove(env), imageInspect(env), imageTag(env), imagePrune(env))
}

// imageShortcuts are the commands of image that Docker has at the top as well.
func imageShortcuts(env *Env) []*cobra.Command {
	list := imageList(env)
	list.Use, list.Aliases = "images [REPOSITORY[:TAG]]", nil
	remove := imageRemove(env)
	remove.Use, remove.Aliases = "rmi IMAGE...", nil
	return []*cobra.Command{
		list, remove, imageHistory(env), imageImport(env), imageLoad(env), imageSave(env), imagePull(env), imagePush(env), imageTag(env),
		loginCommand(env), logoutCommand(env),
	}
}

// onePlatform defines --platform, and --all-platforms with the reason why it
// cannot be.
func onePlatform(c *cobra.Command, platform *string, what string) {
	all := false
	c.Flags().StringVar(platform, "platform", "", what)
	c.Flags().BoolVar(&all, "all-platforms", false, "not possible: an image here is for one platform")
	_ = c.Flags().MarkHidden("all-platforms") // it is defined one line above
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if all {
			return usage("--all-platforms: a name here means the image of one platform; use --platform, once for each, with names of their own")
		}
		return run(c, args)
	}
}

// openInput opens a file for reading, or our standard input for "-" and "".
func openInput(env *Env, path string) (io.ReadCloser, error) {
	if path != "-" && path != "" {
		return os.Open(path)
	}
	if env.Stdin == nil {
		return nil, usage("no standard input to read from")
	}
	return io.NopCloser(env.Stdin), nil
}

// isTerminal says whether a person would see what is written there.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && f != nil && term.IsTerminal(int(f.Fd()))
}

func imageTag(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME",
		Short: "Give an image another name",
		Args:  cobra.ExactArgs(2),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			return e.Images().Tag(args[0], args[1])
		}),
	}
}

func imageRemove(env *Env) *cobra.Command {
	force := false
	c := &cobra.Command{
		Use:     "rm IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove images",
		Args:    cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			return removeImages(env, e, args, force)
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "also if it has several names")
	c.Flags().Bool("no-prune", false, "accepted for Docker's sake: parents are no images of their own here")
	return c
}

// removeImages says what went, name by name, as Docker does.
func removeImages(env *Env, e *sandbox.Engine, refs []string, force bool) error {
	return quietForEach(refs, func(ref string) error {
		before, err := e.Images().Get(ref)
		if err != nil {
			return err
		}
		if err := e.RemoveImage(ref, force); err != nil {
			return err
		}
		after, err := e.Images().Get(before.ID.String())
		printRemoved(env.Stdout, before, after, err == nil)
		return nil
	})
}

// printRemoved compares an image with what is left of it.
func printRemoved(w io.Writer, before, after image.Image, left bool) {
	kept := map[string]bool{}
	for _, name := range append(after.Names, after.Digests...) {
		kept[name] = left
	}
	for _, name := range append(before.Names, before.Digests...) {
		if !kept[name] {
			fmt.Fprintln(w, "Untagged:", name)
		}
		kept[name] = true // a pinned name is a digest as well
	}
	if !left {
		fmt.Fprintln(w, "Deleted:", before.ID)
	}
}

func imagePrune(env *Env) *cobra.Command {
	all, filters := false, []string{}
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that nobody uses",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			keep, err := parsePruneFilters(filters)
			if err != nil {
				return err
			}
			return pruneImages(ctx, env, e, func(img image.Image) bool {
				return (all || !hasTag(img)) && keep(img)
			})
		}),
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "all without a container, not only those without a name")
	c.Flags().StringArrayVar(&filters, "filter", nil, "until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]")
	c.Flags().BoolP("force", "f", true, "accepted for Docker's sake: there is no question to skip")
	return c
}

func hasTag(img image.Image) bool { return len(img.Names) > 0 }

func pruneImages(ctx context.Context, env *Env, e *sandbox.Engine, drop func(image.Image) bool) error {
	before, err := e.Images().List()
	if err != nil {
		return err
	}
	freed, err := e.PruneImagesWhere(ctx, drop)
	if err != nil {
		return err
	}
	removed := &strings.Builder{}
	for _, img := range before {
		if _, err := e.Images().Get(img.ID.String()); err != nil {
			printRemoved(removed, img, image.Image{}, false)
		}
	}
	if removed.Len() > 0 {
		fmt.Fprintf(env.Stdout, "Deleted Images:\n%s\n", removed)
	}
	fmt.Fprintln(env.Stdout, "Total reclaimed space:", humanSize(freed))
	return nil
}
