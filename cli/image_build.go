package cli

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"naru/pipeline/source"
	"naru/sandbox"
	"naru/sandbox/build"
)

// buildFlags are the flags of build.
type buildFlags struct {
	options      build.Options
	args, labels []string
	memory       string
	quiet        bool
	idFile       string
	engine       engineFlags
	reach        []string
	run          buildRunFlags
}

func buildCommand(env *Env) *cobra.Command {
	f := &buildFlags{}
	c := &cobra.Command{
		Use:   "build [flags] PATH",
		Short: "Build an image from a Dockerfile",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f.options.Context = args[0]
			if err := f.complete(env); err != nil {
				return err
			}
			e, err := openEngine(env)
			if err != nil {
				return err
			}
			return f.build(c, env, e)
		},
	}
	flags := c.Flags()
	flags.StringArrayVarP(&f.options.Tags, "tag", "t", nil, "name for the image")
	flags.StringVarP(&f.options.Dockerfile, "file", "f", "", "Dockerfile (default: PATH/Dockerfile)")
	flags.StringVar(&f.options.Target, "target", "", "stage to build")
	flags.StringArrayVar(&f.args, "build-arg", nil, "build argument KEY=value, or KEY to pass one on")
	flags.StringArrayVar(&f.labels, "label", nil, "label KEY=value")
	flags.BoolVar(&f.options.NoCache, "no-cache", false, "run every step")
	flags.StringVar(&f.options.Network, "network", "", "network of RUN steps")
	flags.StringVarP(&f.memory, "memory", "m", "", "memory limit of RUN steps, such as 512m")
	flags.Float64Var(&f.options.CPUs, "cpus", 0, "processors that RUN steps may use")
	flags.Int64Var(&f.options.Pids, "pids-limit", 0, "processes that a RUN step may have")
	flags.DurationVar(&f.options.Timeout, "timeout", 0, "longest time of the whole build")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "print the image's id only")
	flags.StringArrayVar(&f.reach, "add-reach", nil, "network of this machine that ADD may fetch from, such as 127.0.0.0/8")
	f.run.register(flags, &f.options)
	flags.StringVar(&f.idFile, "iidfile", "", "write the image's id to this file")
	f.engine.add(flags, &f.options)
	return c
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
	f.options.Out = env.Stderr
	if f.quiet {
		f.options.Out = io.Discard
	}
	if err := f.engine.complete(env, &f.options); err != nil {
		return err
	}
	if err := f.run.complete(&f.options); err != nil {
		return err
	}
	return f.findDockerfile()
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

// findDockerfile makes --file relative to the context: on the command line it
// is relative to the current directory, as for docker build.
func (f *buildFlags) findDockerfile() error {
	if f.options.Dockerfile == "" {
		return nil
	}
	context, err := filepath.Abs(f.options.Context)
	if err != nil {
		return err
	}
	file, err := filepath.Abs(f.options.Dockerfile)
	if err != nil {
		return err
	}
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		file = filepath.Join(context, f.options.Dockerfile)
	}
	relative, err := filepath.Rel(context, file)
	if err != nil || relative == ".." || strings.HasPrefix(relative, "../") {
		return usage("--file %s lies outside of the context %s", f.options.Dockerfile, f.options.Context)
	}
	f.options.Dockerfile = relative
	return nil
}

func (f *buildFlags) build(c *cobra.Command, env *Env, e *sandbox.Engine) error {
	r, err := e.Builder().BuildAll(c.Context(), f.options)
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
	fmt.Fprintln(env.Stdout, img.ID)
	return nil
}
