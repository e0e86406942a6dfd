package build

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// refuse is the list of what can be written in a Dockerfile and is not done
// here. Whatever the parser accepts is either carried out or refused in this
// file: TestEveryField holds every field of every command to it. A flag that a
// builder parses and then ignores (an unchecked ADD --checksum) is worse than
// one that it does not know.
func refuse(cmd instructions.Command) error {
	switch c := cmd.(type) {
	case *instructions.RunCommand:
		return refuseRun(c)
	case *instructions.CopyCommand:
		if c.Parents {
			return errors.New("COPY --parents is not supported")
		}
		return refuseRemote("COPY", c.SourcePaths)
	case *instructions.AddCommand:
		return refuseAdd(c)
	case *instructions.OnbuildCommand:
		return errors.New("ONBUILD is not supported")
	case *instructions.ArgCommand, *instructions.CmdCommand, *instructions.EntrypointCommand, *instructions.EnvCommand,
		*instructions.ExposeCommand, *instructions.HealthCheckCommand, *instructions.LabelCommand,
		*instructions.MaintainerCommand, *instructions.ShellCommand, *instructions.StopSignalCommand,
		*instructions.UserCommand, *instructions.VolumeCommand, *instructions.WorkdirCommand:
		return nil
	}
	return fmt.Errorf("%s is not supported", strings.ToUpper(cmd.Name()))
}

func refuseRun(c *instructions.RunCommand) error {
	for _, flag := range c.FlagsUsed {
		switch flag {
		case "network", "security": // below
		default:
			return fmt.Errorf("RUN --%s is not supported", flag)
		}
	}
	if n := instructions.GetNetwork(c); n == instructions.NetworkHost {
		return errors.New("RUN --network=host is not supported: a build does not get the host's network")
	}
	if s := instructions.GetSecurity(c); s != instructions.SecuritySandbox {
		return fmt.Errorf("RUN --security=%s is not supported", s)
	}
	return nil
}

func refuseAdd(c *instructions.AddCommand) error {
	if c.KeepGitDir != nil {
		return errors.New("ADD --keep-git-dir is not supported")
	}
	if c.Checksum != "" {
		return errors.New("ADD --checksum is not supported")
	}
	return refuseRemote("ADD", c.SourcePaths)
}

// remote is what BuildKit would fetch instead of looking into the context.
var remote = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([a-zA-Z][a-zA-Z0-9+.-]*://|[a-zA-Z0-9_-]+@[a-zA-Z0-9.-]+:|github\.com/)`)
})

// refuseRemote is asked again when variables have been expanded.
func refuseRemote(instruction string, sources []string) error {
	for _, s := range sources {
		if remote().MatchString(s) {
			return fmt.Errorf("%s of a remote source (%s) is not supported: fetch it with RUN", instruction, s)
		}
	}
	return nil
}
