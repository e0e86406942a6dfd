package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"

	"naru/sandbox/image/registry"
)

// Login is a user of a registry.
type Login struct {
	Host           string // "registry.example:5000"; empty: docker.io
	User, Password string
	Insecure       bool // as in PullOptions
}

// Stored says where credentials went.
type Stored struct {
	File  string // Docker's config.json
	Plain bool   // the password is readable in it; false: a credential helper has it
}

// hubKey is what Docker calls its Hub in config.json.
const hubKey = "https://index.docker.io/v1/"

// LogIn asks the registry whether it knows the user, and hands the password to
// the credential helper of Docker's config.json ($DOCKER_CONFIG), or writes it
// there, as docker login does.
func LogIn(ctx context.Context, l Login, hosts map[string]registry.Host) (Stored, error) {
	stored, err := logIn(ctx, l, hosts)
	if err != nil {
		return stored, fmt.Errorf("log in to %s: %w", l.Host, err)
	}
	return stored, nil
}

func logIn(ctx context.Context, l Login, hosts map[string]registry.Host) (stored Stored, err error) {
	host, key, err := registryKey(l.Host)
	if err != nil {
		return stored, err
	}
	if l.User == "" || l.Password == "" {
		return stored, errors.New("want a user and a password")
	}
	if err := registry.Verify(ctx, host, l.User, l.Password, registry.Options{Hosts: hosts, Insecure: l.Insecure}); err != nil {
		return stored, err
	}
	file, err := config.Load(os.Getenv("DOCKER_CONFIG"))
	if err != nil {
		return stored, err
	}
	auth := types.AuthConfig{Username: l.User, Password: l.Password, ServerAddress: key}
	if err := file.GetCredentialsStore(key).Store(auth); err != nil {
		return stored, fmt.Errorf("store credentials: %w", err)
	}
	stored = Stored{File: file.GetFilename(), Plain: !hasHelper(file, key)}
	if stored.Plain { // Docker keeps the mode of a file that is there
		err = os.Chmod(stored.File, 0o600)
	}
	return stored, err
}

func hasHelper(file *configfile.ConfigFile, key string) bool {
	host := key
	if key != hubKey {
		host, _, _ = strings.Cut(key, "/")
	}
	return file.CredentialHelpers[host] != "" || file.CredentialsStore != ""
}

// LogOut forgets the credentials of a registry. false: there were none.
func LogOut(host string) (bool, error) {
	_, key, err := registryKey(host)
	if err != nil {
		return false, err
	}
	file, err := config.Load(os.Getenv("DOCKER_CONFIG"))
	if err != nil {
		return false, fmt.Errorf("log out of %s: %w", host, err)
	}
	store := file.GetCredentialsStore(key)
	known, err := store.Get(key)
	if err == nil && known.Username == "" && known.IdentityToken == "" && known.RegistryToken == "" {
		return false, nil
	}
	if err == nil {
		err = store.Erase(key)
	}
	if err != nil {
		return false, fmt.Errorf("log out of %s: %w", host, err)
	}
	return true, nil
}

// registryKey gives the host to ask and the key in config.json.
func registryKey(host string) (ask, key string, err error) {
	host = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://"), "/")
	switch host {
	case "", hub, "index.docker.io", "index.docker.io/v1", "registry-1.docker.io":
		return hub, hubKey, nil
	}
	if !hostPattern().MatchString(host) {
		return "", "", fmt.Errorf("registry %q: want host[:port]", host)
	}
	return host, host, nil
}
