package configs

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // a minimal server has no zone files, and tz must mean the same everywhere
)

// parseAgent checks naru.yaml.
func parseAgent(file string, data []byte) (Config, *decoder) {
	var f agentFile
	d := decode(file, data, &f)
	c := Config{
		File: file, Listen: f.Listen,
		Root: d.path("root", f.Root), Run: d.path("run", f.Run), AppsDir: d.path("apps_dir", f.AppsDir),
		PublicURL: strings.TrimRight(f.PublicURL, "/"),
		Nginx:     Nginx(f.Nginx),
	}
	if len(d.problems) > 0 {
		return c, d
	}
	d.checkListen(c.Listen)
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			d.problem("public_url", "must be an http or https URL without user and query, such as https://deploy.example.com")
		}
	}
	if c.Root == c.Run {
		d.problem("run", "must not be the same directory as root")
	}
	if f.Nginx.HTTP == f.Nginx.HTTPS {
		d.problem("nginx.https", "must not be the same port as nginx.http")
	}
	return c, d
}

func (d *decoder) checkListen(listen string) {
	_, port, err := net.SplitHostPort(listen)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		d.problem("listen", "must be host:port, such as 127.0.0.1:8420")
	}
}

// path makes a file name absolute; it belongs beside the file it stands in.
func (d *decoder) path(key, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	full, err := filepath.Abs(filepath.Join(filepath.Dir(d.file), name))
	if err != nil {
		d.problem(key, err.Error())
	}
	return full
}

// parseApp checks one app file.
func parseApp(file string, data []byte) (AppConfig, *decoder, Problems) {
	var f appFile
	d := decode(file, data, &f)
	if d.unread {
		return AppConfig{}, d, d.problems
	}
	a := AppConfig{File: file, App: App{
		Name: f.Name, Target: f.Target, Runtime: f.Runtime, Repo: d.repo(f.Source), Build: d.build(f.Build),
		Processes: d.processes(f.Processes), Domains: d.domains(f.Route.Domains),
		Policy: Policy(f.Deploy), Env: f.Env, Volumes: d.volumes(f.Volumes),
	}}
	if a.App.Policy.Surge == 0 && a.App.Policy.Unavailable == 0 && (d.given("deploy.surge") || d.given("deploy.unavailable")) {
		d.problem("deploy.surge", "surge and unavailable cannot both be 0: nothing could ever be replaced")
	}
	if len(a.App.Domains) > 0 && !d.given("processes.web") {
		d.problem("processes.web", "is missing: route.domains needs a process web with a port")
	}
	a.Triggers = d.triggers(f.Triggers)
	return a, d, d.sorted()
}

// scpLike is git's short form of an ssh URL, user@host:path.
var scpLike = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[^:\\]`) })

func (d *decoder) repo(f sourceFile) Repo {
	r := Repo{URL: f.Repo, Branch: f.Branch, Paths: f.Paths, TokenFile: d.path("source.token_file", f.TokenFile),
		KeyFile: d.path("source.key_file", f.KeyFile), KnownHosts: d.path("source.known_hosts", f.KnownHosts)}
	if d.given("source.repo") && f.Repo != "" {
		d.repoURL(f)
	} else if d.given("source.repo") {
		d.problem("source.repo", "has no value")
	}
	if !branchName(f.Branch) {
		d.problem("source.branch", fmt.Sprintf("%.80q is not a branch name", f.Branch))
	}
	for i, p := range f.Paths {
		if p == "" || strings.HasPrefix(p, "/") || slices.Contains(strings.Split(p, "/"), "..") {
			d.problem(fmt.Sprintf("source.paths[%d]", i), "must be a glob relative to the repository, such as web/**")
		} else if _, err := path.Match(p, ""); err != nil {
			d.problem(fmt.Sprintf("source.paths[%d]", i), "is not a glob: a bracket is not closed or a backslash is last")
		}
	}
	return r
}

// repoURL checks the URL and that the keys for access fit its scheme.
func (d *decoder) repoURL(f sourceFile) {
	const allowed = "must be https://host/path, ssh://user@host/path, user@host:path or file:///path"
	scheme := "ssh"
	if !scpLike().MatchString(f.Repo) {
		u, err := url.Parse(f.Repo)
		if err != nil {
			d.problem("source.repo", allowed)
			return
		}
		scheme = u.Scheme
		_, password := u.User.Password()
		switch {
		case password || scheme == "https" && u.User != nil:
			d.problem("source.repo", "must not hold credentials: put the token into a file and name it in source.token_file")
		case u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") == "",
			scheme != "https" && scheme != "ssh" && scheme != "file", (scheme == "file") != (u.Host == ""):
			d.problem("source.repo", allowed)
		}
	}
	for _, k := range []struct{ key, value, scheme string }{
		{"source.token_file", f.TokenFile, "https"}, {"source.key_file", f.KeyFile, "ssh"}, {"source.known_hosts", f.KnownHosts, "ssh"},
	} {
		if k.value != "" && k.scheme != scheme {
			d.problem(k.key, "is for "+k.scheme+" repositories, this one is "+scheme)
		}
		if k.value == "" && k.scheme == "ssh" && scheme == "ssh" {
			d.problem(k.key, "is missing: an ssh repository needs a key and the server's host keys")
		}
	}
}

// branchName follows git-check-ref-format(1).
func branchName(s string) bool {
	if s == "" || s == "@" || len(s) > 200 || strings.HasPrefix(s, "-") || strings.HasSuffix(s, ".") ||
		strings.Contains(s, "..") || strings.Contains(s, "@{") || strings.ContainsAny(s, "~^:?*[\\\x7f") ||
		strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' }) {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return true
}

func (d *decoder) build(f buildFile) Build {
	for _, k := range []struct{ key, path string }{{"build.context", f.Context}, {"build.dockerfile", f.Dockerfile}} {
		if k.path == "" || !filepath.IsLocal(k.path) || strings.ContainsRune(k.path, 0) {
			d.problem(k.key, "must be a path inside the repository")
		}
	}
	return Build{
		Context: path.Clean(f.Context), Dockerfile: path.Clean(f.Dockerfile), Target: f.Target, Args: f.Args, Secrets: f.Secrets,
		Network: f.Network, Memory: int64(f.Memory), CPUs: f.CPUs, Pids: int64(f.Pids), Disk: int64(f.Disk), Timeout: f.Timeout,
	}
}

func (d *decoder) processes(all map[string]processFile) []Process {
	list := make([]Process, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f, key := all[name], "processes."+name
		if name == "web" && !d.given(key+".port") {
			d.problem(key+".port", "is missing: web is the process that gets the requests")
		}
		if name != "web" && !d.given(key+".port") && d.given(key+".health") {
			d.problem(key+".health", "needs a port: health is asked for by HTTP")
		}
		if len(f.Command) > 0 && f.Command[0] == "" {
			d.problem(key+".command[0]", "has no value")
		}
		list = append(list, Process{Name: name, Command: f.Command, Port: f.Port, Replicas: f.Replicas,
			Health: Health(f.Health), Memory: int64(f.Resources.Memory), CPUs: f.Resources.CPUs, Pids: int64(f.Resources.Pids),
			Signal: f.Stop.Signal, StopGrace: f.Stop.Grace})
	}
	return list
}

// hostName is a name of RFC 1123, in lower case.
var hostName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
})

func (d *decoder) domains(list []string) []string {
	var all []string
	for i, name := range list {
		key := fmt.Sprintf("route.domains[%d]", i)
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		switch {
		case strings.HasPrefix(name, "*"):
			d.problem(key, "wildcard domains are not supported yet")
		case len(name) > 253 || !hostName().MatchString(name):
			d.problem(key, fmt.Sprintf("%.80q is not a host name: no scheme, port or path, and other scripts in their xn-- form", name))
		case slices.Contains(all, name):
			d.problem(key, "given twice")
		}
		all = append(all, name)
	}
	return all
}

func (d *decoder) volumes(list []volumeFile) []Volume {
	var all []Volume
	for i, f := range list {
		key := fmt.Sprintf("volumes[%d]", i)
		first := strings.Split(path.Clean(f.Path)+"/", "/")
		switch {
		case !d.given(key + ".path"): // noted as missing
		case !path.IsAbs(f.Path) || path.Clean(f.Path) == "/" || strings.ContainsAny(f.Path, "\x00\n"):
			d.problem(key+".path", "must be an absolute path in the container, and not / itself")
		case slices.Contains([]string{"proc", "sys", "dev"}, first[1]):
			d.problem(key+".path", "must not be below /proc, /sys or /dev")
		}
		for _, v := range all {
			if v.Name == f.Name {
				d.problem(key+".name", "given twice")
			}
			if v.Path == path.Clean(f.Path) {
				d.problem(key+".path", "given twice")
			}
		}
		all = append(all, Volume{Name: f.Name, Path: path.Clean(f.Path)})
	}
	return all
}

func (d *decoder) triggers(f triggersFile) Triggers {
	var t Triggers
	if w := f.Webhook; w != nil {
		t.Webhook = &Webhook{Sender: w.Sender, Secret: w.Secret, SecretFile: d.path("triggers.webhook.secret_file", w.SecretFile)}
		if (w.Secret == "") == (w.SecretFile == "") && !d.given("triggers.webhook.secret") {
			d.problem("triggers.webhook.secret", "is missing: name the secret, or give secret_file")
		} else if w.Secret != "" && w.SecretFile != "" {
			d.problem("triggers.webhook.secret_file", "cannot stand beside secret")
		}
	}
	for i, s := range f.Schedules {
		key := fmt.Sprintf("triggers.schedules[%d]", i)
		if err := checkCron(s.Cron); err != nil && d.given(key+".cron") {
			d.problem(key+".cron", err.Error())
		}
		if _, err := time.LoadLocation(s.Zone); err != nil || s.Zone == "" || s.Zone == "Local" {
			d.problem(key+".tz", fmt.Sprintf("%.80q is not a time zone; write one such as UTC or Asia/Seoul", s.Zone))
		}
		t.Schedules = append(t.Schedules, Schedule(s))
	}
	return t
}
