package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"naru/agent"
	"naru/agent/store"
)

// Problem is the body of every error (RFC 9457, application/problem+json).
type Problem struct {
	Type     string `json:"type"` // "about:blank": the status says it
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail,omitempty"`
	Instance string `json:"instance,omitempty"` // "urn:request:<id>", as in the agent's log
}

// Error makes a problem that a client received usable as an error.
func (p *Problem) Error() string {
	if p.Detail == "" {
		return fmt.Sprintf("%d %s", p.Status, p.Title)
	}
	return p.Detail
}

// problem answers with an error and ends the request.
func (s *server) problem(c *gin.Context, status int, detail string) {
	if c.Writer.Written() {
		// A stream has begun: only cutting it tells the client.
		c.Abort()
		return
	}
	p := Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Instance: "urn:request:" + c.GetString(requestID)}
	body, err := json.Marshal(p)
	if err != nil {
		panic(err) // a bug: the struct has strings and a number
	}
	c.Set(problemDetail, detail)
	c.Header("Cache-Control", "no-store")
	c.Abort()
	c.Data(status, "application/problem+json", body)
}

// fail answers with the problem that err is.
func (s *server) fail(c *gin.Context, err error) {
	switch {
	case errors.Is(err, store.ErrNotFound) && c.Param("id") != "":
		s.problem(c, http.StatusNotFound, fmt.Sprintf("there is no deployment %q", c.Param("id")))
	case errors.Is(err, agent.ErrUnknownApp), errors.Is(err, store.ErrNotFound):
		s.problem(c, http.StatusNotFound, err.Error())
	case errors.Is(err, agent.ErrNoRelease), errors.Is(err, agent.ErrFinished):
		s.problem(c, http.StatusConflict, err.Error())
	case errors.Is(err, store.ErrFull):
		s.log.Error("request failed", zap.String("request", c.GetString(requestID)), zap.String("path", c.Request.URL.Path), zap.Error(err))
		s.problem(c, http.StatusInsufficientStorage, store.ErrFull.Error()+": nothing was started")
	default:
		s.internal(c, err)
	}
}

// internal hides what went wrong on our side; the log has it.
func (s *server) internal(c *gin.Context, err error) {
	s.log.Error("request failed", zap.String("request", c.GetString(requestID)), zap.String("path", c.Request.URL.Path), zap.Error(err))
	s.problem(c, http.StatusInternalServerError, "internal error; the agent's log has it under the request's id")
}

// Keys of the request's context.
const (
	requestID     = "request-id"
	problemDetail = "problem"
)

// identify gives the request an id, the client's own if it sent a decent one.
func (s *server) identify(c *gin.Context) {
	id := c.GetHeader("X-Request-Id")
	if !decentID(id) {
		id = uuid.NewString()
	}
	c.Set(requestID, id)
	c.Header("X-Request-Id", id)
	c.Header("X-Content-Type-Options", "nosniff")
	if s.version != "" {
		c.Header("Server-Version", s.version)
	}
	c.Next()
}

func decentID(id string) bool {
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.' {
			return false
		}
	}
	return id != "" && len(id) <= 64
}

// logged writes one line per request; polling of monitors is not worth one.
func (s *server) logged(c *gin.Context) {
	began := time.Now()
	c.Next()
	status := c.Writer.Status()
	s.requests.add(fmt.Sprintf("%dxx", status/100))
	fields := []zap.Field{
		zap.String("request", c.GetString(requestID)), zap.String("method", c.Request.Method), zap.String("path", c.Request.URL.Path),
		zap.Int("status", status), zap.String("from", s.from(c)), zap.Duration("took", time.Since(began)),
	}
	if detail := c.GetString(problemDetail); detail != "" {
		s.log.Info("request refused", append(fields, zap.String("detail", detail))...)
		return
	}
	s.log.Debug("request", fields...)
}

// from is the address of the client; over the unix socket there is none.
func (s *server) from(c *gin.Context) string {
	if s.trusted {
		return "unix socket"
	}
	return c.ClientIP()
}

// recovered turns a panic into a problem.
func (s *server) recovered(c *gin.Context) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if r == http.ErrAbortHandler { //nolint:errorlint // the value itself is the signal (net/http)
			panic(r)
		}
		s.internal(c, fmt.Errorf("panic: %v\n%s", r, debug.Stack()))
	}()
	c.Next()
}
