package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"naru/agent/api"
)

// recorder is an agent that says what it was asked, and answers as told.
type recorder struct {
	status int
	answer string
	asked  string
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.asked = fmt.Sprintf("%s %s token=%q key=%q", q.Method, q.URL.RequestURI(), q.Header.Get("Authorization"), q.Header.Get("Idempotency-Key"))
	w.WriteHeader(r.status)
	fmt.Fprint(w, r.answer)
}

func serveRecorder(t *testing.T, network, address string) (*recorder, net.Listener) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{status: 200, answer: "{}"}
	srv := &http.Server{Handler: r}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	})
	return r, l
}

func TestClient(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	r, _ := serveRecorder(t, "unix", socket)
	c := NewLocalClient(socket)
	ctx := t.Context()
	for _, ask := range []struct {
		do   func() error
		want string
	}{
		{func() error { _, err := c.Apps(ctx); return err }, `GET /api/v1/apps token="" key=""`},
		{func() error { _, err := c.Status(ctx, "web"); return err }, `GET /api/v1/apps/web token="" key=""`},
		{func() error { _, err := c.Status(ctx, "../x?"); return err }, `GET /api/v1/apps/..%2Fx%3F token="" key=""`},
		{func() error { _, err := c.Deploy(ctx, "web", api.DeployRequest{Force: true}, "k"); return err }, `POST /api/v1/apps/web/deployments token="" key="k"`},
		{func() error { _, err := c.Rollback(ctx, "web", api.RollbackRequest{}, ""); return err }, `POST /api/v1/apps/web/rollback token="" key=""`},
		{func() error { _, err := c.Releases(ctx, "web"); return err }, `GET /api/v1/apps/web/releases token="" key=""`},
		{func() error { _, err := c.Deployments(ctx, "web", 5); return err }, `GET /api/v1/apps/web/deployments?limit=5 token="" key=""`},
		{func() error { _, err := c.Deployment(ctx, "id", time.Minute); return err }, `GET /api/v1/deployments/id?wait=1m0s token="" key=""`},
		{func() error { _, err := c.Cancel(ctx, "id"); return err }, `POST /api/v1/deployments/id/cancel token="" key=""`},
		{func() error { return c.Logs(ctx, "id", true, &strings.Builder{}) }, `GET /api/v1/deployments/id/logs?follow=1 token="" key=""`},
	} {
		if err := ask.do(); err != nil || r.asked != ask.want {
			t.Errorf("asked %s, %v, want %s", r.asked, err, ask.want)
		}
	}
}

func TestClientErrors(t *testing.T) {
	r, l := serveRecorder(t, "tcp", "127.0.0.1:0")
	c := NewClient("http://"+l.Addr().String()+"/", "naru_x_y")
	for _, answer := range []struct {
		status int
		body   string
		want   string
		kind   error
	}{
		{404, `{"type":"about:blank","title":"Not Found","status":404,"detail":"there is no app \"x\""}`, `there is no app "x"`, nil},
		{401, `{"type":"about:blank","title":"Unauthorized","status":401,"detail":"the token is not valid"}`, "the token is not valid", ErrNotAuthorized},
		{502, "<html>", "not of a naru agent", nil},
		{302, "", "not of a naru agent", nil},
		{200, "<html>", "read the agent's answer", nil},
	} {
		r.status, r.answer = answer.status, answer.body
		_, err := c.Apps(t.Context())
		if err == nil || !strings.Contains(err.Error(), answer.want) || answer.kind != nil && !errors.Is(err, answer.kind) || errors.Is(err, ErrNoAgent) {
			t.Errorf("%d %s: error %v", answer.status, answer.body, err)
		}
		if p, ok := errors.AsType[*api.Problem](err); answer.status != 200 && (!ok || p.Status != answer.status) {
			t.Errorf("%d: problem %+v", answer.status, p)
		}
		if !strings.Contains(r.asked, `token="Bearer naru_x_y"`) {
			t.Errorf("asked %s", r.asked)
		}
	}
	gone := NewLocalClient(filepath.Join(t.TempDir(), "none"))
	if _, err := gone.Apps(t.Context()); !errors.Is(err, ErrNoAgent) {
		t.Errorf("no agent: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := gone.Apps(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, ErrNoAgent) {
		t.Errorf("cancelled: %v", err)
	}
}
