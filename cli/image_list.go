package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
)

// imageRow is one name of an image in image ls. The upper half is --json, the
// methods are what Docker's templates ask for.
type imageRow struct {
	ID         string    `json:"id"`
	Repository string    `json:"repository"`
	Tag        string    `json:"tag"`
	Digest     string    `json:"digest"`
	Created    time.Time `json:"created,omitzero"`
	Size       int64     `json:"size"`
	Platform   string    `json:"platform"`
}

type imageListFlags struct {
	listFlags
	digests, noTrunc bool
	filters          []string
	format           string
}

func imageList(env *Env) *cobra.Command {
	f := &imageListFlags{}
	c := f.define(&cobra.Command{
		Use:     "ls [REPOSITORY[:TAG]]",
		Aliases: []string{"list"},
		Short:   "List images",
		Args:    cobra.MaximumNArgs(1),
		RunE: withEngine(env, func(_ context.Context, e *sandbox.Engine, args []string) error {
			list, err := e.Images().List()
			if err != nil {
				return err
			}
			filters := f.filters
			if len(args) == 1 {
				filters = append(filters, "reference="+args[0])
			}
			keep, err := parseImageFilters(e, filters)
			if err != nil {
				return err
			}
			rows := []imageRow{}
			for _, img := range list {
				rows = append(rows, rowsOf(img, keep)...)
			}
			return printImages(env, rows, f)
		}),
	})
	c.Flags().BoolP("all", "a", false, "accepted for Docker's sake: builds leave no images between")
	c.Flags().BoolVar(&f.digests, "digests", false, "show digests")
	c.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "show whole ids")
	c.Flags().StringArrayVarP(&f.filters, "filter", "f", nil, "reference=PATTERN, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME or dangling=BOOL")
	c.Flags().StringVar(&f.format, "format", "", "Go template for each image, json, or table TEMPLATE")
	return c
}

// rowsOf gives a row for each name that is wanted; one for an image without.
func rowsOf(img image.Image, keep imageFilter) []imageRow {
	row := imageRow{ID: img.ID.String(), Size: img.Size, Platform: strings.TrimSuffix(img.Config.OS+"/"+img.Config.Architecture+"/"+img.Config.Variant, "/")}
	if img.Config.Created != nil {
		row.Created = *img.Config.Created
	}
	if !keep.image(img) {
		return nil
	}
	rows := []imageRow{}
	for _, name := range img.Names {
		if !keep.name(name) {
			continue
		}
		row.Repository, row.Tag = splitName(name)
		row.Digest = digestFor(img, row.Repository)
		rows = append(rows, row)
	}
	if len(img.Names) == 0 && keep.name("") {
		row.Repository, row.Tag, row.Digest = "<none>", "<none>", img.Manifest.String()
		rows = append(rows, row)
	}
	return rows
}

// splitName takes the tag off a name; a colon before the last slash is a port.
func splitName(name string) (repository, tag string) {
	if repository, _, pinned := strings.Cut(name, "@"); pinned {
		return repository, "<none>"
	}
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.ContainsRune(name[i:], '/') {
		return name, "<none>"
	}
	return name[:i], name[i+1:]
}

// digestFor is what the registry of a repository calls the image, or its own
// manifest where no registry knows it.
func digestFor(img image.Image, repository string) string {
	for _, known := range append(slices.Clone(img.Digests), img.Names...) {
		if name, digest, ok := strings.Cut(known, "@"); ok && name == repository {
			return digest
		}
	}
	return img.Manifest.String()
}

// imageFilter says which images, and which names of them, are wanted.
type imageFilter struct {
	image func(image.Image) bool
	name  func(string) bool
}

func parseImageFilters(e *sandbox.Engine, filters []string) (imageFilter, error) {
	wanted, names := []func(image.Image) bool{}, []string{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if ok && key == "reference" {
			if _, err := path.Match(value, ""); err != nil {
				return imageFilter{}, usage("filter %q: %w", f, err)
			}
			names = append(names, value)
			continue
		}
		one, err := parseImageFilter(e, key, value)
		if err != nil {
			return imageFilter{}, usage("filter %q: %w", f, err)
		}
		wanted = append(wanted, one)
	}
	return imageFilter{
		image: func(img image.Image) bool {
			return !slices.ContainsFunc(wanted, func(ok func(image.Image) bool) bool { return !ok(img) })
		},
		name: func(name string) bool {
			return len(names) == 0 || slices.ContainsFunc(names, func(pattern string) bool { return matchesName(pattern, name) })
		},
	}, nil
}

func parseImageFilter(e *sandbox.Engine, key, value string) (func(image.Image) bool, error) {
	switch key {
	case "label", "label!", "until":
		return parsePruneFilter(key, value)
	case "dangling":
		want, err := strconv.ParseBool(value)
		return func(img image.Image) bool { return (len(img.Names) == 0) == want }, err
	case "before", "since":
		other, err := e.Images().Get(value)
		if err != nil {
			return nil, err
		}
		at := createdAt(other)
		return func(img image.Image) bool {
			return img.ID != other.ID && createdAt(img).Before(at) == (key == "before") && !createdAt(img).Equal(at)
		}, nil
	}
	return nil, fmt.Errorf("want reference=PATTERN, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME or dangling=BOOL")
}

func createdAt(img image.Image) time.Time {
	if img.Config.Created == nil {
		return time.Time{}
	}
	return *img.Config.Created
}

// matchesName compares as Docker's reference filter: with the repository, and
// with the whole name.
func matchesName(pattern, name string) bool {
	repository, _ := splitName(name)
	for _, text := range []string{name, repository} {
		if ok, _ := path.Match(pattern, text); ok && name != "" {
			return true
		}
	}
	return false
}

// parsePruneFilters are the filters of prune: all must hold.
func parsePruneFilters(filters []string) (func(image.Image) bool, error) {
	wanted := []func(image.Image) bool{}
	for _, f := range filters {
		key, value, _ := strings.Cut(f, "=")
		one, err := parsePruneFilter(key, value)
		if err != nil {
			return nil, usage("filter %q: %w", f, err)
		}
		wanted = append(wanted, one)
	}
	return func(img image.Image) bool {
		return !slices.ContainsFunc(wanted, func(ok func(image.Image) bool) bool { return !ok(img) })
	}, nil
}

func parsePruneFilter(key, value string) (func(image.Image) bool, error) {
	switch key {
	case "label", "label!":
		name, want, exact := strings.Cut(value, "=")
		return func(img image.Image) bool {
			have, ok := img.Config.Config.Labels[name]
			return (ok && (!exact || have == want)) == (key == "label")
		}, nil
	case "until":
		before, err := parseMoment(value, time.Now())
		return func(img image.Image) bool { return createdAt(img).Before(before) }, err
	}
	return nil, fmt.Errorf("want until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]")
}

// parseMoment reads a time, or how long ago it was: 24h, 2026-01-02, Unix seconds.
func parseMoment(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.Unix(seconds, 0), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("time %q: want 24h, 2026-01-02, 2026-01-02T15:04:05Z or seconds since 1970", s)
}

func printImages(env *Env, list []imageRow, f *imageListFlags) error {
	switch {
	case f.json:
		return printJSON(env, list)
	case f.quiet:
		last := ""
		for _, r := range list {
			if r.ID != last {
				fmt.Fprintln(env.Stdout, f.id(r))
			}
			last = r.ID
		}
		return nil
	}
	rows := []map[string]string{}
	for _, r := range list {
		rows = append(rows, f.columns(r))
	}
	head := map[string]string{"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID", "CreatedSince": "CREATED",
		"CreatedAt": "CREATED AT", "Size": "SIZE", "Platform": "PLATFORM"}
	format := f.format
	switch {
	case (format == "" || format == "table") && f.digests:
		format = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	case format == "" || format == "table":
		format = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	}
	return printColumns(env.Stdout, format, head, rows)
}

func (f *imageListFlags) id(r imageRow) string {
	if f.noTrunc {
		return r.ID
	}
	return shortID(r.ID)
}

// columns are what a template can name, in Docker's words.
func (f *imageListFlags) columns(r imageRow) map[string]string {
	since, at := "N/A", "N/A"
	if !r.Created.IsZero() {
		since, at = ago(time.Since(r.Created))+" ago", r.Created.Local().Format("2006-01-02 15:04:05 -0700 MST")
	}
	return map[string]string{"Repository": r.Repository, "Tag": r.Tag, "Digest": r.Digest, "ID": f.id(r),
		"CreatedSince": since, "CreatedAt": at, "Size": humanSize(r.Size), "Platform": r.Platform}
}

// printColumns writes rows by a template as Docker's --format: "table …" has a
// head and aligned columns, "json" is one object in each line.
func printColumns(w io.Writer, format string, head map[string]string, rows []map[string]string) error {
	if format == "json" {
		format = "{{json .}}"
	}
	body, table := strings.CutPrefix(format, "table ")
	if table {
		w = tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
		rows = append([]map[string]string{head}, rows...)
	}
	asJSON := func(v any) (string, error) {
		data, err := json.Marshal(v)
		return string(data), err
	}
	unescaped := strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(body)
	t, err := template.New("format").Option("missingkey=error").Funcs(template.FuncMap{
		"json": asJSON, "join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper}).Parse(unescaped)
	if err != nil {
		return usage("--format: %w", err)
	}
	for _, row := range rows {
		if err := t.Execute(w, row); err != nil {
			return usage("--format: %w", err)
		}
		fmt.Fprintln(w)
	}
	if tw, ok := w.(*tabwriter.Writer); ok {
		return tw.Flush()
	}
	return nil
}
