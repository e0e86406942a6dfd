package api

import (
	_ "embed"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/gin-gonic/gin"

	"naru/pipeline"
)

// openapiJSON describes every route (OpenAPI 3.1). A test holds it to the table
// of routes.
//
//go:embed openapi.json
var openapiJSON []byte

func (s *server) openapi(c *gin.Context) { c.Data(http.StatusOK, "application/json", openapiJSON) }

// healthz says that the process answers.
func (s *server) healthz(c *gin.Context) { c.String(http.StatusOK, "ok\n") }

// readyz says that deployments are taken and run.
func (s *server) readyz(c *gin.Context) {
	if err := s.store.Ping(c.Request.Context()); err != nil {
		s.problem(c, http.StatusServiceUnavailable, "the store does not answer")
		return
	}
	if !s.agent.Ready() {
		s.problem(c, http.StatusServiceUnavailable, "the agent is starting or stopping")
		return
	}
	c.String(http.StatusOK, "ready\n")
}

// metrics writes the Prometheus text format, version 0.0.4. It needs no token,
// so it names no app.
func (s *server) metrics(c *gin.Context) {
	counts, err := s.store.Counts(c.Request.Context())
	if err != nil {
		s.internal(c, err)
		return
	}
	live, err := s.store.LiveReleases(c.Request.Context())
	if err != nil {
		s.internal(c, err)
		return
	}
	var b strings.Builder
	head := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	head("naru_build_info", "gauge", "The version of naru.")
	fmt.Fprintf(&b, "naru_build_info{version=%q} 1\n", s.version)
	head("naru_start_time_seconds", "gauge", "When the agent started, in seconds since 1970.")
	fmt.Fprintf(&b, "naru_start_time_seconds %d\n", s.started.Unix())
	head("naru_apps", "gauge", "Configured apps.")
	fmt.Fprintf(&b, "naru_apps %d\n", len(s.agent.Apps()))
	head("naru_apps_live", "gauge", "Apps with a live release.")
	fmt.Fprintf(&b, "naru_apps_live %d\n", len(live))
	head("naru_deployments", "gauge", "Deployments ever stored, by the state they are in.")
	for _, state := range []pipeline.State{
		pipeline.Queued, pipeline.Running, pipeline.Live, pipeline.Failed, pipeline.RolledBack,
		pipeline.Broken, pipeline.Cancelled, pipeline.Superseded, pipeline.Skipped,
	} {
		fmt.Fprintf(&b, "naru_deployments{state=%q} %d\n", state, counts[state])
	}
	head("naru_webhooks_total", "counter", "Webhook requests of known apps and senders, by result.")
	s.webhooks.write(&b, "naru_webhooks_total", "result")
	head("naru_http_requests_total", "counter", "HTTP requests, by class of status.")
	s.requests.write(&b, "naru_http_requests_total", "status")
	head("naru_streams", "gauge", "Open streams of logs and events.")
	fmt.Fprintf(&b, "naru_streams %d\n", len(s.streams))
	c.Data(http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", []byte(b.String()))
}

// counters counts by a label whose values are few and fixed by the code.
type counters struct {
	mu sync.Mutex
	n  map[string]int64
}

func (c *counters) add(label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int64{}
	}
	c.n[label]++
}

func (c *counters) write(b *strings.Builder, name, label string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, value := range slices.Sorted(maps.Keys(c.n)) {
		fmt.Fprintf(b, "%s{%s=%q} %d\n", name, label, value, c.n[value])
	}
}
