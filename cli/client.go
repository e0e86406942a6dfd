package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"naru/agent/api"
	"naru/pipeline"
)

// Client talks to an agent's API.
type Client struct {
	base  string
	token string
	http  *http.Client
	hint  string // what to look at when there is no answer
}

var (
	// ErrNoAgent says that no agent answers.
	ErrNoAgent = errors.New("the agent cannot be reached")
	// ErrNotAuthorized says that the agent wants another token.
	ErrNotAuthorized = errors.New("not authorized")
)

// NewLocalClient talks to the agent of this machine over its unix socket.
func NewLocalClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{
		base: "http://naru", http: &http.Client{Transport: &http.Transport{DialContext: dial}, CheckRedirect: noRedirect},
		hint: "\nIs 'naru serve' running, and is --run (NARU_RUN) the run directory of its config?",
	}
}

// NewClient talks to the agent at base, such as https://deploy.example.com, with
// a token.
func NewClient(base, token string) *Client {
	return &Client{base: strings.TrimRight(base, "/"), token: token, http: &http.Client{CheckRedirect: noRedirect}}
}

// noRedirect keeps the token from being sent elsewhere.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Apps lists the configured apps with their status.
func (c *Client) Apps(ctx context.Context) ([]api.App, error) {
	var got struct{ Apps []api.App }
	err := c.call(ctx, call{path: "/apps", into: &got})
	return got.Apps, err
}

// Status tells how one app stands.
func (c *Client) Status(ctx context.Context, app string) (got api.App, err error) {
	err = c.call(ctx, call{path: "/apps/" + url.PathEscape(app), into: &got})
	return got, err
}

// Deploy asks for a deployment. The same non-empty key asks only once.
func (c *Client) Deploy(ctx context.Context, app string, r api.DeployRequest, key string) (got api.Accepted, err error) {
	err = c.call(ctx, call{path: "/apps/" + url.PathEscape(app) + "/deployments", body: r, key: key, into: &got})
	return got, err
}

// Rollback asks for a kept release to be run again. The same non-empty key asks
// only once.
func (c *Client) Rollback(ctx context.Context, app string, r api.RollbackRequest, key string) (got api.Accepted, err error) {
	err = c.call(ctx, call{path: "/apps/" + url.PathEscape(app) + "/rollback", body: r, key: key, into: &got})
	return got, err
}

// Releases lists the releases of an app, newest first.
func (c *Client) Releases(ctx context.Context, app string) ([]api.Release, error) {
	var got struct{ Releases []api.Release }
	err := c.call(ctx, call{path: "/apps/" + url.PathEscape(app) + "/releases", into: &got})
	return got.Releases, err
}

// Deployments lists the newest deployments of an app, at most limit (1 to 200).
func (c *Client) Deployments(ctx context.Context, app string, limit int) ([]pipeline.Deployment, error) {
	var got struct{ Deployments []pipeline.Deployment }
	err := c.call(ctx, call{path: "/apps/" + url.PathEscape(app) + "/deployments?limit=" + strconv.Itoa(limit), into: &got})
	return got.Deployments, err
}

// Deployment returns a deployment when it has ended, or after wait (at most 2
// minutes) as it is then; 0 does not wait.
func (c *Client) Deployment(ctx context.Context, id string, wait time.Duration) (got api.Deployment, err error) {
	err = c.call(ctx, call{path: "/deployments/" + url.PathEscape(id) + "?wait=" + wait.String(), into: &got})
	return got, err
}

// Cancel asks a deployment to end, and returns it as it is.
func (c *Client) Cancel(ctx context.Context, id string) (got pipeline.Deployment, err error) {
	err = c.call(ctx, call{path: "/deployments/" + url.PathEscape(id) + "/cancel", body: struct{}{}, into: &got})
	return got, err
}

// Logs copies the log of a deployment to w; with follow it goes on until the
// deployment ends.
func (c *Client) Logs(ctx context.Context, id string, follow bool, w io.Writer) (err error) {
	path := "/deployments/" + url.PathEscape(id) + "/logs"
	if follow {
		path += "?follow=1"
	}
	resp, err := c.send(ctx, call{path: path})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

// call is one request to the API: a POST if it has a body.
type call struct {
	path string // below /api/v1
	body any
	key  string // Idempotency-Key
	into any
}

// maxAnswer bounds an answer that is not a stream, in bytes.
const maxAnswer = 64 << 20

func (c *Client) call(ctx context.Context, what call) (err error) {
	resp, err := c.send(ctx, what)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(what.into); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}

// send returns an answer of success; any other becomes an error, an
// *api.Problem where the agent sent one.
func (c *Client) send(ctx context.Context, what call) (*http.Response, error) {
	method, body := http.MethodGet, io.Reader(http.NoBody)
	if what.body != nil {
		data, err := json.Marshal(what.body)
		if err != nil {
			return nil, fmt.Errorf("write request: %w", err)
		}
		method, body = http.MethodPost, bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/api/v1"+what.path, body)
	if err != nil {
		return nil, fmt.Errorf("write request: %w", err)
	}
	if what.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if what.key != "" {
		req.Header.Set("Idempotency-Key", what.key)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if outer, ok := errors.AsType[*url.Error](err); ok && c.hint != "" {
			err = outer.Err // its URL is made up
		}
		return nil, fmt.Errorf("%w: %w%s", ErrNoAgent, err, c.hint)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	return nil, errors.Join(refusal(resp), resp.Body.Close())
}

// refusal makes the error of an answer that is none of success.
func refusal(resp *http.Response) error {
	p := &api.Problem{}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || json.Unmarshal(data, p) != nil || p.Status == 0 {
		p = &api.Problem{Title: http.StatusText(resp.StatusCode), Status: resp.StatusCode, Detail: "answer " + resp.Status + ", which is not of a naru agent"}
	}
	if p.Status == http.StatusUnauthorized || p.Status == http.StatusForbidden {
		return fmt.Errorf("%w: %w", ErrNotAuthorized, p)
	}
	return p
}
