package configs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const minimal = `
name: web
source: {repo: https://git.example.com/acme/web.git}
processes: {web: {port: 8080}}
`

// tree writes files below a fresh directory and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func minimalApp() App {
	return App{
		Name: "web", Target: "local",
		Repo:  Repo{URL: "https://git.example.com/acme/web.git", Branch: "main"},
		Build: Build{Context: ".", Dockerfile: "Dockerfile", Network: "default", Memory: 4 << 30, Pids: 4096, Disk: 20 << 30, Timeout: 30 * time.Minute},
		Processes: []Process{{
			Name: "web", Port: 8080, Replicas: 1, Memory: 512 << 20, CPUs: 1, Pids: 256, Signal: "TERM", StopGrace: 10 * time.Second,
			Health: Health{Path: "/", Interval: time.Second, Timeout: 2 * time.Second, Healthy: 2, Deadline: time.Minute},
		}},
		Policy: Policy{Strategy: "rolling", Surge: 1, Drain: 30 * time.Second, Keep: 5},
	}
}

func TestDefaults(t *testing.T) {
	dir := tree(t, map[string]string{"naru.yaml": "", "apps.d/web.yaml": minimal, "apps.d/.web.yaml.tmp-1": "{"})
	got, err := Load(filepath.Join(dir, "naru.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		File: filepath.Join(dir, "naru.yaml"), Listen: "127.0.0.1:8420", Root: "/var/lib/naru", Run: "/run/naru",
		AppsDir: filepath.Join(dir, "apps.d"), Nginx: Nginx{Mode: "managed", HTTP: 80, HTTPS: 443, Include: "/etc/nginx/conf.d/naru.conf"},
		Apps: []AppConfig{{File: filepath.Join(dir, "apps.d/web.yaml"), App: minimalApp()}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSamples(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, Samples()); err != nil {
		t.Fatal(err)
	}
	got, err := Load(filepath.Join(dir, "naru.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	app := minimalApp()
	app.Repo.Paths, app.Repo.TokenFile = []string{"web/**"}, "/etc/naru/secrets/web-token"
	app.Processes[0].Replicas, app.Processes[0].Health.Path = 2, "/healthz"
	worker := minimalApp().Processes[0]
	worker.Name, worker.Port, worker.Command = "worker", 0, []string{"./worker"}
	app.Processes = append(app.Processes, worker)
	app.Build.Args, app.Policy.ReleaseCommand = map[string]string{}, []string{}
	app.Domains, app.Env = []string{"web.example.com"}, map[string]string{"LOG": "info"}
	app.Volumes = []Volume{{"data", "/data"}}
	want := []AppConfig{{File: filepath.Join(dir, "apps.d/web.yaml"), App: app, Triggers: Triggers{
		Webhook: &Webhook{Sender: "github", Secret: "web-hook"}, Schedules: []Schedule{{"0 4 * * *", "Asia/Seoul"}}}}}
	if diff := cmp.Diff(want, got.Apps); diff != "" {
		t.Error(diff)
	}
	if got.PublicURL != "https://deploy.example.com" {
		t.Error(got.PublicURL)
	}
}

func TestRuntime(t *testing.T) {
	for _, want := range []string{"", "runsc", "/usr/local/bin/runsc"} {
		dir := tree(t, map[string]string{"naru.yaml": "", "apps.d/web.yaml": minimal + "\nruntime: '" + want + "'\n"})
		got, err := Load(filepath.Join(dir, "naru.yaml"))
		if err != nil || len(got.Apps) != 1 || got.Apps[0].App.Runtime != want {
			t.Errorf("runtime %q: %+v, %v", want, got.Apps, err)
		}
	}
}

func TestRelativePathsAreBesideTheirFile(t *testing.T) {
	dir := tree(t, map[string]string{
		"naru.yaml": "root: data\nrun: run\napps_dir: conf/apps\n",
		"conf/apps/a.yaml": `{name: a, source: {repo: "git@h:a.git", key_file: ../key, known_hosts: hosts}, processes: {web: {port: 1}},
 triggers: {webhook: {sender: github, secret_file: ./s}}}`,
	})
	c, err := Load(filepath.Join(dir, "naru.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{c.Root, c.Run, c.Apps[0].App.Repo.KeyFile, c.Apps[0].App.Repo.KnownHosts, c.Apps[0].Triggers.Webhook.SecretFile}
	want := []string{dir + "/data", dir + "/run", dir + "/conf/key", dir + "/conf/apps/hosts", dir + "/conf/apps/s"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestAppProblems changes the minimal app and compares what is said, line and key
// included.
func TestAppProblems(t *testing.T) {
	const source = "source: {repo: https://git.example.com/acme/web.git}"
	for _, c := range []struct{ name, old, new, want string }{
		{"a typo", "port: 8080", "prot: 8080", `:4: processes.web.prot: unknown key, did you mean "port"?|:4: processes.web.port: is missing: web is the process that gets the requests`},
		{"a typo at the top", "processes:", "proceses:", `:1: processes: is missing|:4: proceses: unknown key, did you mean "processes"?`},
		{"a key that is like none", "name: web", "name: web\nxyzzy: 1", ":3: xyzzy: unknown key; allowed: name, target, source, runtime, image, build, processes, route, deploy, triggers, env, secrets, volumes"},
		{"a runtime by a relative path", "name: web", "name: web\nruntime: ./runsc", `:3: runtime: "./runsc" is not allowed: a name such as runsc, or an absolute path`},
		{"an unknown resource", "port: 8080", "port: 8080, resources: {gpus: 1}", `:4: processes.web.resources.gpus: unknown key, did you mean "cpus"?`},
		{"a key given twice", "name: web", "name: web\nname: api", ":3: name: given twice, first on line 2"},
		{"no name", "name: web", "", ":1: name: is missing"},
		{"a bad name", "name: web", "name: Web_1", `:2: name: "Web_1" is not allowed: at most 40 lower-case letters, digits and hyphens, a letter first`},
		{"no value", "name: web", "name:", ":2: name: has no value"},
		{"no source", source, "", ":1: source.repo: is missing"},
		{"credentials in the URL", source, "source: {repo: 'https://x:y@h/a'}", ":3: source.repo: must not hold credentials: put the token into a file and name it in source.token_file"},
		{"plain http", source, "source: {repo: 'http://h/a'}", ":3: source.repo: must be https://host/path, ssh://user@host/path, user@host:path or file:///path"},
		{"a bare path", source, "source: {repo: /srv/a}", ":3: source.repo: must be https://host/path, ssh://user@host/path, user@host:path or file:///path"},
		{"file with a host", source, "source: {repo: file://srv/a}", ":3: source.repo: must be https://host/path, ssh://user@host/path, user@host:path or file:///path"},
		{"ssh without keys", source, "source: {repo: 'git@h:a'}", ":3: source.key_file: is missing: an ssh repository needs a key and the server's host keys|:3: source.known_hosts: is missing: an ssh repository needs a key and the server's host keys"},
		{"a token for a file URL", source, "source: {repo: 'file:///a', token_file: t}", ":3: source.token_file: is for https repositories, this one is file"},
		{"a bad branch", "web.git}", "web.git, branch: 'a..b'}", `:3: source.branch: "a..b" is not a branch name`},
		{"an escaping path filter", "web.git}", "web.git, paths: [../x]}", ":3: source.paths[0]: must be a glob relative to the repository, such as web/**"},
		{"a number of words", "port: 8080", "port: many", `:4: processes.web.port: must be a whole number, not "many"`},
		{"a port too large", "port: 8080", "port: 80800", ":4: processes.web.port: must be at most 65535"},
		{"a duration without unit", "port: 8080", "port: 8080, stop: {grace: 30}", `:4: processes.web.stop.grace: must be a duration such as 10s, 500ms or 1m30s, not "30"`},
		{"a negative duration", "port: 8080", "port: 8080, stop: {grace: -1s}", ":4: processes.web.stop.grace: must be at least 0s"},
		{"too little memory", "port: 8080", "port: 8080, resources: {memory: 1m}", ":4: processes.web.resources.memory: must be at least 4m"},
		{"a size of words", "port: 8080", "port: 8080, resources: {memory: 1 gig}", `:4: processes.web.resources.memory: must be a size such as 512m or 1g, not "1 gig"`},
		{"a command as text", "port: 8080", "port: 8080, command: ./web -v", ":4: processes.web.command: must be a list, such as [a, b]"},
		{"a list for text", "name: web", "name: [web]", ":2: name: must be text"},
		{"text for a mapping", "{web: {port: 8080}}", "web", ":4: processes: must be a mapping of keys to values"},
		{"no process", "{web: {port: 8080}}", "{}", ":4: processes: is empty"},
		{"a bad process name", "{web: {port: 8080}}", "{Web: {port: 8080}}", `:4: processes.Web: name "Web" is not allowed: at most 40 lower-case letters, digits and hyphens, a letter first`},
		{"health without a port", "8080}}", "8080}, worker: {health: {path: /}}}", ":4: processes.worker.health: needs a port: health is asked for by HTTP"},
		{"a health path that is none", "8080}", "8080, health: {path: 'x y'}}", `:4: processes.web.health.path: "x y" is not allowed: a URL path, / first, without spaces`},
		{"domains without web", "{web: {port: 8080}}", "{w: {}}\nroute: {domains: [a.b]}", ":4: processes.web: is missing: route.domains needs a process web with a port"},
		{"a domain with a scheme", "name: web", "name: web\nroute: {domains: ['http://a']}", `:3: route.domains[0]: "http://a" is not a host name: no scheme, port or path, and other scripts in their xn-- form`},
		{"a domain that breaks out", "name: web", "name: web\nroute: {domains: ['a; }']}", `:3: route.domains[0]: "a; }" is not a host name: no scheme, port or path, and other scripts in their xn-- form`},
		{"a domain twice", "name: web", "name: web\nroute:\n  domains:\n  - a.b\n  - A.B", ":6: route.domains[1]: given twice"},
		{"nothing could be replaced", "name: web", "name: web\ndeploy: {surge: 0}", ":3: deploy.surge: surge and unavailable cannot both be 0: nothing could ever be replaced"},
		{"a webhook without a secret", "name: web", "name: web\ntriggers: {webhook: {sender: github}}", ":3: triggers.webhook.secret: is missing: name the secret, or give secret_file"},
		{"a webhook with two secrets", "name: web", "name: web\ntriggers: {webhook: {sender: github, secret: a, secret_file: b}}", ":3: triggers.webhook.secret_file: cannot stand beside secret"},
		{"a secret name that is a path", "name: web", "name: web\ntriggers: {webhook: {sender: github, secret: ../a}}", `:3: triggers.webhook.secret: "../a" is not allowed: the name of a secret: letters, digits, dot, hyphen, underscore`},
		{"an unknown sender", "name: web", "name: web\ntriggers: {webhook: {sender: githb, secret: a}}", `:3: triggers.webhook.sender: unknown value "githb", did you mean "github"?`},
		{"a bad schedule", "name: web", "name: web\ntriggers: {schedules: [{cron: '0 0 31 2 *', tz: Mars}]}", `:3: triggers.schedules[0].cron: never comes: none of the months has such a day|:3: triggers.schedules[0].tz: "Mars" is not a time zone; write one such as UTC or Asia/Seoul`},
		{"a bad environment name", "name: web", "name: web\nenv: {A-B: 1}", `:3: env.A-B: name "A-B" is not allowed: letters, digits and underscores, no digit first`},
		{"a volume on the root", "name: web", "name: web\nvolumes: [{name: a, path: /}]", ":3: volumes[0].path: must be an absolute path in the container, and not / itself"},
		{"a volume in /proc", "name: web", "name: web\nvolumes: [{name: a, path: /x/../proc/a}]", ":3: volumes[0].path: must not be below /proc, /sys or /dev"},
		{"two volumes of a name", "name: web", "name: web\nvolumes: [{name: a, path: /a}, {name: a, path: /b}]", ":3: volumes[1].name: given twice"},
		{"a context outside", "name: web", "name: web\nbuild: {context: ../x}", ":3: build.context: must be a path inside the repository"},
		{"an alias", "name: web", "name: web\nenv: {A: &x b, C: *x}", ":3: env.C: aliases (*name) are not supported, write the value out"},
		{"a tag", "name: web", "name: !!binary d2Vi", ":2: name: must be text"},
		{"a bad signal", "port: 8080", "port: 8080, stop: {signal: SIGTERM}", `:4: processes.web.stop.signal: unknown value "SIGTERM"; allowed: TERM, INT, QUIT, HUP, USR1, USR2, WINCH, KILL`},

		{"later: target", "name: web", "name: web\ntarget: kubernetes", `:3: target: "kubernetes" is not supported yet; allowed: local`},
		{"later: strategy", "name: web", "name: web\ndeploy: {strategy: canary}", `:3: deploy.strategy: "canary" is not supported yet; allowed: rolling`},
		{"later: tls", "name: web", "name: web\nroute: {tls: auto}", `:3: route.tls: "auto" is not supported yet; allowed: off`},
		{"later: sender", "name: web", "name: web\ntriggers: {webhook: {sender: gitlab, secret: a}}", `:3: triggers.webhook.sender: "gitlab" is not supported yet; allowed: github`},
		{"later: poll", "name: web", "name: web\ntriggers: {poll: 5m}", ":3: triggers.poll: not supported yet"},
		{"later: secrets", "name: web", "name: web\nsecrets: [A]", ":3: secrets: not supported yet"},
		{"later: image", "name: web", "name: web\nimage: r/n", ":3: image: not supported yet"},
		{"later: wildcards", "name: web", "name: web\nroute: {domains: ['*.a.b']}", ":3: route.domains[0]: wildcard domains are not supported yet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(minimal, c.old) {
				t.Fatal("the row changes nothing")
			}
			_, err := ParseApp("web.yaml", []byte(strings.Replace(minimal, c.old, c.new, 1)))
			want := "web.yaml" + strings.ReplaceAll(c.want, "|", "\nweb.yaml")
			if err == nil || err.Error() != want {
				t.Errorf("got\n%v\nwant\n%s", err, want)
			}
		})
	}
}

func TestAllowed(t *testing.T) {
	for _, c := range []struct{ name, more string }{
		{"empty forms of what is not built", "image: ''\nsecrets: []\nbuild: {secrets: [], target: ''}\ntriggers: {poll: ''}"},
		{"empty containers", "env:\nvolumes:\nbuild:\nroute: {}\ntriggers: {schedules: []}"},
		{"off without quotes", "route: {tls: off}"},
		{"numbers and booleans as environment", "env: {A: 1, B: true, C: 1.5, D: 2001-01-01, E: ''}"},
		{"no surge but some missing", "deploy: {surge: 0, unavailable: 1}"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := ParseApp("web.yaml", []byte(minimal+c.more)); err != nil {
				t.Error(err)
			}
		})
	}
	a, err := ParseApp("web.yaml", []byte(minimal+"env: {A: 010, B: yes}\n"))
	if err != nil || a.App.Env["A"] != "010" || a.App.Env["B"] != "yes" {
		t.Errorf("values are not taken as written: %v, %v", a.App.Env, err)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]size{"0": 0, "4096": 4096, "1b": 1, "1k": 1 << 10, "512m": 512 << 20, "1G": 1 << 30, "2gb": 2 << 30, "1GiB": 1 << 30, "1t": 1 << 40} {
		if got, err := parseSize(text); got != want || err != nil {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "m", "1x", "-1", "1.5g", "1mm", "1ib", "99999999999t", "1 m"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q gives %d", text, got)
		}
	}
}

func TestAgentProblems(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"a typo", "lisen: :80", `:1: lisen: unknown key, did you mean "listen"?`},
		{"an address without port", "listen: localhost", ":1: listen: must be host:port, such as 127.0.0.1:8420"},
		{"a bad URL", "public_url: deploy.example.com", ":1: public_url: must be an http or https URL without user and query, such as https://deploy.example.com"},
		{"a bad mode", "nginx: {mode: off}", `:1: nginx.mode: unknown value "off"; allowed: managed, system`},
		{"ports the same", "nginx: {http: 443}", ":1: nginx.https: must not be the same port as nginx.http"},
		{"directories the same", "root: x\nrun: x", ":2: run: must not be the same directory as root"},
		{"a directory that is not there", "\napps_dir: nowhere", ":2: apps_dir: no such file or directory"},
		{"no YAML", "a: [", ":2: not valid YAML: "},
		{"two documents", "listen: :1\n---\nlisten: :2", ": not valid YAML: several documents in one file"},
		{"a list", "- a", ":1: must be a mapping of keys to values"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(tree(t, map[string]string{"naru.yaml": c.file}), "naru.yaml")
			problems := problemsOf(path)
			if len(problems) != 1 {
				t.Fatalf("got %v", problems)
			}
			if got := problems[0].String(); !strings.HasPrefix(got, path+c.want) {
				t.Errorf("got %s, want %s", got, path+c.want)
			}
		})
	}
	if problems := problemsOf(filepath.Join(t.TempDir(), "none.yaml")); len(problems) != 1 || problems[0].Message != fs.ErrNotExist.Error() && problems[0].Message != "no such file or directory" {
		t.Errorf("got %v", problems)
	}
}

func TestWhatTwoAppsCannotShare(t *testing.T) {
	app := func(name, domain string) string {
		return strings.Replace(minimal, "name: web", "name: "+name+"\nroute: {domains: ["+domain+"]}", 1)
	}
	dir := tree(t, map[string]string{
		"naru.yaml": "", "apps.d/a.yaml": app("a", "a.test"), "apps.d/b.yaml": app("a", "b.test"), "apps.d/c.yaml": app("c", "A.test."),
		"apps.d/d.yaml": app("d", "b.test"), "apps.d/e.yml": "", "apps.d/f.yaml": "name: f\n",
	})
	c, err := Load(filepath.Join(dir, "naru.yaml"))
	problems, ok := errors.AsType[Problems](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	want := strings.Join([]string{
		"e.yml: not read: the name of an app file must end in .yaml",
		`b.yaml:2: name: app "a" is already in ` + dir + "/apps.d/a.yaml:2",
		`c.yaml:3: route.domains[0]: domain "a.test" already belongs to ` + dir + "/apps.d/a.yaml:3",
		"f.yaml:1: source.repo: is missing", "f.yaml:1: processes: is missing",
	}, "\n")
	if diff := cmp.Diff(want, strings.ReplaceAll(problems.Error(), dir+"/apps.d/e.yml", "e.yml")); strings.ReplaceAll(err.Error(), "\n"+dir+"/apps.d/", "\n") != dir+"/apps.d/"+want {
		t.Error(diff)
	}
	var names []string
	for _, a := range c.Apps {
		names = append(names, a.App.Name)
	}
	if diff := cmp.Diff([]string{"a", "d"}, names); diff != "" {
		t.Errorf("the apps that are well: %s", diff)
	}
}

func TestReadSecret(t *testing.T) {
	root := tree(t, map[string]string{"secrets/hook": "s3cret\n", "secrets/blank": "\n", "other": "o\r\n"})
	for _, c := range []struct {
		hook Webhook
		want string
	}{
		{Webhook{Secret: "hook"}, "s3cret"}, {Webhook{SecretFile: root + "/other"}, "o"},
		{Webhook{Secret: "blank"}, ""}, {Webhook{Secret: "none"}, ""}, {Webhook{SecretFile: root}, ""},
	} {
		if got, err := c.hook.ReadSecret(root); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: %q, %v", c.hook, got, err)
		}
	}
}

// FuzzConfig holds: no panic; problems name the file; what passes is complete.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(minimal))
	for _, name := range []string{"naru.yaml", "apps.d/web.yaml"} {
		data, err := fs.ReadFile(Samples(), name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		parseAgent("naru.yaml", data)
		a, err := ParseApp("x.yaml", data)
		if err != nil {
			for _, p := range err.(Problems) {
				if p.File != "x.yaml" || p.Message == "" {
					t.Errorf("%+v", p)
				}
			}
			return
		}
		if a.App.Name == "" || a.App.Repo.URL == "" || len(a.App.Processes) == 0 || a.App.Policy.Keep == 0 {
			t.Errorf("%+v", a)
		}
	})
}

// problemsOf is what Load finds wrong.
func problemsOf(path string) Problems {
	_, err := Load(path)
	problems, _ := errors.AsType[Problems](err)
	return problems
}
