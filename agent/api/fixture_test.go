package api

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"naru/agent"
	"naru/agent/store"
	"naru/configs"
	"naru/pipeline"
)

// idle is a machine on which building waits until it is told to go on, or
// cancelled; the rest succeeds at once.
type idle struct{ build chan error }

func (i idle) Fetch(_ context.Context, _ pipeline.Repo, _ string, log io.Writer) (pipeline.Commit, error) {
	fmt.Fprintln(log, "fetching")
	return pipeline.Commit{Hash: commit}, nil
}
func (i idle) Export(context.Context, pipeline.Repo, string, string) error { return nil }
func (i idle) Changed(context.Context, pipeline.Repo, string, string) ([]string, error) {
	return nil, nil
}

func (i idle) Build(ctx context.Context, r pipeline.BuildRequest) (string, error) {
	fmt.Fprintln(r.Log, "building")
	select {
	case err := <-i.build:
		return "image", err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (i idle) Start(_ context.Context, s pipeline.ReplicaSpec) (pipeline.Replica, error) {
	return pipeline.Replica{Name: s.Name, App: s.App, Process: s.Process.Name, Release: s.Release, Running: true}, nil
}
func (i idle) Stop(context.Context, string, time.Duration) error        { return nil }
func (i idle) List(context.Context, string) ([]pipeline.Replica, error) { return nil, nil }
func (i idle) Report(context.Context, string) (pipeline.Report, error) {
	return pipeline.Report{Running: true}, nil
}
func (i idle) Announce(context.Context)                                      {}
func (i idle) Route(context.Context, pipeline.Route) error                   { return nil }
func (i idle) Retire(context.Context, []netip.AddrPort, time.Duration) error { return nil }
func (i idle) Prove(context.Context, pipeline.Route, string) (netip.AddrPort, error) {
	return netip.AddrPort{}, nil
}
func (i idle) Run(context.Context, pipeline.ReplicaSpec, []string, io.Writer) (int, error) {
	return 0, nil
}

const (
	secret = "webhook-secret"
	commit = "0123456789abcdef0123456789abcdef01234567"
)

// site is a whole agent with its API.
type site struct {
	idle
	store   *store.Store
	agent   *agent.Agent
	handler http.Handler
	token   string
}

func newSite(t testing.TB, trusted bool) *site {
	t.Helper()
	root := t.TempDir()
	s := &site{idle: idle{build: make(chan error)}}
	var err error
	if s.store, err = store.Open(filepath.Join(root, "naru.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "secret"), []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	app := configs.App{
		Name: "web", Target: "local", Repo: configs.Repo{URL: "https://user:pw@git.test/web.git", Branch: "main"}, Domains: []string{"web.test"},
		Policy:    configs.Policy{Strategy: "rolling", Surge: 1, Keep: 5},
		Processes: []configs.Process{{Name: "worker", Replicas: 1, Health: configs.Health{Interval: time.Millisecond, Healthy: 1, Deadline: time.Second}}},
	}
	closed := app
	closed.Name = "closed"
	if s.agent, err = agent.New(agent.Options{
		Store: s.store, Log: zap.NewNop(), Engine: &pipeline.Engine{Source: s, Builder: s, Target: s, Router: s, Scratch: filepath.Join(root, "scratch")},
		Config: configs.Config{Root: root, Apps: []configs.AppConfig{
			{App: app, Triggers: configs.Triggers{
				Webhook:   &configs.Webhook{Sender: "github", SecretFile: filepath.Join(root, "secret")},
				Schedules: []configs.Schedule{{Cron: "0 4 * * *", Zone: "UTC"}},
			}},
			{App: closed},
		}},
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.agent.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, s.store.Close()); err != nil {
			t.Error(err)
		}
	})
	if s.token, _, err = s.store.CreateToken(ctx, "ci"); err != nil {
		t.Fatal(err)
	}
	s.handler = New(Options{Agent: s.agent, Store: s.store, Log: zap.NewNop(), PublicURL: "https://naru.test", Version: "v1", Trusted: trusted})
	return s
}

// request is one request of a table of tests.
type request struct {
	method, path, body string
	header             map[string]string
	anonymous          bool
	from               string
}

func (s *site) do(t testing.TB, r request) *httptest.ResponseRecorder {
	t.Helper()
	var body io.Reader
	if r.body != "" {
		body = strings.NewReader(r.body)
	}
	req := httptest.NewRequestWithContext(t.Context(), r.method, r.path, body)
	if !r.anonymous {
		req.Header.Set("Authorization", "Bearer "+s.token)
	}
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	if r.from != "" {
		req.RemoteAddr = r.from
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, req)
	return w
}

// problem checks that an answer is a problem of the status.
func problem(t *testing.T, w *httptest.ResponseRecorder, status int) Problem {
	t.Helper()
	var p Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("%v: %d %q", err, w.Code, w.Body)
	}
	if w.Code != status || p.Status != status || p.Title != http.StatusText(status) || p.Detail == "" || p.Type != "about:blank" ||
		w.Header().Get("Content-Type") != "application/problem+json" || !strings.HasSuffix(p.Instance, w.Header().Get("X-Request-Id")) {
		t.Errorf("want %d, got %d %s %s", status, w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	return p
}

func (s *site) none(t *testing.T) {
	t.Helper()
	if all, err := s.store.Deployments(t.Context(), "", "", 10); err != nil || len(all) != 0 {
		t.Errorf("a refused request started %+v, %v", all, err)
	}
}

func decoded[T any](t *testing.T, w *httptest.ResponseRecorder, status int) (v T) {
	t.Helper()
	if w.Code != status {
		t.Fatalf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return v
}

func (s *site) ends(t *testing.T, id string, want pipeline.State) {
	t.Helper()
	d := decoded[Deployment](t, s.do(t, request{method: "GET", path: "/api/v1/deployments/" + id + "?wait=20"}), 200)
	if d.State != want {
		t.Fatalf("deployment ended %s (%s), want %s", d.State, d.Error, want)
	}
}

// push is a webhook of GitHub; fields replaces what the payload has by default.
func push(delivery string, fields map[string]any) request {
	payload := map[string]any{
		"ref": "refs/heads/main", "before": strings.Repeat("1", 40), "after": commit,
		"repository": map[string]any{"full_name": "acme/web"}, "sender": map[string]any{"login": "ada"},
	}
	for k, v := range fields {
		payload[k] = v
	}
	body, err := json.Marshal(payload)
	if err != nil {
		panic(err)
	}
	return signed(delivery, "push", string(body))
}

func signed(delivery, event, body string) request {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return request{method: "POST", path: "/webhooks/github/web", body: body, anonymous: true, header: map[string]string{
		"X-GitHub-Event": event, "X-GitHub-Delivery": delivery, "Content-Type": "application/json",
		"X-Hub-Signature-256": "sha256=" + hex.EncodeToString(mac.Sum(nil)),
	}}
}

// TestOpenAPI holds the document to the table of routes and back.
// TestServe starts a real server: a stream and a long poll end by themselves
// when it is stopped.
// FuzzWebhook sends any request: it must be answered, and may start something only
// when it is signed.
