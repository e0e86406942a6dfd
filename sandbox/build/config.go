package build

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// configure carries out the instructions that change the config only.
func (r *stageRun) configure(cmd instructions.Command) error {
	c := &r.config.Config
	text := ""
	switch cmd := cmd.(type) {
	case *instructions.EnvCommand:
		text = r.envVars(cmd)
	case *instructions.LabelCommand:
		text = r.labels(cmd)
	case *instructions.CmdCommand:
		c.Cmd, r.cmdSet = r.command(cmd.ShellDependantCmdLine), true
		c.ArgsEscaped = true //lint:ignore SA1019 BuildKit sets it with every CMD
		text = fmt.Sprintf("CMD %q", c.Cmd)
	case *instructions.EntrypointCommand:
		c.Entrypoint = r.command(cmd.ShellDependantCmdLine)
		if !r.cmdSet {
			c.Cmd = nil // the base's arguments were for the base's entrypoint
		}
		text = fmt.Sprintf("ENTRYPOINT %q", c.Entrypoint)
	case *instructions.ExposeCommand:
		return r.expose(cmd)
	case *instructions.HealthCheckCommand:
		h := cmd.Health
		c.Healthcheck = &image.Healthcheck{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout,
			StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
		text = fmt.Sprintf("HEALTHCHECK %+v", *c.Healthcheck)
	case *instructions.MaintainerCommand:
		r.config.Author = cmd.Maintainer
		text = "MAINTAINER " + cmd.Maintainer
	case *instructions.ShellCommand:
		c.Shell = cmd.Shell
		text = fmt.Sprintf("SHELL %v", cmd.Shell)
	case *instructions.OnbuildCommand:
		c.OnBuild = append(slices.Clone(c.OnBuild), cmd.Expression)
		return nil // as in BuildKit, nothing of it is in the history
	case *instructions.StopSignalCommand:
		if !isSignal(cmd.Signal) {
			return fmt.Errorf("STOPSIGNAL: there is no signal %q", cmd.Signal)
		}
		c.StopSignal = cmd.Signal
		text = "STOPSIGNAL " + cmd.Signal
	case *instructions.UserCommand:
		c.User = cmd.User
		text = "USER " + cmd.User
	case *instructions.VolumeCommand:
		return r.volumes(cmd)
	default:
		return fmt.Errorf("internal error: %s passed the check and is not done", strings.ToUpper(cmd.Name()))
	}
	r.history(text, false)
	return nil
}

// command is the shell form or the exec form of a command.
func (r *stageRun) command(line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	return r.withShell(strings.Join(line.CmdLine, " "))
}

func (r *stageRun) withShell(script string) []string {
	if sh := r.config.Config.Shell; len(sh) > 0 {
		return append(slices.Clone(sh), script)
	}
	return []string{"/bin/sh", "-c", script}
}

// envVars is ENV. All values of one ENV were expanded with what was before it.
func (r *stageRun) envVars(c *instructions.EnvCommand) string {
	text := "ENV"
	for _, e := range c.Env {
		r.setEnv(e.Key, e.Value)
		text += " " + e.String()
	}
	return text
}

func (r *stageRun) labels(c *instructions.LabelCommand) string {
	text := "LABEL"
	if r.config.Config.Labels == nil {
		r.config.Config.Labels = map[string]string{}
	}
	for _, l := range c.Labels {
		r.config.Config.Labels[l.Key] = l.Value
		text += " " + l.String()
	}
	return text
}

func (r *stageRun) expose(c *instructions.ExposeCommand) error {
	var all []string
	for _, word := range c.Ports {
		words, err := r.file.lex.ProcessWords(word, r.env)
		if err != nil {
			return err
		}
		for _, w := range words {
			ports, err := exposed(w)
			if err != nil {
				return fmt.Errorf("EXPOSE: %w", err)
			}
			all = append(all, ports...)
		}
	}
	if r.config.Config.ExposedPorts == nil {
		r.config.Config.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range all {
		r.config.Config.ExposedPorts[p] = struct{}{}
	}
	r.history(fmt.Sprintf("EXPOSE %v", all), false)
	return nil
}

// volumes is VOLUME. As in BuildKit it makes no directory, and what is written
// there later stays.
func (r *stageRun) volumes(c *instructions.VolumeCommand) error {
	if r.config.Config.Volumes == nil {
		r.config.Config.Volumes = map[string]struct{}{}
	}
	for _, v := range c.Volumes {
		if v == "" {
			return errors.New("VOLUME: a path is empty")
		}
		r.config.Config.Volumes[v] = struct{}{}
	}
	r.history(fmt.Sprintf("VOLUME %v", c.Volumes), false)
	return nil
}

// arg is ARG: a build argument, or else the default, or else the ARG of that
// name before the first FROM. Without any of them it sets nothing.
func (r *stageRun) arg(c *instructions.ArgCommand) error {
	text := "ARG"
	for _, a := range c.Args {
		text += " " + a.Key // the value may be a secret
		value, ok := r.buildArg(a.Key)
		if !ok && a.Value != nil {
			var err error
			if value, _, err = r.file.lex.ProcessWord(*a.Value, r.env); err != nil {
				return err
			}
			ok = true
		}
		if !ok {
			value, ok = r.globals.Get(a.Key)
		}
		if ok && !speaksToBuilder(a.Key) {
			r.env.set(a.Key, value)
		}
	}
	r.history(text, false)
	return nil
}

// isSignal tells whether s is a signal by name, with or without SIG, or number.
func isSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n >= 1 && n <= 64
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if unix.SignalNum("SIG"+name) != 0 || name == "RTMIN" || name == "RTMAX" {
		return true
	}
	for _, prefix := range []string{"RTMIN+", "RTMAX-"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			n, err := strconv.ParseUint(rest, 10, 8)
			return err == nil && n <= 30
		}
	}
	return false
}
