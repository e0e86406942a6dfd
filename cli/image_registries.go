package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v4"

	"naru/sandbox/image/registry"
)

// systemRegistries is read where the data directory has no registries.yaml.
const systemRegistries = "/etc/naru/registries.yaml"

// readRegistries reads how registries are reached: a map from host[:port] to
// mirrors, insecure and ca, as registry.Host. No file: nothing special.
func readRegistries(env *Env) (map[string]registry.Host, error) {
	for _, file := range []string{filepath.Join(env.Root, "registries.yaml"), systemRegistries} {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		hosts := map[string]registry.Host{}
		decoder := yaml.NewDecoder(bytes.NewReader(data))
		decoder.KnownFields(true)
		if err := decoder.Decode(&hosts); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		for host := range hosts {
			if _, err := registry.Open(host, "any", registry.Options{Hosts: hosts}); err != nil {
				return nil, fmt.Errorf("read %s: %s: %w", file, host, err)
			}
		}
		return hosts, nil
	}
	return nil, nil
}
