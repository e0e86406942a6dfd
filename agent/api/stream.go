package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"naru/agent/store"
	"naru/pipeline"
)

// errSlow says that the client does not read (any more).
var errSlow = errors.New("the client does not read")

// stream sends the events of a deployment from the store to one client. What is
// stored already and what comes now is the same to it: it reads on from the last
// event that it has sent whenever there is news.
type stream struct {
	c      *gin.Context
	store  *store.Store
	rc     *http.ResponseController
	id     string
	after  int64
	kind   string // "": all
	follow bool
	beat   string // sent when nothing happens; "": nothing is
	format func(io.Writer, store.Event) error
	close  func()
}

// open checks the request and begins the answer.
func (s *server) open(c *gin.Context, contentType string) (*stream, bool) {
	st := &stream{c: c, store: s.store, id: c.Param("id"), rc: http.NewResponseController(c.Writer)}
	after := c.GetHeader("Last-Event-ID")
	if after == "" {
		after = c.Query("after")
	}
	if after != "" {
		n, err := strconv.ParseInt(after, 10, 64)
		if err != nil || n < 0 {
			s.problem(c, http.StatusBadRequest, "Last-Event-ID must be the number of an event")
			return nil, false
		}
		st.after = n
	}
	if _, err := s.store.Deployment(c.Request.Context(), st.id); err != nil {
		s.fail(c, err)
		return nil, false
	}
	select {
	case s.streams <- struct{}{}:
		st.close = func() { <-s.streams }
	default:
		c.Header("Retry-After", "5")
		s.problem(c, http.StatusServiceUnavailable, "too many streams are open")
		return nil, false
	}
	c.Header("Content-Type", contentType)
	c.Header("Cache-Control", "no-store")
	c.Header("X-Accel-Buffering", "no")
	c.Status(http.StatusOK)
	return st, true
}

// run sends until there is nothing more to send, and returns the deployment as
// it was read before the last events were: when that is final, all were sent.
func (st *stream) run() (pipeline.Deployment, error) {
	ctx := st.c.Request.Context()
	news, stop := st.store.Watch(st.id)
	defer stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		d, err := st.store.Deployment(ctx, st.id)
		if err != nil {
			return d, err
		}
		if err := st.send(); err != nil {
			return d, err
		}
		if !st.follow || d.State.Final() {
			return d, nil
		}
		select {
		case <-news:
		case <-beat.C:
			if err := st.write(func(w io.Writer) error { _, err := io.WriteString(w, st.beat); return err }); err != nil {
				return d, err
			}
		case <-stopping(ctx):
			return d, nil
		case <-ctx.Done():
			return d, ctx.Err()
		}
	}
}

// send writes all events after the last one sent.
func (st *stream) send() error {
	for {
		events, err := st.store.Events(st.c.Request.Context(), store.EventQuery{Deployment: st.id, After: st.after, Kind: st.kind, Limit: pageSize})
		if err != nil {
			return err
		}
		err = st.write(func(w io.Writer) error {
			for _, e := range events {
				if err := st.format(w, e); err != nil {
					return err
				}
				st.after = e.N
			}
			return nil
		})
		if err != nil || len(events) < pageSize {
			return err
		}
	}
}

// write sends what f writes, within writeTime.
func (st *stream) write(f func(io.Writer) error) error {
	var b bytes.Buffer
	if err := f(&b); err != nil {
		return err
	}
	if err := st.rc.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("%w: %w", errSlow, err)
	}
	if _, err := st.c.Writer.Write(b.Bytes()); err != nil {
		return fmt.Errorf("%w: %w", errSlow, err)
	}
	if err := st.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("%w: %w", errSlow, err)
	}
	return nil
}
