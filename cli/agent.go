package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/agent/api"
	"naru/pipeline"
)

// agentCommands are the agent itself and the commands that talk to it.
func agentCommands(env *Env) []*cobra.Command {
	return []*cobra.Command{
		serveCommand(env), deployCommand(env), rollbackCommand(env), statusCommand(env), releasesCommand(env),
		cancelCommand(env), configCommand(env), initCommand(env), tokenCommand(env), versionCommand(env),
	}
}

// connection is where the agent is: on this machine unless a URL is given.
type connection struct{ url string }

func (c *connection) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.url, "url", os.Getenv("NARU_URL"), "URL of an agent elsewhere; its token is read from NARU_TOKEN")
}

func (c *connection) client(env *Env) (*Client, error) {
	if c.url == "" {
		return NewLocalClient(filepath.Join(env.Run, socketName)), nil
	}
	if u, err := url.Parse(c.url); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, usage("--url (NARU_URL) %q: want a URL such as https://deploy.example.com", c.url)
	}
	return NewClient(c.url, os.Getenv("NARU_TOKEN")), nil
}

// agentError gives what the agent refused its exit code.
func agentError(err error) error {
	var problem *api.Problem
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoAgent), errors.Is(err, ErrNotAuthorized):
		return &ExitError{Code: exitNoAgent, Err: err}
	case errors.As(err, &problem) && (problem.Status == http.StatusNotFound || problem.Status == http.StatusBadRequest):
		return &ExitError{Code: exitUsage, Err: err}
	case errors.As(err, &problem) && problem.Status < http.StatusInternalServerError:
		return &ExitError{Code: exitRefused, Err: err}
	}
	return err
}

// following is how deploy and rollback wait for the end.
type following struct {
	connection
	detach  bool
	asJSON  bool
	timeout time.Duration
	key     string
}

func (f *following) flags(c *cobra.Command) {
	f.connection.flags(c)
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "print the deployment's id and do not wait")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print the deployment as JSON at its end, and no log")
	c.Flags().DurationVar(&f.timeout, "timeout", 30*time.Minute, "how long to wait; the deployment goes on")
	c.Flags().StringVar(&f.key, "idempotency-key", "", "ask only once for the same key")
}

func deployCommand(env *Env) *cobra.Command {
	var f following
	var r api.DeployRequest
	c := &cobra.Command{
		Use:   "deploy APP",
		Short: "Deploy the branch's tip now, and follow it to its end",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := f.client(env)
			if err != nil {
				return err
			}
			got, err := client.Deploy(c.Context(), args[0], r, f.idempotencyKey())
			if err != nil {
				return agentError(err)
			}
			return f.follow(c.Context(), env, client, got.Deployment)
		},
	}
	f.flags(c)
	c.Flags().StringVar(&r.Commit, "commit", "", "commit of the branch, at least 7 digits")
	c.Flags().StringVar(&r.Reason, "reason", "", "why, for the record")
	c.Flags().BoolVar(&r.Force, "force", false, "also when the commit is live already")
	return c
}

func rollbackCommand(env *Env) *cobra.Command {
	var f following
	var reason string
	c := &cobra.Command{
		Use:   "rollback APP [RELEASE]",
		Short: "Run a kept release again, without a build; the one before the live one by default",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			r := api.RollbackRequest{Reason: reason}
			if len(args) == 2 {
				n, err := strconv.Atoi(strings.TrimPrefix(args[1], "r"))
				if err != nil || n < 1 {
					return &ExitError{Code: exitUsage, Err: fmt.Errorf("release %q is not a number", args[1])}
				}
				r.Release = n
			}
			client, err := f.client(env)
			if err != nil {
				return err
			}
			got, err := client.Rollback(c.Context(), args[0], r, f.idempotencyKey())
			if err != nil {
				return agentError(err)
			}
			return f.follow(c.Context(), env, client, got.Deployment)
		},
	}
	f.flags(c)
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}

// idempotencyKey lets a call whose answer was lost be sent again by hand.
func (f *following) idempotencyKey() string {
	if f.key != "" {
		return f.key
	}
	return "cli-" + rand.Text()
}

var errTimeout = errors.New("timeout")

// follow shows the log of a deployment and turns its end into an exit code.
func (f *following) follow(ctx context.Context, env *Env, client *Client, id string) error {
	if f.detach {
		_, err := fmt.Fprintln(env.Stdout, id)
		return err
	}
	limit, cancel := context.WithTimeoutCause(ctx, f.timeout, errTimeout)
	defer cancel()
	if !f.asJSON {
		if _, err := fmt.Fprintln(env.Stdout, "deployment", id); err != nil {
			return err
		}
		if err := client.Logs(limit, id, true, env.Stdout); err != nil && limit.Err() == nil {
			return lost(err, id)
		}
	}
	for {
		d, err := client.Deployment(limit, id, time.Minute)
		switch {
		case errors.Is(context.Cause(limit), errTimeout):
			return &ExitError{Code: exitTimeout, Err: fmt.Errorf("deployment %s has not ended after %s and goes on", id, f.timeout)}
		case limit.Err() != nil: // somebody pressed Ctrl-C
			return &ExitError{Code: exitTimeout, Err: fmt.Errorf("deployment %s goes on; 'naru cancel %s' ends it", id, id)}
		case err != nil:
			return lost(err, id)
		case d.State.Final():
			return f.end(env, d)
		}
	}
}

// lost adds to the loss of the agent that nothing is lost with it.
func lost(err error, id string) error {
	if errors.Is(err, ErrNoAgent) {
		err = fmt.Errorf("%w\nDeployment %s is taken up again when the agent is back", err, id)
	}
	return agentError(err)
}

// end prints how a deployment ended, and returns its exit code as an error.
func (f *following) end(env *Env, d api.Deployment) error {
	code := exitCode(d.State)
	if f.asJSON {
		if err := printJSON(env, d); err != nil || code == 0 {
			return err
		}
		return &ExitError{Code: code}
	}
	text := words(d.State) + ": nothing serves"
	if d.Serves > 0 {
		text = fmt.Sprintf("%s: release %d serves", words(d.State), d.Serves)
	}
	if code == 0 {
		_, err := fmt.Fprintln(env.Stdout, text)
		return err
	}
	return &ExitError{Code: code, Err: fmt.Errorf("%s: %s", text, firstLine(d.Error))}
}

// words is a state as people write it.
func words(s pipeline.State) string { return strings.ReplaceAll(string(s), "_", " ") }

// firstLine says what happened; the lines of a log that may follow were shown
// before or are in the JSON.
func firstLine(text string) string {
	line, _, more := strings.Cut(text, "\n")
	if more {
		line = strings.TrimRight(line, ":")
	}
	return line
}

func exitCode(s pipeline.State) int {
	switch s {
	case pipeline.Live, pipeline.Skipped:
		return 0
	case pipeline.Failed:
		return exitNothingDone
	case pipeline.RolledBack:
		return exitRolledBack
	case pipeline.Broken:
		return exitBroken
	case pipeline.Cancelled, pipeline.Superseded:
		return exitRefused
	}
	return exitUnexpected
}

func cancelCommand(env *Env) *cobra.Command {
	var conn connection
	c := &cobra.Command{
		Use:   "cancel APP|DEPLOYMENT",
		Short: "Cancel a deployment that waits, fetches or builds; a switch of traffic is not cancelled",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := conn.client(env)
			if err != nil {
				return err
			}
			id, err := newestOf(c.Context(), client, args[0])
			if err != nil {
				return agentError(err)
			}
			d, err := client.Cancel(c.Context(), id)
			if err != nil {
				return agentError(err)
			}
			text := "is " + words(d.State)
			if !d.State.Final() {
				text = "is asked to end"
			}
			_, err = fmt.Fprintf(env.Stdout, "deployment %s %s\n", d.ID, text)
			return err
		},
	}
	conn.flags(c)
	return c
}

// newestOf returns the id of an app's newest deployment. An id stays as it is: it
// begins with a digit (UUIDv7, until the year 2527), an app's name with a letter.
func newestOf(ctx context.Context, client *Client, ref string) (string, error) {
	if strings.ContainsAny(ref[:min(1, len(ref))], "0123456789") {
		return ref, nil
	}
	app, err := client.Status(ctx, ref)
	if err == nil && app.Deployment == nil {
		err = &ExitError{Code: exitRefused, Err: fmt.Errorf("app %s has no deployment", ref)}
	}
	if err != nil {
		return "", err
	}
	return app.Deployment.ID, nil
}

func printJSON(env *Env, v any) error {
	enc := json.NewEncoder(env.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
