package cli

import (
	"encoding/json"
	"strings"

	"naru/sandbox/image"
)

// importConfig turns --change lines into the configuration of an image.
func importConfig(changes []string) (image.Config, error) {
	config := image.Config{}
	for _, change := range changes {
		word, rest, _ := strings.Cut(strings.TrimSpace(change), " ")
		rest = strings.TrimSpace(rest)
		if rest == "" {
			return config, usage("--change %q: nothing given", change)
		}
		switch strings.ToUpper(word) {
		case "CMD":
			config.Config.Cmd = commandLine(rest)
		case "ENTRYPOINT":
			config.Config.Entrypoint = commandLine(rest)
		case "ENV":
			if !strings.Contains(rest, "=") {
				rest = strings.Replace(rest, " ", "=", 1) // the old form ENV KEY value
			}
			config.Config.Env = append(config.Config.Env, rest)
		case "USER":
			config.Config.User = rest
		case "WORKDIR":
			config.Config.WorkingDir = rest
		default:
			return config, usage("--change %q: want CMD, ENTRYPOINT, ENV, USER or WORKDIR", change)
		}
	}
	return config, nil
}

// commandLine reads the JSON form, or hands any other to a shell.
func commandLine(s string) []string {
	var list []string
	if json.Unmarshal([]byte(s), &list) == nil {
		return list
	}
	return []string{"/bin/sh", "-c", s}
}
