// Package api is how the world talks to the agent: webhooks, the REST API under
// /api/v1 with server-sent events, and what monitoring asks for.
//
// The life of one request: it gets an id; a panic below becomes a problem; a
// route is found, or a problem says that there is none; calls of the API show a
// bearer token, unless they come over the unix socket, which only root can open;
// the handler checks everything in the request before it asks the agent for
// anything; the answer is written and one line is logged. Every error is an
// RFC 9457 problem. A request that was refused has started nothing.
//
// A webhook is answered with 202 after its delivery and deployment are durable,
// and never waits for the deployment itself.
package api

import (
	"net/http"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"

	"naru/agent"
	"naru/agent/store"
)

// Options are what the handler needs; Agent, Store and Log are required.
type Options struct {
	Agent     *agent.Agent
	Store     *store.Store
	Log       *zap.Logger
	PublicURL string // how clients reach the API, without a final slash; empty: relative URLs
	Version   string // of naru, for the answer's header and the metrics
	Trusted   bool   // whoever connects is root (unix socket): no token is needed
}

// server holds what the handlers share.
type server struct {
	agent     *agent.Agent
	store     *store.Store
	log       *zap.Logger
	publicURL string
	version   string
	trusted   bool
	started   time.Time
	failures  *limiter
	large     chan struct{} // one token per large webhook body in memory
	streams   chan struct{} // one token per open stream
	webhooks  counters
	requests  counters
}

// Limits that keep one sender from taking the machine.
const (
	maxWebhook   = 25 << 20 // bytes of a webhook's body: what GitHub sends at most
	maxBody      = 64 << 10 // bytes of a body of the API
	smallWebhook = 1 << 20  // bytes up to which bodies are read without waiting
	maxLarge     = 4
	maxStreams   = 256
	bodyTime     = 30 * time.Second
	failureBurst = 10 // refused credentials per address at once,
	failureEvery = 6 * time.Second
)

// New returns the handler of all routes.
func New(o Options) http.Handler {
	s := &server{
		agent: o.Agent, store: o.Store, log: o.Log, publicURL: o.PublicURL, version: o.Version, trusted: o.Trusted, started: time.Now(),
		failures: newLimiter(failureBurst, failureEvery),
		large:    make(chan struct{}, maxLarge), streams: make(chan struct{}, maxStreams),
	}
	return s.engine()
}

func (s *server) engine() *gin.Engine {
	gin.SetMode(gin.ReleaseMode)
	e := gin.New()
	e.HandleMethodNotAllowed = true
	e.RedirectTrailingSlash = false
	// A reverse proxy on this machine may say for whom it asks, nobody else.
	if err := e.SetTrustedProxies([]string{"127.0.0.1", "::1"}); err != nil {
		panic("api: " + err.Error()) // a bug: the list is constant
	}
	e.Use(s.identify, s.logged, s.recovered)
	e.NoRoute(func(c *gin.Context) { s.problem(c, http.StatusNotFound, "there is nothing at "+c.Request.URL.Path) })
	e.NoMethod(func(c *gin.Context) {
		s.problem(c, http.StatusMethodNotAllowed, c.Request.Method+" is not allowed here; allowed: "+c.Writer.Header().Get("Allow"))
	})
	for _, r := range s.routes() {
		handlers := []gin.HandlerFunc{r.handler}
		if r.token {
			handlers = []gin.HandlerFunc{s.authorized, r.handler}
		}
		e.Handle(r.method, r.path, handlers...)
	}
	return e
}

// route is one line of the table of routes.
type route struct {
	method, path string
	token        bool // needs a bearer token where the listener is not trusted
	handler      gin.HandlerFunc
}

func (s *server) routes() []route {
	const v1 = "/api/v1"
	return []route{
		{"POST", "/webhooks/:sender/:app", false, s.webhook},
		{"GET", v1 + "/apps", true, s.listApps},
		{"GET", v1 + "/apps/:app", true, s.getApp},
		{"GET", v1 + "/apps/:app/deployments", true, s.listDeployments},
		{"POST", v1 + "/apps/:app/deployments", true, s.deploy},
		{"POST", v1 + "/apps/:app/rollback", true, s.rollback},
		{"GET", v1 + "/apps/:app/releases", true, s.listReleases},
		{"GET", v1 + "/deployments/:id", true, s.getDeployment},
		{"GET", v1 + "/deployments/:id/events", true, s.events},
		{"GET", v1 + "/deployments/:id/logs", true, s.logs},
		{"POST", v1 + "/deployments/:id/cancel", true, s.cancel},
		{"GET", v1 + "/openapi.json", false, s.openapi},
		{"GET", "/healthz", false, s.healthz},
		{"GET", "/readyz", false, s.readyz},
		{"GET", "/metrics", false, s.metrics},
	}
}
