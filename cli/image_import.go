package cli

import (
	"encoding/json"

	"naru/sandbox/image"
)

// importConfig turns --change lines into the configuration of an image.
func importConfig(changes []string) (image.Config, error) {
	config := image.Config{}
	err := applyChanges(&config.Config, changes)
	return config, err
}

// commandLine reads the JSON form, or hands any other to a shell.
func commandLine(s string) []string {
	var list []string
	if json.Unmarshal([]byte(s), &list) == nil {
		return list
	}
	return []string{"/bin/sh", "-c", s}
}
