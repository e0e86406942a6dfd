package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox/oci"
	"naru/sandbox/runtime"
)

// defaultOCIRoot is where the state of OCI containers is kept.
const defaultOCIRoot = "/run/naru/oci"

// ociName is the name under which the program is an OCI runtime at once, for
// engines that want a path and no arguments.
const ociName = "naru-oci"

// Arguments are the arguments of the process; a program called naru-oci has "oci"
// before them.
func Arguments(args []string) []string {
	if filepath.Base(args[0]) == ociName {
		return append([]string{"oci"}, args[1:]...)
	}
	return args[1:]
}

// ociEnv is what the commands of `naru oci` share: runc's global flags.
type ociEnv struct {
	*Env
	root, log, format string
	debug, systemd    bool
	// rootless is accepted for podman's and nerdctl's sake.
	rootless string
}

// ociCommand is the OCI runtime: the command line that runc has, for containerd's
// shim, conmon and people.
func ociCommand(env *Env) *cobra.Command {
	o := &ociEnv{Env: env}
	c := &cobra.Command{
		Use:   "oci",
		Short: "An OCI runtime: containers of bundles, with runc's commands",
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return c.Help()
		},
	}
	flags := c.PersistentFlags()
	flags.StringVar(&o.root, "root", defaultOCIRoot, "directory of the containers' state, on tmpfs")
	flags.StringVar(&o.log, "log", "", "file for errors and warnings (default standard error)")
	flags.StringVar(&o.format, "log-format", "text", "text or json")
	flags.BoolVar(&o.debug, "debug", false, "log what is done as well")
	flags.BoolVar(&o.systemd, "systemd-cgroup", false, "not supported: cgroups are made without systemd")
	flags.StringVar(&o.rootless, "rootless", "auto", "ignored: containers need root")
	c.AddCommand(o.createCommand(), o.startCommand(), o.stateCommand(), o.killCommand(), o.deleteCommand(),
		o.listCommand(), o.runCommand(), o.execCommand(), o.psCommand(), o.pauseCommand(), o.resumeCommand(),
		o.updateCommand(), o.eventsCommand(), o.featuresCommand(), o.specCommand())
	for _, sub := range c.Commands() {
		sub.RunE = o.logged(sub.RunE)
	}
	return c
}

// logged checks the global flags, and tells the log of an error too, where engines
// look for it.
func (o *ociEnv) logged(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		err := o.check()
		if err == nil {
			o.say("debug", fmt.Sprintf("%s %q", c.Name(), args))
			err = run(c, args)
		}
		var exit *ExitError
		if err == nil || errors.As(err, &exit) && exit.Err == nil {
			return err
		}
		o.say("error", err.Error())
		return err
	}
}

func (o *ociEnv) check() error {
	if o.systemd {
		return usage("--systemd-cgroup: cgroups are made without systemd; use the cgroupfs driver")
	}
	if o.format != "text" && o.format != "json" {
		return usage("--log-format %q: text or json", o.format)
	}
	return needRoot()
}

// say writes one line to the log. A line of --debug or an error goes nowhere else:
// an error is on standard error anyway.
func (o *ociEnv) say(level, message string) {
	if level == "debug" && !o.debug {
		return
	}
	var to io.Writer = o.Stderr
	if o.log != "" {
		f, err := os.OpenFile(o.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			fmt.Fprintln(o.Stderr, "naru: --log:", err)
			return
		}
		defer f.Close()
		to = f
	} else if level == "error" {
		return
	}
	now := time.Now().Format(time.RFC3339)
	if o.format == "json" {
		line, err := json.Marshal(map[string]string{"level": level, "msg": message, "time": now})
		if err == nil {
			fmt.Fprintf(to, "%s\n", line)
		}
		return
	}
	fmt.Fprintf(to, "time=%q level=%s msg=%q\n", now, level, message)
}

// runtime is the set of containers of --root.
func (o *ociEnv) runtime() (oci.Runtime, error) {
	root, err := filepath.Abs(o.root)
	return oci.Runtime{Root: root, Warn: func(m string) { o.say("warning", m) }}, err
}

// with hands a command its runtime.
func (o *ociEnv) with(f func(c *cobra.Command, r oci.Runtime, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		r, err := o.runtime()
		if err != nil {
			return err
		}
		return f(c, r, args)
	}
}

// startExit gives an error of a start the exit code that Docker would: 125, or 126
// and 127 for a program that cannot be run or is not there.
func startExit(err error) error {
	if err == nil {
		return nil
	}
	var exit *ExitError
	if errors.As(err, &exit) {
		return err
	}
	code := exitEngine
	var start *runtime.StartError
	if errors.As(err, &start) {
		code = start.Code()
	}
	return &ExitError{Code: code, Err: err}
}
