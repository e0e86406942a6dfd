package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/agent/api"
	"naru/pipeline"
)

func statusCommand(env *Env) *cobra.Command {
	var conn connection
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [APP]",
		Short: "What serves, and how the newest deployments ended",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := conn.client(env)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return statusOf(c.Context(), env, client, statusQuery{args[0], asJSON})
			}
			apps, err := client.Apps(c.Context())
			switch {
			case err != nil:
				return agentError(err)
			case asJSON:
				return printJSON(env, apps)
			}
			return printApps(env, apps)
		},
	}
	conn.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// statusQuery is what is asked about one app.
type statusQuery struct {
	app    string
	asJSON bool
}

// recent is how many deployments status APP shows.
const recent = 10

func statusOf(ctx context.Context, env *Env, client *Client, q statusQuery) error {
	app, err := client.Status(ctx, q.app)
	if err != nil {
		return agentError(err)
	}
	if q.asJSON {
		return printJSON(env, []api.App{app})
	}
	list, err := client.Deployments(ctx, q.app, recent)
	if err != nil {
		return agentError(err)
	}
	if err := printApps(env, []api.App{app}); err != nil {
		return err
	}
	rows := [][]string{}
	for _, d := range list {
		rows = append(rows, []string{d.ID, trigger(d), fmt.Sprintf("%.12s", d.Commit), ago(time.Since(d.Created)) + " ago", stateOf(d), fmt.Sprintf("%.120s", firstLine(d.Error))})
	}
	fmt.Fprintln(env.Stdout)
	return printTable(env.Stdout, []string{"DEPLOYMENT", "TRIGGER", "COMMIT", "ASKED", "STATE", "REASON"}, rows)
}

func trigger(d pipeline.Deployment) string {
	text := string(d.Trigger.Kind)
	if d.Trigger.By != "" && d.Trigger.By != text {
		text += " by " + d.Trigger.By
	}
	return text
}

// stateOf is the state, and the step of one that is under way.
func stateOf(d pipeline.Deployment) string {
	text := words(d.State)
	if !d.State.Final() && d.Step != "" {
		text += ", in " + d.Step
	}
	return text
}

func printApps(env *Env, apps []api.App) error {
	rows := [][]string{}
	for _, a := range apps {
		live, commit, next := "-", "-", "-"
		if a.Live != nil {
			live, commit = "r"+strconv.Itoa(a.Live.Number), fmt.Sprintf("%.12s %s", a.Live.Commit, a.Live.Subject)
		}
		if len(a.NextRuns) > 0 {
			next = slices.MinFunc(a.NextRuns, time.Time.Compare).Format(time.RFC3339)
		}
		last := "-"
		if d := a.Deployment; d != nil {
			last = fmt.Sprintf("%s, %s, %s ago", stateOf(*d), d.Trigger.Kind, ago(time.Since(d.Created)))
		}
		domains := strings.Join(a.Domains, " ")
		if !a.Configured {
			domains = "(no valid app file)"
		}
		rows = append(rows, []string{a.Name, live, commit, domains, last, next})
	}
	return printTable(env.Stdout, []string{"APP", "LIVE", "COMMIT", "DOMAINS", "LAST DEPLOYMENT", "NEXT RUN"}, rows)
}

func releasesCommand(env *Env) *cobra.Command {
	var conn connection
	var asJSON bool
	c := &cobra.Command{
		Use:   "releases APP",
		Short: "The releases of an app, and which of them can be rolled back to",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, err := conn.client(env)
			if err != nil {
				return err
			}
			list, err := client.Releases(c.Context(), args[0])
			if err != nil {
				return agentError(err)
			}
			if asJSON {
				return printJSON(env, list)
			}
			return printReleases(env, list)
		},
	}
	conn.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printReleases(env *Env, list []api.Release) error {
	rows := [][]string{}
	for _, r := range list {
		standing := "-"
		switch {
		case r.Live:
			standing = "live"
		case r.Kept:
			standing = "kept"
		}
		rows = append(rows, []string{
			"r" + strconv.Itoa(r.Number), fmt.Sprintf("%.12s %s", r.Commit, r.Subject), shortID(r.Image), r.Created.Local().Format(time.DateTime), standing,
		})
	}
	return printTable(env.Stdout, []string{"RELEASE", "COMMIT", "IMAGE", "CREATED", "STANDING"}, rows)
}
