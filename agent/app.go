package agent

import (
	"context"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"

	"naru/agent/store"
	"naru/configs"
	"naru/pipeline"
)

// App is a configured app.
type App struct {
	pipeline.App
	Triggers configs.Triggers
	File     string // the config file it comes from
}

// App returns a configured app.
func (a *Agent) App(name string) (App, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	app, ok := a.apps[name]
	return app, ok
}

// Apps returns all configured apps, sorted by name.
func (a *Agent) Apps() []App {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.apps), func(x, y App) int { return strings.Compare(x.Name, y.Name) })
}

// Unconfigured returns the live releases of apps that are not configured (any more),
// by name.
func (a *Agent) Unconfigured(ctx context.Context) ([]store.Release, error) {
	live, err := a.store.LiveReleases(ctx)
	if err != nil {
		return nil, err
	}
	live = slices.DeleteFunc(live, func(r store.Release) bool { _, ok := a.App(r.App); return ok })
	slices.SortFunc(live, func(x, y store.Release) int { return strings.Compare(x.App, y.App) })
	return live, nil
}

// WebhookSecret returns the secret that webhooks of an app are signed with.
func (a *Agent) WebhookSecret(app App) (string, error) {
	return app.Triggers.Webhook.ReadSecret(a.root)
}

// newApp converts a config to the pipeline's words. The conversions hold the
// structs of both packages to the same fields: the compiler checks it.
func newApp(c configs.AppConfig) App {
	app := pipeline.App{
		Name: c.App.Name, Target: c.App.Target, Runtime: c.App.Runtime,
		Repo: pipeline.Repo(c.App.Repo), Build: pipeline.Build(c.App.Build),
		Domains: c.App.Domains, Policy: pipeline.Policy(c.App.Policy), Env: c.App.Env,
	}
	for _, p := range c.App.Processes {
		app.Processes = append(app.Processes, pipeline.Process{
			Name: p.Name, Command: p.Command, Port: p.Port, Replicas: p.Replicas, Health: pipeline.Health(p.Health),
			Memory: p.Memory, CPUs: p.CPUs, Pids: p.Pids, Signal: p.Signal, StopGrace: p.StopGrace,
		})
	}
	for _, v := range c.App.Volumes {
		app.Volumes = append(app.Volumes, pipeline.Volume(v))
	}
	return App{App: app, Triggers: c.Triggers, File: c.File}
}

// secrets lists what must not show up in the logs of an app. What cannot be read
// cannot leak either.
func (a *Agent) secrets(app App) []string {
	var all []string
	if app.Triggers.Webhook != nil {
		if s, err := a.WebhookSecret(app); err == nil {
			all = append(all, s)
		}
	}
	for _, file := range []string{app.Repo.TokenFile, app.Repo.KeyFile} {
		if file == "" {
			continue
		}
		if data, err := os.ReadFile(file); err == nil {
			all = append(all, string(data))
		}
	}
	if u, err := url.Parse(app.Repo.URL); err == nil && u.User != nil {
		if password, ok := u.User.Password(); ok {
			all = append(all, password)
		}
	}
	return all
}
