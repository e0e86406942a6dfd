package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"

	"naru/agent"
	"naru/agent/store"
	"naru/pipeline"
	"naru/webhooks"
)

// planned are the senders whose routes exist and whose webhooks cannot be
// verified yet.
func planned(sender string) bool {
	return slices.Contains([]string{"gitlab", "gitea", "gogs", "bitbucket", "generic", "jenkins", "registry"}, sender)
}

// Accepted answers what asked for a deployment.
type Accepted struct {
	Deployment string `json:"deployment,omitempty"` // id; empty when nothing is deployed
	URL        string `json:"url,omitempty"`        // of the deployment
	Ignored    string `json:"ignored,omitempty"`    // why nothing is deployed
	Repeated   bool   `json:"repeated,omitempty"`   // the request was known: this is what it led to
}

// webhook takes a delivery of a sender for an app.
func (s *server) webhook(c *gin.Context) {
	verify, app, ok := s.receiver(c)
	if !ok {
		return
	}
	body, ok := s.webhookBody(c)
	if !ok {
		return
	}
	secret, err := s.agent.WebhookSecret(app)
	if err != nil {
		s.webhooks.add("error")
		s.internal(c, err)
		return
	}
	event, err := verify(webhooks.Request{Header: c.Request.Header, Body: body}, secret)
	switch {
	case errors.Is(err, webhooks.ErrSignature):
		s.webhooks.add("refused")
		s.refuse(c, err.Error())
	case errors.Is(err, webhooks.ErrMalformed):
		s.webhooks.add("malformed")
		s.problem(c, http.StatusBadRequest, err.Error())
	case err != nil:
		s.webhooks.add("error")
		s.internal(c, err)
	default:
		s.deliver(c, app, event, body)
	}
}

// receiver finds who can read the webhook and the app that it is for.
func (s *server) receiver(c *gin.Context) (verify func(webhooks.Request, string) (webhooks.Event, error), app agent.App, ok bool) {
	sender := c.Param("sender")
	app, ok = s.agent.App(c.Param("app"))
	if !ok {
		s.problem(c, http.StatusNotFound, fmt.Sprintf("there is no app %q", c.Param("app")))
		return nil, app, false
	}
	verify, ok = webhooks.For(sender)
	switch hook := app.Triggers.Webhook; {
	case !ok && planned(sender):
		s.problem(c, http.StatusNotImplemented, fmt.Sprintf("webhooks of %s are not supported yet", sender))
	case !ok:
		s.problem(c, http.StatusNotFound, fmt.Sprintf("there is no sender %q", sender))
	case hook == nil:
		ok = false
		s.problem(c, http.StatusNotFound, fmt.Sprintf("app %s takes no webhooks: triggers.webhook is not set", app.Name))
	case hook.Sender != sender:
		ok = false
		s.problem(c, http.StatusNotFound, fmt.Sprintf("app %s takes webhooks of %s only", app.Name, hook.Sender))
	}
	return verify, app, ok
}

// webhookBody reads the body with a limit on its size and time. Large ones are
// unauthenticated memory, so only a few are read at a time.
func (s *server) webhookBody(c *gin.Context) ([]byte, bool) {
	r := c.Request
	if r.ContentLength > maxWebhook {
		s.tooLarge(c, maxWebhook)
		return nil, false
	}
	if r.ContentLength < 0 || r.ContentLength > smallWebhook {
		select {
		case s.large <- struct{}{}:
			defer func() { <-s.large }()
		case <-r.Context().Done():
			s.problem(c, http.StatusServiceUnavailable, "too many large requests at once")
			return nil, false
		}
	}
	return s.body(c, maxWebhook)
}

// lingerBytes and lingerTime bound what is read of a body that was refused.
const (
	lingerBytes = 64 << 20
	lingerTime  = 5 * time.Second
)

// tooLarge refuses, and then reads on for a while: a connection that is closed
// while the client still writes is reset, and the answer lost with it.
func (s *server) tooLarge(c *gin.Context, limit int64) {
	c.Header("Connection", "close")
	s.problem(c, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", limit))
	rc := http.NewResponseController(c.Writer)
	if rc.Flush() != nil || rc.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return // a recorder of a test, or a client that has gone
	}
	_, _ = io.CopyN(io.Discard, c.Request.Body, lingerBytes)
}

// body reads the whole body. The deadline is on the reading alone, since
// answering may take long.
func (s *server) body(c *gin.Context, limit int64) ([]byte, bool) {
	rc := http.NewResponseController(c.Writer)
	deadline := func(t time.Time) {
		// Recorders of tests have no deadlines; a dead connection fails the read.
		_ = rc.SetReadDeadline(t)
	}
	deadline(time.Now().Add(bodyTime))
	defer deadline(time.Time{})
	data, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, limit))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		s.tooLarge(c, tooLarge.Limit)
		return nil, false
	}
	if err != nil {
		s.problem(c, http.StatusBadRequest, "the body cannot be read: "+err.Error())
		return nil, false
	}
	return data, true
}

// deliver stores a verified event and, when it counts, its deployment.
func (s *server) deliver(c *gin.Context, app agent.App, event webhooks.Event, body []byte) {
	ctx := c.Request.Context()
	if event.Kind == webhooks.Ping {
		s.webhooks.add("ping")
		s.log.Info("webhook ping", zap.String("request", c.GetString(requestID)), zap.String("app", app.Name))
		c.JSON(http.StatusOK, Accepted{Ignored: "ping"})
		return
	}
	if branch := "refs/heads/" + app.Repo.Branch; event.Ignored == "" && event.Ref != branch {
		event.Ignored = fmt.Sprintf("%s is not the branch that is deployed, %s", event.Ref, branch)
	}
	from, err := delivery(c.Param("sender"), app.Name, event, body)
	if err != nil {
		s.internal(c, err)
		return
	}
	if event.Ignored != "" {
		s.log.Info("webhook ignored", zap.String("request", c.GetString(requestID)), zap.String("app", app.Name),
			zap.String("delivery", from.ID), zap.String("reason", event.Ignored))
		got, err := s.store.Ignore(ctx, from)
		s.answerWebhook(c, got, event.Ignored, err)
		return
	}
	got, err := s.agent.Submit(ctx, app.Name, pipeline.Trigger{
		Kind: pipeline.Webhook, By: by(from.Sender, event.Pusher), Ref: event.Ref, Commit: event.Commit,
	}, &from)
	s.answerWebhook(c, got, "", err)
}

func by(sender, pusher string) string {
	if pusher == "" {
		return sender
	}
	return sender + ": " + pusher
}

func delivery(sender, app string, event webhooks.Event, body []byte) (store.Delivery, error) {
	text, err := json.Marshal(event)
	if err != nil {
		return store.Delivery{}, err
	}
	now := time.Now().UTC()
	d := store.Delivery{
		Sender: sender, App: app, ID: event.Delivery, Hash: hash(body), Event: string(text), Ignored: event.Ignored, Received: now,
	}
	if d.ID == "" {
		// A sender without ids: equal bodies within ten minutes are one delivery.
		d.ID = now.Truncate(10*time.Minute).Format(time.RFC3339) + " " + d.Hash
	}
	return d, nil
}

func hash(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

func (s *server) answerWebhook(c *gin.Context, got store.Accepted, ignored string, err error) {
	switch {
	case err != nil:
		s.webhooks.add("error")
		s.fail(c, err)
	case got.Repeated:
		s.webhooks.add("repeated")
		s.log.Info("webhook repeated", zap.String("request", c.GetString(requestID)), zap.String("deployment", got.Deployment.ID))
		c.JSON(http.StatusOK, s.accepted(got))
	case ignored != "":
		s.webhooks.add("ignored")
		c.JSON(http.StatusAccepted, Accepted{Ignored: ignored})
	default:
		s.webhooks.add("accepted")
		s.accept(c, got)
	}
}

func (s *server) accepted(got store.Accepted) Accepted {
	return Accepted{Deployment: got.Deployment.ID, URL: s.deploymentURL(got.Deployment.ID), Repeated: got.Repeated}
}

// accept answers that a deployment waits.
func (s *server) accept(c *gin.Context, got store.Accepted) {
	a := s.accepted(got)
	c.Header("Location", a.URL)
	c.JSON(http.StatusAccepted, a)
}

func (s *server) deploymentURL(id string) string { return s.publicURL + "/api/v1/deployments/" + id }

// decode reads a JSON body into v; no body leaves v as it is. Unknown keys are
// refused: a misspelled one would be a deployment that nobody asked for.
func (s *server) decode(c *gin.Context, v any) (body []byte, ok bool) {
	if body, ok = s.body(c, maxBody); !ok {
		return nil, false
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return body, true
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil && d.More() {
		err = errors.New("there is more than one JSON value")
	}
	if err != nil {
		s.problem(c, http.StatusBadRequest, "the body is not what is asked for: "+err.Error())
		return nil, false
	}
	return body, true
}
