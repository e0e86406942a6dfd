// Package configs reads what may be configured: naru.yaml, which is about the
// agent, and apps.d/*.yaml, one file per app.
//
// The shape of a file is a Go struct whose tags hold the names, defaults, limits
// and descriptions of its keys (shape.go); decoding, checking and the JSON
// Schema all follow those tags. The life of one Load: each file is parsed into
// YAML nodes; the decoder walks nodes and struct together and notes a Problem,
// with file, line and key, for every key it does not know and every value that
// is not allowed; checks that need more than one key follow; then what two
// apps may not share is compared; last the shapes become Config, completed with
// defaults. Nothing in a file is ever ignored: a key whose feature is not built
// yet is known by name and refused with "not supported yet".
//
// A relative path in a file (root, run, apps_dir, token_file, key_file,
// known_hosts, secret_file) is relative to the directory of that file.
// The package reads files and changes none, and knows no other part of naru.
package configs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// maxFile is the largest configuration file read, in bytes.
const maxFile = 1 << 20

// maxSecret is the largest secret file read, in bytes.
const maxSecret = 64 << 10

// Config is a checked and completed configuration.
type Config struct {
	File      string // the agent's file, as given to Load
	Listen    string // host:port of the API
	Root      string // data directory, absolute
	Run       string // run directory, absolute, on tmpfs
	AppsDir   string // absolute; may not exist when it is the default one
	PublicURL string // how people and senders reach the API, without a final slash; may be empty
	Nginx     Nginx
	Apps      []AppConfig // sorted by name
}

// Nginx says how the routes are served.
type Nginx struct {
	Mode  string // "managed": the agent runs its own; "system": the distribution's
	HTTP  int    // port for plain HTTP
	HTTPS int    // port for TLS, unused while route.tls is off
	Bind  string // address to listen on; empty: all

	Include string // mode system: the file the agent writes
}

// AppConfig is one file of apps.d.
type AppConfig struct {
	File     string // path of the file
	App      App
	Triggers Triggers
}

// App is what is deployed. The structs below have the fields of the pipeline's
// types of the same names, in the same order, so that the agent can convert them.
type App struct {
	Name      string
	Target    string // "local"
	Runtime   string // name or absolute path of an OCI runtime; empty: the target's own
	Repo      Repo
	Build     Build
	Processes []Process // sorted by name
	Domains   []string  // lower case, in the order of the file
	Policy    Policy
	Env       map[string]string
	Volumes   []Volume
}

// Repo says where the source is; the file names are absolute paths.
type Repo struct {
	URL        string
	Branch     string
	Paths      []string // globs; empty: every change counts
	TokenFile  string
	KeyFile    string
	KnownHosts string
}

// Build says how a commit becomes an image.
type Build struct {
	Context    string // relative to the tree
	Dockerfile string // relative to the context
	Target     string
	Args       map[string]string
	Secrets    []string // names; ReadSecret has their values
	Network    string   // of RUN steps: default or none
	Memory     int64    // bytes of one step
	CPUs       float64  // of one step; 0: all
	Pids       int64    // of one step
	Disk       int64    // bytes of all steps
	Timeout    time.Duration
}

// Process is one kind of program of the app.
type Process struct {
	Name      string
	Command   []string // empty: the image's own
	Port      int      // 0: none
	Replicas  int
	Health    Health
	Memory    int64   // bytes
	CPUs      float64 // processors
	Pids      int64
	Signal    string // without SIG: "TERM"
	StopGrace time.Duration
}

// Health says when a replica is ready.
type Health struct {
	Path     string
	Interval time.Duration
	Timeout  time.Duration
	Healthy  int
	Deadline time.Duration
}

// Policy is how a new release replaces the old one.
type Policy struct {
	Strategy       string
	Surge          int
	Unavailable    int
	Drain          time.Duration
	Bake           time.Duration
	ReleaseCommand []string
	Keep           int
}

// Volume is storage that outlives replicas.
type Volume struct {
	Name string
	Path string // absolute, in the container
}

// Triggers say what, beside a person, starts a deployment.
type Triggers struct {
	Webhook   *Webhook // nil: webhooks for the app are refused
	Schedules []Schedule
}

// Webhook says who may post to /webhooks/<sender>/<app>.
type Webhook struct {
	Sender     string // "github"
	Secret     string // name of the secret, or empty
	SecretFile string // absolute path of the secret's file, or empty
}

// ReadSecret returns the webhook's secret: the content of SecretFile, or else of
// <root>/secrets/<Secret>, without the line break at its end. An absent or empty
// secret is an error, so that no webhook is ever verified with an empty key. It
// reads the file each time: a new secret counts at once.
func (w Webhook) ReadSecret(root string) (string, error) {
	path := w.SecretFile
	if path == "" {
		path = filepath.Join(root, "secrets", w.Secret)
	}
	return readSecret(path, "webhook")
}

// ReadBuildSecret returns the value of a secret of Build, as Webhook.ReadSecret does.
func ReadBuildSecret(root, name string) (string, error) {
	return readSecret(filepath.Join(root, "secrets", name), "build")
}

func readSecret(path, what string) (string, error) {
	data, err := readLimited(path, maxSecret)
	if err != nil {
		return "", fmt.Errorf("read %s secret: %w", what, err)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if strings.TrimSpace(secret) == "" {
		return "", fmt.Errorf("read %s secret: %s is empty", what, path)
	}
	return secret, nil
}

// Schedule is a time to deploy at.
type Schedule struct {
	Cron string // five fields, or @daily and the like, or "@every 1h"
	Zone string // IANA name, "UTC" by default
}

// Load reads the agent's file at path and the apps of its apps_dir. The error is
// a Problems with all that is wrong. When only app files have problems, Config
// still holds the agent's settings and the apps that are well, so that a
// bad file need not stop the others.
func Load(path string) (Config, error) {
	c, problems := load(path)
	if len(problems) > 0 {
		return c, problems
	}
	return c, nil
}

// ParseApp checks the content of one app file alone; file is its path, for
// messages and relative paths. The error is a Problems.
func ParseApp(file string, data []byte) (AppConfig, error) {
	a, _, problems := parseApp(file, data)
	if len(problems) > 0 {
		return AppConfig{}, problems
	}
	return a, nil
}

func load(path string) (Config, Problems) {
	data, err := readLimited(path, maxFile)
	if err != nil {
		return Config{}, Problems{{File: path, Message: plain(err)}}
	}
	c, d := parseAgent(path, data)
	if len(d.problems) > 0 {
		return Config{}, d.sorted()
	}
	files, problems := appFiles(c.AppsDir, d)
	if len(d.problems) > 0 {
		return Config{}, problems // not one app could be read
	}
	var all apps
	for _, file := range files {
		problems = append(problems, all.add(file)...)
	}
	c.Apps = all.list
	sort.Slice(c.Apps, func(i, j int) bool { return c.Apps[i].App.Name < c.Apps[j].App.Name })
	return c, problems
}

// appFiles lists the app files. A directory that does not exist is an error only
// when the file names it. Files of the look-alike ending are a problem
// and not left out in silence.
func appFiles(dir string, agent *decoder) ([]string, Problems) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) && !agent.given("apps_dir") {
		return nil, nil
	}
	if err != nil {
		agent.problem("apps_dir", plain(err))
		return nil, agent.sorted()
	}
	var files []string
	var problems Problems
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), "."): // an editor's or our own temporary file
		case strings.HasSuffix(e.Name(), ".yaml"):
			files = append(files, name)
		case strings.HasSuffix(e.Name(), ".yml"):
			problems = append(problems, Problem{File: name, Message: "not read: the name of an app file must end in .yaml"})
		}
	}
	return files, problems
}

// apps gathers the app files and what they may not share.
type apps struct {
	list    []AppConfig
	names   map[string]string // app name → file:line
	domains map[string]string // domain → file:line
}

// add reads one file and appends its app when it is well.
func (a *apps) add(file string) Problems {
	data, err := readLimited(file, maxFile)
	if err != nil {
		return Problems{{File: file, Message: plain(err)}}
	}
	app, d, problems := parseApp(file, data)
	if len(problems) > 0 {
		return problems
	}
	if a.names == nil {
		a.names, a.domains = map[string]string{}, map[string]string{}
	}
	if first, ok := a.names[app.App.Name]; ok {
		d.problem("name", fmt.Sprintf("app %q is already in %s", app.App.Name, first))
	}
	for i, domain := range app.App.Domains {
		if first, ok := a.domains[domain]; ok {
			d.problem(fmt.Sprintf("route.domains[%d]", i), fmt.Sprintf("domain %q already belongs to %s", domain, first))
		}
	}
	if len(d.problems) > 0 {
		return d.sorted()
	}
	a.names[app.App.Name] = d.where("name")
	for i, domain := range app.App.Domains {
		a.domains[domain] = d.where(fmt.Sprintf("route.domains[%d]", i))
	}
	a.list = append(a.list, app)
	return nil
}

// readLimited reads a regular file of at most limit bytes. Other kinds are
// refused since opening a pipe would block for ever.
func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}
