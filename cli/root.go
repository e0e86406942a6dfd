// Package cli is what a person types: the commands of naru.
//
// Main builds the tree of commands, runs one, and turns its error into an exit
// code. Commands about containers, images, networks and volumes work on the
// data directory themselves, without a daemon, with Docker's flags and habits.
// Commands about apps talk to the agent, over its unix socket in the run
// directory, or over --url with a token. serve is the agent.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes of deploy and of the other commands that talk to the agent.
const (
	exitUnexpected  = 1
	exitUsage       = 2 // or a config that is wrong
	exitNothingDone = 3 // fetch or build failed, nothing changed
	exitRolledBack  = 4 // the old release serves
	exitBroken      = 5 // the roll-back failed too
	exitRefused     = 6 // refused, cancelled or superseded
	exitTimeout     = 7 // it goes on
	exitNoAgent     = 8 // not authorized, or the agent cannot be reached
)

// defaultRoot and defaultRun are the directories of a machine's own naru.
const (
	defaultRoot = "/var/lib/naru"
	defaultRun  = "/run/naru"
)

// version is set by the linker (make build).
var version = ""

// Main runs naru with the given arguments and returns its exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	env := &Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	err := Run(ctx, args, env)
	if err == nil {
		return 0
	}
	var exit *ExitError
	if errors.As(err, &exit) {
		if exit.Err != nil {
			fmt.Fprintln(env.Stderr, "naru:", exit.Err)
		}
		return exit.Code
	}
	fmt.Fprintln(env.Stderr, "naru:", err)
	return exitUnexpected
}

// Run runs one command with everything it may touch of the world in env.
func Run(ctx context.Context, args []string, env *Env) error {
	root := &cobra.Command{
		Use:           "naru",
		Short:         "A push becomes the new version behind nginx, and not one request is lost",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionText(),
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return c.Help()
		},
	}
	root.SetArgs(args)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%w\nSee '%s --help'", err, c.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVar(&env.Root, "root", fromEnvironment("NARU_ROOT", defaultRoot), "data directory")
	flags.StringVar(&env.Run, "run", fromEnvironment("NARU_RUN", defaultRun), "run directory, on tmpfs")
	if c := oneCommand(env, args); c != nil {
		root.AddCommand(c)
	} else {
		root.AddCommand(agentCommands(env)...)
		root.AddCommand(containerCommands(env)...)
	}
	explainArgs(root)
	return root.ExecuteContext(ctx)
}

// oneCommand is the command that args begin with, if it is one of those that scripts
// and monitors call over and over: to make all of them, with their hundreds of flags,
// takes as long as a tenth of a container's life. Anything else, a mistake above all,
// needs the whole tree.
func oneCommand(env *Env, args []string) *cobra.Command {
	for len(args) >= 2 && (args[0] == "--root" || args[0] == "--run") {
		args = args[2:]
	}
	if len(args) == 0 {
		return nil
	}
	makers := map[string]func(*Env) *cobra.Command{
		"run": runCommand, "create": createCommand, "start": startCommand, "exec": execCommand, "wait": waitCommand,
		"stop": stopCommand, "kill": killCommand, "rm": rmCommand, "ps": psCommand, "logs": logsCommand,
		"inspect": inspectCommand, "oci": ociCommand,
	}
	if newCommand := makers[args[0]]; newCommand != nil {
		return newCommand(env)
	}
	return nil
}

// explainArgs makes a wrong number of arguments an error of usage that shows
// what the command wants.
func explainArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			err := check(c, args)
			if err == nil {
				return nil
			}
			if strings.HasPrefix(err.Error(), "unknown command") { // what cobra.NoArgs says
				err = errors.New("takes no arguments")
			}
			code := exitUsage
			if name := c.CommandPath(); name == "naru run" || name == "naru create" || name == "naru exec" {
				code = exitEngine
			}
			return &ExitError{Code: code, Err: fmt.Errorf("%s: %w\nUsage: %s", c.CommandPath(), err, c.UseLine())}
		}
	}
	for _, sub := range c.Commands() {
		explainArgs(sub)
	}
}

// unknownCommand names those that look like what was typed.
func unknownCommand(c *cobra.Command, name string) error {
	c.SuggestionsMinimumDistance = 2
	near := ""
	if list := c.SuggestionsFor(name); len(list) > 0 {
		near = fmt.Sprintf(", did you mean %q?", strings.Join(list, " or "))
	}
	return usage("%q is not a command of %s%s\nSee '%s --help'", name, c.CommandPath(), near, c.CommandPath())
}

func fromEnvironment(key, otherwise string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return otherwise
}

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
