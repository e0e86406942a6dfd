package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"naru/sandbox"
	"naru/sandbox/image"
	"naru/sandbox/runtime"
)

// lifeFlags are the flags of run about a container's terminal, its log, and who
// looks after it when nobody is there.
type lifeFlags struct {
	stdin, tty, sigProxy, init, noHealth bool
	detachKeys, restart, logDriver       string
	logOptions                           []string
	healthCommand                        string
	health                               image.Healthcheck
}

func (f *lifeFlags) define(flags *pflag.FlagSet) {
	flags.BoolVarP(&f.stdin, "interactive", "i", false, "pass standard input on")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give it a terminal")
	flags.StringVar(&f.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave the terminal")
	flags.BoolVar(&f.sigProxy, "sig-proxy", true, "pass signals on to the container")
	flags.BoolVar(&f.init, "init", false, "run an init inside, which reaps processes and passes signals on")
	flags.StringVar(&f.restart, "restart", "no", "when it has ended: no, on-failure[:count], always or unless-stopped")
	flags.StringVar(&f.logDriver, "log-driver", "naru", "the log's kind; there is one")
	flags.StringArrayVar(&f.logOptions, "log-opt", nil, "max-size=SIZE of one log file, max-file=NUMBER of them")
	flags.StringVar(&f.healthCommand, "health-cmd", "", "command that says by its exit code whether the container is healthy")
	flags.DurationVar(&f.health.Interval, "health-interval", 0, "time between two health checks (default 30s)")
	flags.DurationVar(&f.health.Timeout, "health-timeout", 0, "time a health check may take (default 30s)")
	flags.DurationVar(&f.health.StartPeriod, "health-start-period", 0, "time in which failures do not count")
	flags.DurationVar(&f.health.StartInterval, "health-start-interval", 0, "time between two checks in the start period (default 5s)")
	flags.IntVar(&f.health.Retries, "health-retries", 0, "failures in a row that make it unhealthy (default 3)")
	flags.BoolVar(&f.noHealth, "no-healthcheck", false, "switch the image's health check off")
}

// complete turns the flags into the configuration.
func (f *lifeFlags) complete(c *cobra.Command, config *sandbox.ContainerConfig) (err error) {
	config.Terminal, config.Stdin, config.Init = f.tty, f.stdin, f.init
	if config.Restart, err = sandbox.ParseRestart(f.restart); err != nil {
		return err
	}
	if config.Restart.Policy != "" && config.Remove {
		return errors.New("--restart and --rm exclude each other")
	}
	if _, err := parseKeys(f.detachKeys); err != nil {
		return err
	}
	if f.logDriver != "naru" {
		return fmt.Errorf("--log-driver %q: there is only naru", f.logDriver)
	}
	if err := f.logs(config); err != nil {
		return err
	}
	return f.healthcheck(c, config)
}

// logs reads --log-opt. Docker's max-size is of one file; ours bounds all.
func (f *lifeFlags) logs(config *sandbox.ContainerConfig) (err error) {
	size, files := int64(0), 0
	for _, option := range f.logOptions {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "max-size":
			if size, err = parseSize(value); err != nil || size == 0 {
				return fmt.Errorf("--log-opt %q: want a size such as 10m", option)
			}
		case "max-file":
			if files, err = strconv.Atoi(value); err != nil || files < 1 {
				return fmt.Errorf("--log-opt %q: want a number from 1", option)
			}
		default:
			return fmt.Errorf("--log-opt %q: want max-size or max-file", option)
		}
	}
	if size > 0 && files == 0 {
		files = 1
	}
	if size == 0 && files > 0 {
		size = runtime.DefaultLogMax / 2
	}
	config.LogMax, config.LogFiles = size*int64(files), files
	return nil
}

func (f *lifeFlags) healthcheck(c *cobra.Command, config *sandbox.ContainerConfig) error {
	given := false
	c.Flags().Visit(func(flag *pflag.Flag) { given = given || strings.HasPrefix(flag.Name, "health-") })
	switch {
	case f.noHealth && given:
		return errors.New("--no-healthcheck and --health-* exclude each other")
	case f.noHealth:
		config.Health = &image.Healthcheck{Test: []string{"NONE"}}
		return nil
	case !given:
		return nil
	}
	for name, d := range map[string]time.Duration{
		"interval": f.health.Interval, "timeout": f.health.Timeout, "start-period": f.health.StartPeriod, "start-interval": f.health.StartInterval,
	} {
		if d < 0 {
			return fmt.Errorf("--health-%s %s is negative", name, d)
		}
	}
	h := f.health
	if f.healthCommand != "" {
		h.Test = []string{"CMD-SHELL", f.healthCommand}
	}
	config.Health = &h
	return nil
}
