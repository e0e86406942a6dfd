package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
)

func imageCommand(env *Env) *cobra.Command {
	return group("image", "Manage images",
		imageList(env), imageImport(env), imageLoad(env), imageSave(env), imagePull(env),
		imageRemove(env), imageInspect(env), imageTag(env), imagePrune(env))
}

// imageRow is one name of an image in image ls.
type imageRow struct {
	ID         string    `json:"id"`
	Repository string    `json:"repository"`
	Tag        string    `json:"tag"`
	Digest     string    `json:"digest"`
	Created    time.Time `json:"created,omitzero"`
	Size       int64     `json:"size"`
}

func imageList(env *Env) *cobra.Command {
	f := listFlags{}
	return f.define(&cobra.Command{
		Use:   "ls",
		Short: "List images",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, _ []string) error {
			list, err := e.Images().List()
			if err != nil {
				return err
			}
			return printImages(env, imageRows(list), f)
		}),
	})
}

func imageRows(list []image.Image) []imageRow {
	rows := []imageRow{}
	for _, img := range list {
		names := img.Names
		if len(names) == 0 {
			names = []string{"<none>:<none>"}
		}
		for _, name := range names {
			row := imageRow{ID: img.ID.String(), Digest: img.Manifest.String(), Size: img.Size}
			row.Repository, row.Tag = splitName(name)
			if img.Config.Created != nil {
				row.Created = *img.Config.Created
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// splitName takes the tag off a name; a colon before the last slash is a port.
func splitName(name string) (repository, tag string) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.ContainsRune(name[i:], '/') {
		return name, "<none>"
	}
	return name[:i], name[i+1:]
}

func printImages(env *Env, list []imageRow, f listFlags) error {
	if f.json {
		return printJSON(env, list)
	}
	rows, last := [][]string{}, ""
	for _, r := range list {
		if f.quiet && r.ID != last {
			fmt.Fprintln(env.Stdout, shortID(r.ID))
		}
		last = r.ID
		created := "N/A"
		if !r.Created.IsZero() {
			created = ago(time.Since(r.Created)) + " ago"
		}
		rows = append(rows, []string{r.Repository, r.Tag, shortID(r.ID), created, humanSize(r.Size)})
	}
	if f.quiet {
		return nil
	}
	return printTable(env.Stdout, []string{"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"}, rows)
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

func imageImport(env *Env) *cobra.Command {
	var changes []string
	c := &cobra.Command{
		Use:   "import FILE|- [NAME]",
		Short: "Make an image of a root file system tarball",
		Args:  cobra.RangeArgs(1, 2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			config, err := importConfig(changes)
			if err != nil {
				return err
			}
			in, err := openInput(env, args[0])
			if err != nil {
				return err
			}
			defer in.Close()
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			img, err := e.Images().Import(ctx, in, name, config)
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, img.ID)
			return nil
		}),
	}
	c.Flags().StringArrayVarP(&changes, "change", "c", nil, "CMD, ENTRYPOINT, ENV, USER or WORKDIR, as in a Dockerfile")
	return c
}

func imageLoad(env *Env) *cobra.Command {
	input := ""
	c := &cobra.Command{
		Use:   "load",
		Short: "Load images from an archive of docker save or an OCI layout",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			in, err := openInput(env, input)
			if err != nil {
				return err
			}
			defer in.Close()
			loaded, err := e.Images().Load(ctx, in)
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
	c.Flags().StringVarP(&input, "input", "i", "", "file (default: standard input)")
	return c
}

func imageSave(env *Env) *cobra.Command {
	output := ""
	c := &cobra.Command{
		Use:   "save IMAGE...",
		Short: "Save images to an archive that docker load and OCI tools read",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			if output == "" || output == "-" {
				return e.Images().Save(ctx, env.Stdout, args...)
			}
			return saveTo(output, func(w io.Writer) error { return e.Images().Save(ctx, w, args...) })
		}),
	}
	c.Flags().StringVarP(&output, "output", "o", "", "file (default: standard output)")
	return c
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

func imagePull(env *Env) *cobra.Command {
	o, quiet := image.PullOptions{}, false
	c := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image from a registry",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			o.Out = env.Stderr
			if quiet {
				o.Out = io.Discard
			}
			img, err := e.Images().Pull(ctx, args[0], o)
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, img.ID)
			return nil
		}),
	}
	c.Flags().BoolVar(&o.Insecure, "insecure", false, "allow plain HTTP and unknown certificates")
	c.Flags().StringVar(&o.Platform, "platform", "", "os/arch[/variant] (default: this machine's)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

func imageRemove(env *Env) *cobra.Command {
	force := false
	c := &cobra.Command{
		Use:   "rm IMAGE...",
		Short: "Remove images",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			return forEach(env, args, func(ref string) error { return e.RemoveImage(ref, force) })
		}),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "also if it has several names")
	return c
}

func imageInspect(env *Env) *cobra.Command {
	format := ""
	c := &cobra.Command{
		Use:   "inspect IMAGE...",
		Short: "Show images, as a JSON array",
		Args:  cobra.MinimumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			return inspectAll(env, args, format, func(ref string) (any, error) {
				img, err := e.Images().Get(ref)
				if err != nil {
					return nil, err
				}
				return inspectImage(img), nil
			})
		}),
	}
	c.Flags().StringVarP(&format, "format", "f", "", "Go template for each image")
	return c
}

// inspectedImage has Docker's names.
type inspectedImage struct {
	Id           string
	RepoTags     []string
	Digest       string
	Created      *time.Time `json:",omitempty"`
	Architecture string
	Os           string
	Size         int64
	Config       any
	RootFS       inspectedRoot
}

type inspectedRoot struct {
	Type   string
	Layers []string
}

func inspectImage(img image.Image) inspectedImage {
	shown := inspectedImage{
		Id: img.ID.String(), RepoTags: img.Names, Digest: img.Manifest.String(), Created: img.Config.Created,
		Architecture: img.Config.Architecture, Os: img.Config.OS, Size: img.Size, Config: img.Config.Config,
		RootFS: inspectedRoot{Type: "layers"},
	}
	for _, layer := range img.Layers {
		shown.RootFS.Layers = append(shown.RootFS.Layers, layer.String())
	}
	return shown
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

func imagePrune(env *Env) *cobra.Command {
	all := false
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that nobody uses",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			freed, err := e.PruneImages(ctx, all)
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, "Total reclaimed space:", humanSize(freed))
			return nil
		}),
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "all without a container, not only those without a name")
	c.Flags().BoolP("force", "f", true, "accepted for Docker's sake: there is no question to skip")
	return c
}
