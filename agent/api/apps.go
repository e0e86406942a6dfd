package api

import (
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"naru/agent"
	"naru/agent/store"
	"naru/pipeline"
)

// App is a configured app and how it stands.
type App struct {
	Name       string               `json:"name"`
	Target     string               `json:"target"`
	Repo       string               `json:"repo"` // URL, without a password
	Branch     string               `json:"branch"`
	Domains    []string             `json:"domains"`
	Live       *Release             `json:"live,omitempty"`       // nil before the first
	Deployment *pipeline.Deployment `json:"deployment,omitempty"` // the newest
	NextRuns   []time.Time          `json:"next_runs,omitempty"`  // of its schedules
	Configured bool                 `json:"configured"`           // false: it serves, but has no valid app file
}

// Release is a release and how it stands.
type Release struct {
	App        string    `json:"app"`
	Number     int       `json:"number"`
	Deployment string    `json:"deployment"` // the one that made it
	Commit     string    `json:"commit"`
	Subject    string    `json:"subject,omitempty"`
	Image      string    `json:"image"`
	Created    time.Time `json:"created"`
	Live       bool      `json:"live"`
	Kept       bool      `json:"kept"` // can be rolled back to
}

func newRelease(r store.Release) Release {
	return Release{
		App: r.App, Number: r.Number, Deployment: r.Deployment, Commit: r.Commit, Subject: r.Subject,
		Image: r.Image, Created: r.Created, Live: r.Live, Kept: r.Kept,
	}
}

// DeployRequest is the body of a request to deploy; all fields are optional.
type DeployRequest struct {
	Commit string `json:"commit,omitempty"` // hash, at least 7 digits; empty: the branch's tip
	Ref    string `json:"ref,omitempty"`    // must be the app's branch if given
	Reason string `json:"reason,omitempty"`
	Force  bool   `json:"force,omitempty"` // although the commit is live
}

// RollbackRequest is the body of a request to roll back.
type RollbackRequest struct {
	Release int    `json:"release,omitempty"` // 0: the one before the live one
	Reason  string `json:"reason,omitempty"`
}

func (s *server) listApps(c *gin.Context) {
	list := []App{}
	for _, app := range s.agent.Apps() {
		a, err := s.describe(c, app)
		if err != nil {
			s.internal(c, err)
			return
		}
		list = append(list, a)
	}
	orphans, err := s.agent.Unconfigured(c.Request.Context())
	if err != nil {
		s.internal(c, err)
		return
	}
	for _, r := range orphans {
		a, err := s.describe(c, unconfigured(r))
		if err != nil {
			s.internal(c, err)
			return
		}
		list = append(list, a)
	}
	c.JSON(http.StatusOK, gin.H{"apps": list})
}

func (s *server) getApp(c *gin.Context) {
	app, ok := s.app(c)
	if !ok {
		return
	}
	a, err := s.describe(c, app)
	if err != nil {
		s.internal(c, err)
		return
	}
	c.JSON(http.StatusOK, a)
}

// unconfigured is what is known of an app without a valid file: its release.
func unconfigured(r store.Release) agent.App {
	return agent.App{App: pipeline.App{Name: r.App, Target: r.Config.Target, Domains: r.Config.Domains, Repo: r.Config.Repo}}
}

// app finds the app of the route.
func (s *server) app(c *gin.Context) (agent.App, bool) {
	name := c.Param("app")
	app, ok := s.agent.App(name)
	if ok {
		return app, true
	}
	detail := fmt.Sprintf("there is no app %q", name)
	if live, err := s.store.LiveRelease(c.Request.Context(), name); err == nil && live != nil {
		detail = fmt.Sprintf("app %q serves, but has no valid app file: see naru config validate", name)
	}
	s.problem(c, http.StatusNotFound, detail)
	return app, false
}

func (s *server) describe(c *gin.Context, app agent.App) (App, error) {
	ctx := c.Request.Context()
	a := App{
		Name: app.Name, Target: app.Target, Repo: withoutPassword(app.Repo.URL), Branch: app.Repo.Branch, Domains: app.Domains,
		NextRuns: s.agent.NextRuns(app.Name, time.Now()),
	}
	_, a.Configured = s.agent.App(app.Name)
	live, err := s.store.LiveRelease(ctx, app.Name)
	if err != nil {
		return a, err
	}
	if live != nil {
		r := newRelease(store.Release{Release: *live, Live: true, Kept: true})
		a.Live = &r
	}
	newest, err := s.store.Deployments(ctx, app.Name, "", 1)
	if err != nil {
		return a, err
	}
	if len(newest) > 0 {
		a.Deployment = &newest[0]
	}
	return a, nil
}

var password = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^([a-z+]+://[^/@:]*):[^/@]*@`) })

func withoutPassword(url string) string { return password().ReplaceAllString(url, "$1@") }

// defaultPage and maxPage bound the list of deployments.
const (
	defaultPage = 20
	maxPage     = 200
)

func (s *server) listDeployments(c *gin.Context) {
	app, ok := s.app(c)
	if !ok {
		return
	}
	limit := defaultPage
	if text := c.Query("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPage {
			s.problem(c, http.StatusBadRequest, fmt.Sprintf("limit must be a number from 1 to %d", maxPage))
			return
		}
		limit = n
	}
	before := c.Query("before")
	if before != "" {
		if _, err := s.store.Deployment(c.Request.Context(), before); err != nil {
			s.fail(c, err)
			return
		}
	}
	found, err := s.store.Deployments(c.Request.Context(), app.Name, before, limit)
	if err != nil {
		s.internal(c, err)
		return
	}
	if len(found) == limit {
		c.Header("Link", fmt.Sprintf(`<%s/api/v1/apps/%s/deployments?limit=%d&before=%s>; rel="next"`,
			s.publicURL, app.Name, limit, found[limit-1].ID))
	}
	if found == nil {
		found = []pipeline.Deployment{}
	}
	c.JSON(http.StatusOK, gin.H{"deployments": found})
}

func (s *server) listReleases(c *gin.Context) {
	app, ok := s.app(c)
	if !ok {
		return
	}
	found, err := s.store.Releases(c.Request.Context(), app.Name)
	if err != nil {
		s.internal(c, err)
		return
	}
	list := []Release{}
	for _, r := range found {
		list = append(list, newRelease(r))
	}
	c.JSON(http.StatusOK, gin.H{"releases": list})
}

var commitHash = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-fA-F]{7,64}$`) })

func (s *server) deploy(c *gin.Context) {
	app, ok := s.app(c)
	if !ok {
		return
	}
	var r DeployRequest
	body, ok := s.decode(c, &r)
	if !ok {
		return
	}
	branch := app.Repo.Branch
	switch {
	case r.Commit != "" && !commitHash().MatchString(r.Commit):
		s.problem(c, http.StatusBadRequest, "commit must be a hash of 7 to 64 hex digits")
		return
	case r.Ref != "" && r.Ref != branch && r.Ref != "refs/heads/"+branch:
		s.problem(c, http.StatusUnprocessableEntity, fmt.Sprintf("app %s deploys branch %s only", app.Name, branch))
		return
	case len(r.Reason) > maxReason:
		s.problem(c, http.StatusBadRequest, fmt.Sprintf("reason has more than %d bytes", maxReason))
		return
	}
	from, ok := s.idempotent(c, "deploy", body)
	if !ok {
		return
	}
	got, err := s.agent.Submit(c.Request.Context(), app.Name, pipeline.Trigger{
		Kind: pipeline.Manual, By: c.GetString(callerName), Ref: r.Ref, Commit: strings.ToLower(r.Commit), Reason: r.Reason, Force: r.Force,
	}, from)
	s.answer(c, got, from, err)
}

func (s *server) rollback(c *gin.Context) {
	app, ok := s.app(c)
	if !ok {
		return
	}
	var r RollbackRequest
	body, ok := s.decode(c, &r)
	if !ok {
		return
	}
	if r.Release < 0 || len(r.Reason) > maxReason {
		s.problem(c, http.StatusBadRequest, fmt.Sprintf("release must be a number, reason at most %d bytes", maxReason))
		return
	}
	from, ok := s.idempotent(c, "rollback", body)
	if !ok {
		return
	}
	got, err := s.agent.Rollback(c.Request.Context(), app.Name, pipeline.Trigger{
		By: c.GetString(callerName), Release: r.Release, Reason: r.Reason,
	}, from)
	s.answer(c, got, from, err)
}

// Limits of what a caller may write into the record, in bytes.
const (
	maxReason = 1000
	maxKey    = 255
)

// idempotent makes a delivery of a request with an Idempotency-Key, so that the
// same one sent again starts nothing; nil without the header. A key belongs to
// its token and route (draft-ietf-httpapi-idempotency-key-header).
func (s *server) idempotent(c *gin.Context, route string, body []byte) (*store.Delivery, bool) {
	key := c.GetHeader("Idempotency-Key")
	if key == "" {
		return nil, true
	}
	if len(key) > maxKey {
		s.problem(c, http.StatusBadRequest, fmt.Sprintf("Idempotency-Key has more than %d bytes", maxKey))
		return nil, false
	}
	return &store.Delivery{
		Sender: "api", ID: c.GetString(callerID) + " " + route + " " + key, Hash: hash(body), Event: `{"route":"` + route + `"}`,
	}, true
}

// answer tells what became of a request to deploy.
func (s *server) answer(c *gin.Context, got store.Accepted, from *store.Delivery, err error) {
	switch {
	case err != nil:
		s.fail(c, err)
	case got.Repeated && got.Hash != from.Hash:
		s.problem(c, http.StatusUnprocessableEntity, "this Idempotency-Key was used for another request")
	default:
		s.accept(c, got)
	}
}
