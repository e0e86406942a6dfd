package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
)

func imageImport(env *Env) *cobra.Command {
	changes, message, platform := []string{}, "", ""
	c := &cobra.Command{
		Use:   "import FILE|- [NAME]",
		Short: "Make an image of a root file system tarball: plain, gzip, bzip2, xz or zstd",
		Args:  cobra.RangeArgs(1, 2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			config, err := importConfig(changes)
			if err != nil {
				return err
			}
			if config.OS, config.Architecture, config.Variant, err = image.SplitPlatform(platform); err != nil {
				return usage("--platform: %w", err)
			}
			if message == "" {
				message = "Imported from " + args[0]
			}
			config.History = []ocispec.History{{Comment: message}}
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
	c.Flags().StringArrayVarP(&changes, "change", "c", nil, "a Dockerfile instruction: "+changeWords)
	c.Flags().StringVarP(&message, "message", "m", "", "comment for the image's history")
	c.Flags().StringVar(&platform, "platform", "", "os/arch[/variant] that it is for (default: this machine's)")
	return c
}

const changeWords = "CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR"

// importConfig turns --change lines into the configuration of an image.
func importConfig(changes []string) (image.Config, error) {
	config := image.Config{}
	err := applyChanges(&config.Config, changes)
	return config, err
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
		if err := applyChange(c, strings.ToUpper(word), rest); err != nil {
			return usage("--change %q: %w", change, err)
		}
	}
	return nil
}

func applyChange(c *image.RunConfig, word, rest string) (err error) {
	switch word {
	case "CMD":
		c.Cmd = commandLine(rest)
	case "ENTRYPOINT":
		c.Entrypoint = commandLine(rest)
	case "ENV":
		pairs, err := keyValues(rest)
		if err != nil {
			return err
		}
		for _, kv := range pairs {
			c.Env = setVariable(c.Env, kv[0]+"="+kv[1])
		}
	case "LABEL":
		pairs, err := keyValues(rest)
		if err != nil {
			return err
		}
		for _, kv := range pairs {
			c.Labels = put(c.Labels, kv[0], kv[1])
		}
	case "EXPOSE":
		return expose(c, strings.Fields(rest))
	case "VOLUME":
		for _, path := range listOrWords(rest) {
			c.Volumes = put(c.Volumes, path, struct{}{})
		}
	case "HEALTHCHECK":
		c.Healthcheck, err = healthcheck(rest)
		return err
	case "ONBUILD":
		c.OnBuild = append(c.OnBuild, rest)
	case "STOPSIGNAL":
		_, err = sandbox.ParseSignal(rest)
		c.StopSignal = rest
		return err
	case "USER":
		c.User = rest
	case "WORKDIR":
		c.WorkingDir = rest
	default:
		return errors.New("want " + changeWords)
	}
	return nil
}

func put[V any](m map[string]V, key string, value V) map[string]V {
	if m == nil {
		m = map[string]V{}
	}
	m[key] = value
	return m
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

// commandLine reads the JSON form, or hands any other to a shell.
func commandLine(s string) []string {
	var list []string
	if json.Unmarshal([]byte(s), &list) == nil {
		return list
	}
	return []string{"/bin/sh", "-c", s}
}

func listOrWords(s string) []string {
	var list []string
	if json.Unmarshal([]byte(s), &list) == nil {
		return list
	}
	return strings.Fields(s)
}

// keyValues reads key=value pairs, with quotes where there are blanks, or the
// old form "key the whole value".
func keyValues(s string) (pairs [][2]string, err error) {
	words, err := shellWords(s)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(words[0], "=") {
		key, value, _ := strings.Cut(s, " ")
		if value = strings.TrimSpace(value); value == "" {
			return nil, errors.New("want KEY=value")
		}
		return [][2]string{{key, value}}, nil
	}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q: want KEY=value", word)
		}
		pairs = append(pairs, [2]string{key, value})
	}
	return pairs, nil
}

// shellWords splits at blanks outside of quotes, and takes quotes and
// backslashes away.
func shellWords(s string) (words []string, err error) {
	var word strings.Builder
	inside, quote := false, rune(0)
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inside = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '"' || r == '\''):
			quote, inside = r, true
		case quote == 0 && (r == ' ' || r == '\t'):
			if inside {
				words = append(words, word.String())
			}
			word.Reset()
			inside = false
		default:
			word.WriteRune(r)
			inside = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c is not closed", quote)
	}
	if inside {
		words = append(words, word.String())
	}
	return words, nil
}

func expose(c *image.RunConfig, ports []string) error {
	for _, port := range ports {
		number, protocol, ok := strings.Cut(port, "/")
		if !ok {
			protocol = "tcp"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
			return fmt.Errorf("port %q: want 1 to 65535, with /tcp, /udp or /sctp", port)
		}
		c.ExposedPorts = put(c.ExposedPorts, number+"/"+protocol, struct{}{})
	}
	return nil
}

// healthcheck reads NONE, or flags and CMD with a command.
func healthcheck(s string) (*image.Healthcheck, error) {
	h := &image.Healthcheck{}
	for {
		word, rest, _ := strings.Cut(s, " ")
		rest = strings.TrimSpace(rest)
		switch {
		case strings.EqualFold(word, "NONE") && rest == "":
			return &image.Healthcheck{Test: []string{"NONE"}}, nil
		case strings.EqualFold(word, "CMD") && rest != "":
			var list []string
			if h.Test = []string{"CMD-SHELL", rest}; json.Unmarshal([]byte(rest), &list) == nil {
				h.Test = append([]string{"CMD"}, list...)
			}
			return h, nil
		case !strings.HasPrefix(word, "--"):
			return nil, errors.New("want NONE, or CMD with a command")
		}
		if err := setHealthFlag(h, word); err != nil {
			return nil, err
		}
		s = rest
	}
}

func setHealthFlag(h *image.Healthcheck, flag string) (err error) {
	name, value, _ := strings.Cut(flag, "=")
	switch name {
	case "--interval":
		h.Interval, err = time.ParseDuration(value)
	case "--timeout":
		h.Timeout, err = time.ParseDuration(value)
	case "--start-period":
		h.StartPeriod, err = time.ParseDuration(value)
	case "--start-interval":
		h.StartInterval, err = time.ParseDuration(value)
	case "--retries":
		h.Retries, err = strconv.Atoi(value)
	default:
		err = fmt.Errorf("flag %s is unknown", name)
	}
	return err
}
