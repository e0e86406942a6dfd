package build

import (
	"fmt"
	"strings"

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
	case *instructions.AddCommand, *instructions.ArgCommand, *instructions.CmdCommand, *instructions.CopyCommand, *instructions.EntrypointCommand, *instructions.EnvCommand,
		*instructions.ExposeCommand, *instructions.HealthCheckCommand, *instructions.LabelCommand,
		*instructions.MaintainerCommand, *instructions.OnbuildCommand, *instructions.ShellCommand, *instructions.StopSignalCommand,
		*instructions.UserCommand, *instructions.VolumeCommand, *instructions.WorkdirCommand:
		return nil
	}
	return fmt.Errorf("%s is not supported", strings.ToUpper(cmd.Name()))
}

func refuseRun(c *instructions.RunCommand) error {
	for _, flag := range c.FlagsUsed {
		switch flag {
		case "network", "security", "mount": // run.go, below, mount.go
		default:
			return fmt.Errorf("RUN --%s is not supported", flag)
		}
	}
	if s := instructions.GetSecurity(c); s != instructions.SecuritySandbox {
		return fmt.Errorf("RUN --security=%s is not supported: such a step would be root on the host", s)
	}
	return nil
}
