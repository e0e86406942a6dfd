package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"naru/pipeline/source"
	"naru/sandbox"
	"naru/sandbox/build"
	"naru/sandbox/build/progress"
	"naru/sandbox/image"
)

// exitInterrupted is what shells give for SIGINT.
const exitInterrupted = 128 + int(syscall.SIGINT)

// buildFlags are the flags of build.
type buildFlags struct {
	options      build.Options
	args, labels []string
	memory       string
	progress     string
	quiet, check bool
	print        bool
	asJSON       bool
	idFile       string
	ignored      struct{ rm, forceRm bool }
	engine       engineFlags
	reach        []string
	run          buildRunFlags
}

func buildCommand(env *Env) *cobra.Command {
	f := &buildFlags{}
	c := &cobra.Command{
		Use:   "build [flags] PATH|-",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile and a context: the directory PATH, or with "-"
what comes from standard input: a tar archive (also compressed) is the context,
anything else is a Dockerfile without one.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := f.complete(env); err != nil {
				return err
			}
			f.options.Detect = true
			cleanup, err := f.prepare(c.Context(), env, args[0])
			if err != nil {
				return err
			}
			defer cleanup()
			if f.print {
				return f.printDockerfile(env)
			}
			e, err := openEngine(env)
			if err != nil {
				return err
			}
			if f.check {
				return f.lint(c.Context(), env, e)
			}
			return f.build(c, env, e)
		},
	}
	f.register(c.Flags())
	return c
}

func (f *buildFlags) register(flags *pflag.FlagSet) {
	o := &f.options
	flags.StringArrayVarP(&o.Tags, "tag", "t", nil, "name for the image; may be given several times")
	flags.StringVarP(&o.Dockerfile, "file", "f", "", `Dockerfile (default: PATH/Dockerfile); "-" reads it from standard input`)
	flags.StringVar(&o.Target, "target", "", "stage to build")
	flags.StringArrayVar(&f.args, "build-arg", nil, "build argument KEY=value, or KEY to pass one on")
	flags.StringArrayVar(&f.labels, "label", nil, "label KEY=value")
	flags.BoolVar(&o.NoCache, "no-cache", false, "run every step")
	flags.StringVar(&o.Network, "network", "", "network of RUN steps")
	flags.StringVarP(&f.memory, "memory", "m", "", "memory limit of RUN steps, such as 512m")
	flags.Float64Var(&o.CPUs, "cpus", 0, "processors that RUN steps may use")
	flags.Int64Var(&o.Pids, "pids-limit", 0, "processes that a RUN step may have")
	flags.DurationVar(&o.Timeout, "timeout", 0, "longest time of the whole build")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the image's id only, or why there is none")
	flags.StringVar(&f.progress, "progress", fromEnvironment("BUILDKIT_PROGRESS", "auto"), "how to show what happens: auto, plain, tty, quiet or rawjson")
	flags.BoolVar(&f.check, "check", false, "do not build: show what BuildKit's rules find in the Dockerfile; exit code 1 if they do")
	flags.BoolVar(&f.print, "print-dockerfile", false, "do not build: print the Dockerfile, or the one that is written for a context without")
	flags.BoolVar(&f.asJSON, "json", false, "print the image, or what --check finds, as JSON")
	flags.StringArrayVar(&f.reach, "add-reach", nil, "network of this machine that ADD may fetch from, such as 127.0.0.0/8")
	f.run.register(flags, o)
	flags.StringVar(&f.idFile, "iidfile", "", "write the image's id to this file")
	flags.BoolVar(&f.ignored.rm, "rm", true, "accepted for Docker's sake: no container is left")
	flags.BoolVar(&f.ignored.forceRm, "force-rm", false, "accepted for Docker's sake: no container is left")
	for _, name := range []string{"rm", "force-rm"} {
		_ = flags.MarkHidden(name) // it is defined above
	}
	f.engine.add(flags, o)
}

func (f *buildFlags) complete(env *Env) (err error) {
	if f.options.Memory, err = parseSize(f.memory); err != nil {
		return err
	}
	args, err := readEnv(nil, f.args)
	if err != nil {
		return err
	}
	f.options.Args, f.options.Labels = parseLabels(args), parseLabels(f.labels)
	f.options.Git = gitFetcher()
	for _, network := range f.reach {
		p, err := netip.ParsePrefix(network)
		if err != nil {
			return usage("--add-reach %s: %v", network, err)
		}
		f.options.Reach = append(f.options.Reach, p.Masked())
	}
	if f.quiet {
		f.progress = "quiet"
	}
	if err := f.engine.complete(env, &f.options); err != nil {
		return err
	}
	if err := f.run.complete(&f.options); err != nil {
		return err
	}
	for _, name := range f.options.Tags {
		if _, err := image.FullName(name); err != nil {
			return usage("--tag: %w", err)
		}
	}
	return nil
}

// gitFetcher fetches ADD's repositories with the ssh agent and known hosts of
// who runs the command.
func gitFetcher() source.Fetcher {
	g := source.Fetcher{AgentSocket: os.Getenv("SSH_AUTH_SOCK")}
	if home, err := os.UserHomeDir(); err == nil {
		g.KnownHosts = filepath.Join(home, ".ssh", "known_hosts")
	}
	return g
}

// build builds, and says at the end what the image is.
func (f *buildFlags) build(c *cobra.Command, env *Env, e *sandbox.Engine) error {
	show, err := progress.New(f.progress, env.Stderr)
	if err != nil {
		return usage("--%w", err)
	}
	f.options.Progress = show.Event
	r, err := e.Builder().BuildAll(c.Context(), f.options)
	show.Close()
	if err != nil && c.Context().Err() != nil {
		return &ExitError{Code: exitInterrupted, Err: errors.New("build canceled")}
	}
	if err != nil {
		return err
	}
	img := r.Image
	if err := f.engine.done(r); err != nil {
		return err
	}
	if f.idFile != "" {
		if err := os.WriteFile(f.idFile, []byte(img.ID.String()), 0o644); err != nil {
			return err
		}
	}
	for _, out := range f.options.Outputs {
		if out.Dest == "-" {
			return nil // stdout has the archive
		}
	}
	if f.asJSON {
		return printJSON(env, map[string]any{"id": img.ID, "names": f.options.Tags})
	}
	fmt.Fprintln(env.Stdout, img.ID)
	return nil
}

// lint is --check.
func (f *buildFlags) lint(ctx context.Context, env *Env, e *sandbox.Engine) error {
	found, err := e.CheckBuild(ctx, f.options)
	if f.asJSON {
		if err := printJSON(env, struct {
			Warnings []build.Warning `json:"warnings"`
			Error    string          `json:"buildError,omitempty"`
		}{append([]build.Warning{}, found...), errorText(err)}); err != nil {
			return err
		}
	} else {
		printFindings(env.Stdout, found, err)
	}
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return &ExitError{Code: exitUnexpected}
	}
	return nil
}

func printFindings(w io.Writer, found []build.Warning, err error) {
	switch n := len(found); {
	case err != nil && n == 0:
	case n == 0:
		fmt.Fprintln(w, "Check complete, no warnings found.")
	case n == 1:
		fmt.Fprintln(w, "Check complete, 1 warning has been found!")
	default:
		fmt.Fprintf(w, "Check complete, %d warnings have been found!\n", n)
	}
	for _, f := range found {
		fmt.Fprintf(w, "\nWARNING: %s", f.Rule)
		if f.URL != "" {
			fmt.Fprintf(w, " - %s", f.URL)
		}
		fmt.Fprintf(w, "\n%s\n", f.Text)
		if f.Description != "" && f.Description != f.Text {
			fmt.Fprintf(w, "(%s)\n", f.Description)
		}
		fmt.Fprintf(w, "\n%s", f.Excerpt)
	}
	if err != nil {
		fmt.Fprintf(w, "\n%s", build.Explain(err))
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// printDockerfile is --print-dockerfile.
func (f *buildFlags) printDockerfile(env *Env) error {
	text, plan, err := build.Dockerfile(f.options)
	if err != nil {
		return err
	}
	if f.asJSON && plan != nil {
		return printJSON(env, plan)
	}
	_, err = env.Stdout.Write(text)
	return err
}

// findDockerfile finds what --file means: on the command line it is relative to
// the current directory, as for docker build, or else to the context. It may lie
// outside of the context.
func (f *buildFlags) findDockerfile() error {
	name := f.options.Dockerfile
	if name == "" {
		return nil
	}
	context, err := filepath.Abs(f.options.Context)
	if err != nil {
		return err
	}
	file, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		file = filepath.Join(context, name)
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			return usage("--file %s: there is no such file, neither here nor in %s", name, f.options.Context)
		}
	}
	if relative, err := filepath.Rel(context, file); err == nil && filepath.IsLocal(relative) {
		file = relative
	}
	f.options.Dockerfile = file
	return nil
}
