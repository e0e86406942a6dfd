package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// prober finds out whether one replica is ready: by HTTP where the process has
// a port, else by whether it keeps running. It asks from outside, so that the
// image needs no tool for it.
type prober struct {
	target   Target
	process  Process
	replica  Replica
	announce func(context.Context) // called at the first good answer
}

// wait returns when Healthy checks in a row were good, with the time it took.
// Its error says what was asked, what came back, how the container is and what
// it wrote last.
func (p prober) wait(ctx context.Context) (time.Duration, error) {
	h := p.process.Health
	began := time.Now()
	limit, cancel := context.WithTimeoutCause(ctx, h.Deadline, errDeadline)
	defer cancel()
	good, last := 0, errDeadline
	for {
		err := p.once(limit)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, errGone):
			return 0, p.explain(ctx, err)
		case err == nil:
			if good++; good >= h.Healthy {
				return time.Since(began), nil
			}
			last = fmt.Errorf("only %d good answers in a row, %d wanted", good, h.Healthy)
			if good == 1 && p.announce != nil {
				p.announce(limit)
			}
		case limit.Err() == nil:
			// A check that the deadline cut short says nothing of its own.
			good, last = 0, err
		}
		if sleep(limit, h.Interval) != nil && ctx.Err() == nil {
			return 0, p.explain(ctx, last)
		}
	}
}

var (
	errDeadline = errors.New("the deadline of the health check is over")
	errGone     = errors.New("the container is not running")
)

// once checks one time.
func (p prober) once(ctx context.Context) error {
	rep, err := p.target.Report(ctx, p.replica.Name)
	if err != nil {
		return err
	}
	if !rep.Running {
		return errGone
	}
	if p.process.Port == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.process.Health.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "naru-probe")
	// A client of its own: a kept-alive connection would show an old state, and
	// a proxy from the environment must not stand between.
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

func (p prober) url() string {
	return "http://" + p.replica.Address.String() + p.process.Health.Path
}

// explain makes the error that a person can act on.
func (p prober) explain(ctx context.Context, cause error) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is not ready after %s", p.replica.Name, p.process.Health.Deadline)
	if errors.Is(cause, errGone) {
		b.Reset()
		fmt.Fprintf(&b, "%s ended before it was ready", p.replica.Name)
	}
	if p.process.Port > 0 {
		fmt.Fprintf(&b, "; probed %s", p.url())
	}
	rep, err := p.target.Report(ctx, p.replica.Name)
	switch {
	case err != nil:
		fmt.Fprintf(&b, "; no report: %v", err)
	case rep.Running:
		b.WriteString("; container: running, not out of memory")
	default:
		fmt.Fprintf(&b, "; container: exit code %d, out of memory: %t", rep.ExitCode, rep.OOM)
	}
	if len(rep.Log) > 0 {
		fmt.Fprintf(&b, "; its last %d log lines:\n  %s", len(rep.Log), strings.Join(rep.Log, "\n  "))
	} else {
		b.WriteString("; it logged nothing")
	}
	return fmt.Errorf("%w: %s", cause, b.String())
}

// sleep waits for d, or returns early with the reason ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
