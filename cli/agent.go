package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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

func (c *connection) client(env *Env) *Client {
	if c.url != "" {
		return NewClient(c.url, os.Getenv("NARU_TOKEN"))
	}
	return NewLocalClient(filepath.Join(env.Run, socketName))
}

// agentError gives what the agent refused its exit code.
func agentError(err error) error {
	var problem *api.Problem
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNoAgent):
		return &ExitError{Code: exitNoAgent, Err: err}
	case errors.As(err, &problem) && problem.Status == http.StatusNotFound:
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
			client := f.client(env)
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
			client := f.client(env)
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
			return agentError(err)
		}
	}
	for {
		d, err := client.Deployment(limit, id, time.Minute)
		if errors.Is(context.Cause(limit), errTimeout) {
			return &ExitError{Code: exitTimeout, Err: fmt.Errorf("deployment %s has not ended after %s and goes on", id, f.timeout)}
		}
		if err != nil {
			return agentError(err)
		}
		if d.State.Final() {
			return f.end(env, d)
		}
	}
}

// end prints how a deployment ended, and returns its exit code as an error.
func (f *following) end(env *Env, d api.Deployment) error {
	serves := "nothing serves"
	if d.Serves > 0 {
		serves = fmt.Sprintf("release %d serves", d.Serves)
	}
	var err error
	if f.asJSON {
		err = printJSON(env, d)
	} else if exitCode(d.State) == 0 {
		_, err = fmt.Fprintf(env.Stdout, "%s: %s\n", d.State, serves)
	}
	switch code := exitCode(d.State); {
	case err != nil || code == 0:
		return err
	case f.asJSON:
		return &ExitError{Code: code}
	default:
		return &ExitError{Code: code, Err: fmt.Errorf("%s, %s: %s", d.State, serves, d.Error)}
	}
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
		Use:   "cancel DEPLOYMENT",
		Short: "Cancel a deployment that waits, fetches or builds; a switch of traffic is not cancelled",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := conn.client(env).Cancel(c.Context(), args[0])
			if err != nil {
				return agentError(err)
			}
			_, err = fmt.Fprintf(env.Stdout, "deployment %s is %s\n", d.ID, d.State)
			return err
		},
	}
	conn.flags(c)
	return c
}

func printJSON(env *Env, v any) error {
	enc := json.NewEncoder(env.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
