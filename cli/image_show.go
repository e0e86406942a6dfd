package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
)

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
	c.Flags().Bool("json", true, "as JSON, which it always is")
	return c
}

// inspectedImage has Docker's names; Digest, the manifest's, is ours.
type inspectedImage struct {
	Id           string
	RepoTags     []string
	RepoDigests  []string
	Digest       string
	Comment      string
	Created      *time.Time `json:",omitempty"`
	Author       string
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	OsVersion    string `json:",omitempty"`
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
		Id: img.ID.String(), RepoTags: []string{}, RepoDigests: append([]string{}, img.Digests...), Digest: img.Manifest.String(),
		Created: img.Config.Created, Author: img.Config.Author, Architecture: img.Config.Architecture, Variant: img.Config.Variant,
		Os: img.Config.OS, OsVersion: img.Config.OSVersion, Size: img.Size, Config: img.Config.Config,
		RootFS: inspectedRoot{Type: "layers", Layers: []string{}},
	}
	for _, name := range img.Names {
		if !strings.Contains(name, "@") {
			shown.RepoTags = append(shown.RepoTags, name)
		}
	}
	if n := len(img.Config.History); n > 0 {
		shown.Comment = img.Config.History[n-1].Comment
	}
	for _, layer := range img.Layers {
		shown.RootFS.Layers = append(shown.RootFS.Layers, layer.String())
	}
	return shown
}

type historyFlags struct {
	noTrunc, human, quiet, json bool
	format                      string
}

func imageHistory(env *Env) *cobra.Command {
	f := historyFlags{}
	c := &cobra.Command{
		Use:   "history IMAGE",
		Short: "Show the steps that made an image",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			img, err := e.Images().Get(args[0])
			if err != nil {
				return err
			}
			steps, err := e.Images().History(img)
			if err != nil {
				return err
			}
			if f.json {
				return printJSON(env, append([]image.Step{}, steps...))
			}
			return f.print(env, img, steps)
		}),
	}
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "show everything")
	c.Flags().BoolVarP(&f.human, "human", "H", true, "sizes and times for people")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "ids only")
	c.Flags().BoolVar(&f.json, "json", false, "as JSON")
	c.Flags().StringVar(&f.format, "format", "", "Go template for each step, json, or table TEMPLATE")
	return c
}

func (f historyFlags) print(env *Env, img image.Image, steps []image.Step) error {
	rows := []map[string]string{}
	for i, step := range steps {
		id := "<missing>" // only the last step's image exists, as in Docker
		if i == 0 {
			id = cut(img.ID.String(), f.noTrunc)
		}
		row := map[string]string{"ID": id, "CreatedSince": "N/A", "CreatedAt": "", "CreatedBy": f.cut(step.CreatedBy, 45),
			"Size": humanSize(step.Size), "Comment": f.cut(step.Comment, 45)}
		if !step.Created.IsZero() {
			row["CreatedSince"], row["CreatedAt"] = ago(time.Since(step.Created))+" ago", step.Created.Format(time.RFC3339)
		}
		if !f.human {
			row["CreatedSince"], row["Size"] = row["CreatedAt"], strconv.FormatInt(step.Size, 10)
		}
		rows = append(rows, row)
	}
	head := map[string]string{"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"}
	format := f.format
	switch {
	case f.quiet:
		format = "{{.ID}}"
	case format == "" || format == "table":
		format = "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
	}
	return printColumns(env.Stdout, format, head, rows)
}

// cut makes a text fit into a column, in one line.
func (f historyFlags) cut(s string, width int) string {
	s = strings.Join(strings.Fields(s), " ")
	if text := []rune(s); !f.noTrunc && len(text) > width {
		return string(text[:width-1]) + "…"
	}
	return s
}
