package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"naru/agent/store"
	"naru/pipeline"
)

// Deployment is a deployment with its steps.
type Deployment struct {
	pipeline.Deployment
	Steps []store.Step `json:"steps"`
	URL   string       `json:"url"`
}

// maxWait is the longest long poll.
const maxWait = 120 * time.Second

// getDeployment answers at once, or with ?wait=60s when the deployment has
// ended or the time is over. To Accept: text/plain the answer is the state alone.
func (s *server) getDeployment(c *gin.Context) {
	wait, ok := s.wait(c)
	if !ok {
		return
	}
	d, err := s.await(c, wait)
	if err != nil {
		s.fail(c, err)
		return
	}
	if strings.HasPrefix(c.GetHeader("Accept"), "text/plain") {
		c.String(http.StatusOK, string(d.State)+"\n")
		return
	}
	steps, err := s.store.Steps(c.Request.Context(), d.ID)
	if err != nil {
		s.internal(c, err)
		return
	}
	if steps == nil {
		steps = []store.Step{}
	}
	c.JSON(http.StatusOK, Deployment{Deployment: d, Steps: steps, URL: s.deploymentURL(d.ID)})
}

// wait reads ?wait=, a duration or a number of seconds.
func (s *server) wait(c *gin.Context) (time.Duration, bool) {
	text := c.Query("wait")
	if text == "" {
		return 0, true
	}
	if _, err := strconv.Atoi(text); err == nil {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		s.problem(c, http.StatusBadRequest, "wait must be a duration such as 60s")
		return 0, false
	}
	return min(d, maxWait), true
}

// await returns the deployment of the route when it is final or the time is over.
func (s *server) await(c *gin.Context, wait time.Duration) (pipeline.Deployment, error) {
	ctx := c.Request.Context()
	news, stop := s.store.Watch(c.Param("id"))
	defer stop()
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		d, err := s.store.Deployment(ctx, c.Param("id"))
		if err != nil || d.State.Final() || wait == 0 {
			return d, err
		}
		select {
		case <-news:
		case <-limit.C:
			wait = 0
		case <-stopping(ctx):
			wait = 0
		case <-ctx.Done():
			return d, nil
		}
	}
}

func (s *server) cancel(c *gin.Context) {
	d, err := s.agent.Cancel(c.Request.Context(), c.Param("id"), c.GetString(callerName))
	if err != nil {
		s.fail(c, err)
		return
	}
	c.JSON(http.StatusAccepted, d)
}

// Times of streams.
const (
	heartbeat = 15 * time.Second // a comment, so that proxies keep the connection
	writeTime = 30 * time.Second // for each write; a slower reader is dropped
	pageSize  = 500
)

// logs writes the log as text, and with ?follow=1 goes on until the deployment
// ends.
func (s *server) logs(c *gin.Context) {
	st, ok := s.open(c, "text/plain; charset=utf-8")
	if !ok {
		return
	}
	defer st.close()
	st.kind = store.KindLog
	st.follow = c.Query("follow") == "1" || c.Query("follow") == "true"
	st.format = func(w io.Writer, e store.Event) error {
		_, err := fmt.Fprintln(w, e.Text)
		return err
	}
	if _, err := st.run(); err != nil {
		s.streamFailed(c, err)
	}
}

// events streams what happens in the deployment as server-sent events, from the
// event after Last-Event-ID on, and ends with an event "end".
func (s *server) events(c *gin.Context) {
	st, ok := s.open(c, "text/event-stream")
	if !ok {
		return
	}
	defer st.close()
	st.follow, st.beat = true, ": alive\n\n"
	st.format = writeEvent
	if err := st.write(func(w io.Writer) error { _, err := io.WriteString(w, "retry: 2000\n\n"); return err }); err != nil {
		s.streamFailed(c, err)
		return
	}
	d, err := st.run()
	if err != nil {
		s.streamFailed(c, err)
		return
	}
	if !d.State.Final() {
		return // we shut down: the client comes again
	}
	if err := st.write(func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "event: end\ndata: {\"state\":%q}\n\n", d.State)
		return err
	}); err != nil {
		s.streamFailed(c, err)
	}
}

// Event is the data of one server-sent event. Which fields are set is said by
// the event's type: log has Line; step has Step, Phase, Error; state has State, Error.
type Event struct {
	At    time.Time      `json:"at"`
	Line  *string        `json:"line,omitempty"`
	Step  string         `json:"step,omitempty"`
	Phase pipeline.Phase `json:"phase,omitempty"`
	State pipeline.State `json:"state,omitempty"`
	Error string         `json:"error,omitempty"`
}

func writeEvent(w io.Writer, e store.Event) error {
	data := Event{At: e.At}
	if e.Kind == store.KindLog {
		data.Line = &e.Text
	} else if err := json.Unmarshal([]byte(e.Text), &data); err != nil {
		return err
	}
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.N, e.Kind, text)
	return err
}

// streamFailed ends a stream. Mostly the client has gone, which is no news.
func (s *server) streamFailed(c *gin.Context, err error) {
	if c.Request.Context().Err() == nil && !errors.Is(err, errSlow) {
		s.internal(c, err)
	}
	c.Abort()
}
