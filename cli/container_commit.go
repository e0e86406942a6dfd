package cli

import (
	"context"
	"fmt"
	"strings"

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
	c.Flags().StringArrayVarP(&changes, "change", "c", nil, "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, as in a Dockerfile")
	c.Flags().StringVarP(&o.Author, "author", "a", "", "author of the image")
	c.Flags().StringVarP(&o.Message, "message", "m", "", "what it is")
	c.Flags().BoolVarP(&pause, "pause", "p", true, "pause the container meanwhile")
	return c
}

// applyChanges writes --change lines, which are those of a Dockerfile, into a
// configuration.
func applyChanges(c *image.RunConfig, changes []string) error {
	for _, change := range changes {
		word, rest, _ := strings.Cut(strings.TrimSpace(change), " ")
		rest = strings.TrimSpace(rest)
		if rest == "" {
			return usage("--change %q: nothing given", change)
		}
		switch strings.ToUpper(word) {
		case "CMD":
			c.Cmd = commandLine(rest)
		case "ENTRYPOINT":
			c.Entrypoint = commandLine(rest)
		case "ENV":
			c.Env = setVariable(c.Env, keyValue(rest))
		case "LABEL":
			key, value, _ := strings.Cut(keyValue(rest), "=")
			if c.Labels == nil {
				c.Labels = map[string]string{}
			}
			c.Labels[key] = strings.Trim(value, `"`)
		case "USER":
			c.User = rest
		case "WORKDIR":
			c.WorkingDir = rest
		case "STOPSIGNAL":
			if _, err := sandbox.ParseSignal(rest); err != nil {
				return usage("--change %q: %w", change, err)
			}
			c.StopSignal = rest
		case "EXPOSE":
			c.ExposedPorts = addKeys(c.ExposedPorts, strings.Fields(rest), "/tcp")
		case "VOLUME":
			c.Volumes = addKeys(c.Volumes, strings.Fields(rest), "")
		default:
			return usage("--change %q: want CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR", change)
		}
	}
	return nil
}

// keyValue reads KEY=value and the old form KEY value.
func keyValue(s string) string {
	if strings.Contains(s, "=") {
		return s
	}
	return strings.Replace(s, " ", "=", 1)
}

// setVariable replaces a variable of the same name.
func setVariable(env []string, kv string) []string {
	key, _, _ := strings.Cut(kv, "=")
	for i := range env {
		if strings.HasPrefix(env[i], key+"=") {
			env[i] = kv
			return env
		}
	}
	return append(env, kv)
}

func addKeys(set map[string]struct{}, keys []string, suffix string) map[string]struct{} {
	all := map[string]struct{}{}
	for key := range set {
		all[key] = struct{}{}
	}
	for _, key := range keys {
		if !strings.Contains(key, "/") {
			key += suffix
		}
		all[key] = struct{}{}
	}
	return all
}
