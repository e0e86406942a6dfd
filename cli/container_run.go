package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/image"
	"naru/sandbox/runtime"
)

// runFlags are the flags of run that need work before they are a
// sandbox.ContainerConfig.
type runFlags struct {
	config      sandbox.ContainerConfig
	detach      bool
	life        lifeFlags
	network     networkFlags
	env         []string
	envFiles    []string
	volumes     []string
	labels      []string
	memory      string
	entrypoint  string
	stopTimeout int
	pull        string
	isolation   isolationFlags
	cid         cidFile
}

func runCommand(env *Env) *cobra.Command {
	f := &runFlags{}
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND] [ARG...]",
		Short: "Run a command in a new container",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f.config.Image, f.config.Args = args[0], args[1:]
			if err := f.complete(c); err != nil {
				return engineError(err)
			}
			return runContainer(c.Context(), env, f)
		},
	}
	f.define(c)
	c.SetFlagErrorFunc(engineUsage)
	return c
}

// engineUsage is an error in the flags of run and create, exit code 125.
func engineUsage(c *cobra.Command, err error) error {
	return &ExitError{Code: exitEngine, Err: fmt.Errorf("%w\nSee '%s --help'", err, c.CommandPath())}
}

func (f *runFlags) define(c *cobra.Command) {
	flags := c.Flags()
	flags.SetInterspersed(false) // what follows the image belongs to the command
	flags.BoolVarP(&f.detach, "detach", "d", false, "run in the background and print the container's id")
	flags.BoolVar(&f.config.Remove, "rm", false, "remove the container when it has ended")
	flags.StringVar(&f.config.Name, "name", "", "name of the container")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment variable KEY=value, or KEY to pass one on")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "file with lines KEY=value")
	flags.StringArrayVarP(&f.volumes, "volume", "v", nil, "volume or host path: [SOURCE:]TARGET[:OPTIONS], such as ro, rro, nocopy or rslave")
	flags.StringVarP(&f.memory, "memory", "m", "", "memory limit, such as 512m")
	flags.Float64Var(&f.config.CPUs, "cpus", 0, "processors it may use, such as 1.5")
	flags.Int64Var(&f.config.Pids, "pids-limit", 0, "processes it may have; -1 for no limit")
	f.network.define(flags)
	flags.StringVarP(&f.config.User, "user", "u", "", "user[:group], names or numbers")
	flags.StringVarP(&f.config.Workdir, "workdir", "w", "", "working directory inside")
	flags.StringVarP(&f.config.Hostname, "hostname", "h", "", "host name inside")
	flags.BoolVar(&f.config.ReadOnly, "read-only", false, "mount the root file system read-only")
	flags.StringVar(&f.entrypoint, "entrypoint", "", "replace the image's entrypoint")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "label KEY=value")
	f.life.define(flags)
	flags.StringVar(&f.config.StopSignal, "stop-signal", "", "signal that asks the container to end")
	flags.IntVar(&f.stopTimeout, "stop-timeout", 0, "seconds between the stop signal and the kill")
	flags.StringVar(&f.config.UserNS, "userns", "", "auto, or host for no user namespace")
	flags.StringVar(&f.config.Runtime, "runtime", "", "another OCI runtime: a name in PATH, or an absolute path")
	flags.StringVar(&f.pull, "pull", "missing", "when to pull the image: missing, always or never")
	f.isolation.define(flags, &f.config)
	flags.StringVar(&f.cid.path, "cidfile", "", "file to write the container's id to; it must not exist")
	flags.Bool("help", false, "help for run") // without -h, which is the host name
}

// complete turns the flags into the configuration.
func (f *runFlags) complete(c *cobra.Command) (err error) {
	if err := f.network.complete(&f.config); err != nil {
		return err
	}
	f.config.Detached = f.detach
	if err := f.life.complete(c, &f.config); err != nil {
		return err
	}
	if f.config.Memory, err = parseSize(f.memory); err != nil {
		return err
	}
	if f.config.Env, err = readEnv(f.envFiles, f.env); err != nil {
		return err
	}
	for _, v := range f.volumes {
		m, err := parseMount(v)
		if err != nil {
			return err
		}
		f.config.Mounts = append(f.config.Mounts, m)
	}
	if c.Flags().Changed("entrypoint") {
		f.config.Entrypoint = []string{f.entrypoint}
	}
	f.config.Labels = parseLabels(f.labels)
	f.config.StopGrace = time.Duration(f.stopTimeout) * time.Second
	return f.isolation.complete(c.Flags(), &f.config)
}

// readEnv joins files and flags; KEY alone passes the caller's variable on, if
// it is set.
func readEnv(files, list []string) ([]string, error) {
	all, err := readLines(files)
	if err != nil {
		return nil, err
	}
	env := []string{}
	for _, kv := range append(all, list...) {
		key, _, given := strings.Cut(kv, "=")
		if given {
			env = append(env, kv)
		} else if value, ok := os.LookupEnv(key); ok {
			env = append(env, key+"="+value)
		}
	}
	return env, nil
}

// parseMount reads SOURCE:TARGET[:OPTIONS]. A source with a slash or a leading dot
// is a path on the host, which must exist; any other is a named volume.
func parseMount(s string) (sandbox.Mount, error) {
	parts := strings.Split(s, ":")
	if len(parts) == 1 && filepath.IsAbs(s) {
		return sandbox.Mount{Target: s, Volume: true}, nil // a volume without a name
	}
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return sandbox.Mount{}, fmt.Errorf("volume %q: want SOURCE:TARGET[:OPTIONS]", s)
	}
	m := sandbox.Mount{Source: parts[0], Target: parts[1], Volume: !strings.ContainsRune(parts[0], '/') && parts[0][0] != '.'}
	if len(parts) == 3 {
		for option := range strings.SplitSeq(parts[2], ",") {
			switch option {
			case "ro":
				m.ReadOnly = true
			case "rw":
			case "private", "rprivate", "shared", "rshared", "slave", "rslave":
				m.Propagation = option
			case "nocopy":
				m.NoCopy = true
			case "noexec":
				m.Options = append(m.Options, option)
			case "rro":
				m.ReadOnly, m.ReadOnlyTree = true, true
			default:
				return sandbox.Mount{}, fmt.Errorf("volume %q: unknown option %q", s, option)
			}
		}
	}
	if m.Volume {
		return m, nil
	}
	path, err := filepath.Abs(m.Source)
	m.Source = path
	return m, err
}

// engineError is exit code 125, or the runtime's 126 and 127.
func engineError(err error) error {
	if err == nil {
		return nil
	}
	code := exitEngine
	if refused := new(runtime.StartError); errors.As(err, &refused) {
		code = refused.Code()
	}
	return &ExitError{Code: code, Err: err}
}

func runContainer(ctx context.Context, env *Env, f *runFlags) error {
	e, err := openEngine(env)
	if err != nil {
		return engineError(err)
	}
	if err := pullFor(ctx, env, e, f); err != nil {
		return engineError(err)
	}
	if err := f.cid.open(); err != nil {
		return engineError(err)
	}
	defer f.cid.close()
	if f.detach {
		return runDetached(ctx, env, e, f)
	}
	if f.config.Terminal || f.config.Stdin {
		return runInteractive(ctx, env, e, f)
	}
	return runForeground(ctx, env, e, f)
}

// pullFor brings the image here if the flags ask for it.
func pullFor(ctx context.Context, env *Env, e *sandbox.Engine, f *runFlags) error {
	switch f.pull {
	case "never":
		return nil
	case "always":
	case "missing":
		img, err := e.Images().Get(f.config.Image)
		if err == nil {
			return checkPlatform(img, f.isolation.platform)
		}
		if !errors.Is(err, image.ErrNotFound) {
			return err
		}
		fmt.Fprintf(env.Stderr, "Unable to find image '%s' locally\n", f.config.Image)
	default:
		return fmt.Errorf("--pull %q: want missing, always or never", f.pull)
	}
	_, err := e.Images().Pull(ctx, f.config.Image, image.PullOptions{Out: env.Stderr, Platform: f.isolation.platform})
	return err
}

// checkPlatform refuses an image that is here for another platform than asked for.
func checkPlatform(img image.Image, want string) error {
	have := img.Config.OS + "/" + img.Config.Architecture
	if want == "" || want == have || want == have+"/"+img.Config.Variant {
		return nil
	}
	return fmt.Errorf("--platform %s: the image here is for %s; --pull always fetches the other", want, have)
}

func warn(env *Env, c sandbox.Container) {
	for _, w := range c.Warnings {
		fmt.Fprintln(env.Stderr, "WARNING:", w)
	}
}

func runDetached(ctx context.Context, env *Env, e *sandbox.Engine, f *runFlags) error {
	c, err := e.Create(ctx, f.config, sandbox.Stdio{})
	if err != nil {
		return engineError(err)
	}
	if err := f.cid.write(c.ID); err != nil {
		return engineError(errors.Join(err, e.Remove(context.WithoutCancel(ctx), c.ID, true)))
	}
	warn(env, c)
	if err := start(ctx, e, c); err != nil {
		return err
	}
	fmt.Fprintln(env.Stdout, c.ID)
	return nil
}

// start starts the container, and removes it if it cannot be and --rm is set.
func start(ctx context.Context, e *sandbox.Engine, c sandbox.Container) error {
	err := e.Start(ctx, c.ID)
	if err != nil && c.Config.Remove {
		err = errors.Join(err, e.Remove(context.WithoutCancel(ctx), c.ID, true))
	}
	return engineError(err)
}

// runForeground runs the container with its output here, passes signals on,
// and ends with its exit code.
func runForeground(ctx context.Context, env *Env, e *sandbox.Engine, f *runFlags) error {
	streams, err := openStreams(env, false)
	if err != nil {
		return engineError(err)
	}
	defer streams.drain()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	c, err := e.Create(ctx, f.config, sandbox.Stdio{Stdin: streams.stdin, Stdout: streams.stdout, Stderr: streams.stderr})
	streams.started()
	if err != nil {
		return engineError(err)
	}
	if err := f.cid.write(c.ID); err != nil {
		return engineError(errors.Join(err, e.Remove(context.WithoutCancel(ctx), c.ID, true)))
	}
	warn(env, c)
	if err := start(ctx, e, c); err != nil {
		return err
	}
	// From here a signal is the container's: it ends the run through its end.
	ctx, done := context.WithCancel(context.WithoutCancel(ctx))
	forwarded := make(chan struct{})
	go func() {
		defer close(forwarded)
		forward(ctx, e, c.ID, signals)
	}()
	exit, err := e.Wait(ctx, c.ID)
	done()
	<-forwarded
	if err != nil {
		return engineError(err)
	}
	if exit.Code != 0 {
		return &ExitError{Code: exit.Code}
	}
	return nil
}

// forward passes signals on until ctx ends. An error means that the container
// has just ended, which Wait reports.
func forward(ctx context.Context, e *sandbox.Engine, id string, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if number, ok := s.(syscall.Signal); ok {
				_ = e.Kill(ctx, id, number)
			}
		}
	}
}
