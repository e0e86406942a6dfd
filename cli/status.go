package cli

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"naru/agent/api"
)

func statusCommand(env *Env) *cobra.Command {
	var conn connection
	var asJSON bool
	c := &cobra.Command{
		Use:   "status [APP]",
		Short: "What serves, and how the newest deployments ended",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client := conn.client(env)
			var apps []api.App
			var err error
			if len(args) == 1 {
				apps = make([]api.App, 1)
				apps[0], err = client.Status(c.Context(), args[0])
			} else {
				apps, err = client.Apps(c.Context())
			}
			if err != nil {
				return agentError(err)
			}
			if asJSON {
				return printJSON(env, apps)
			}
			return printApps(env, apps)
		},
	}
	conn.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printApps(env *Env, apps []api.App) error {
	w := tabwriter.NewWriter(env.Stdout, 0, 8, 3, ' ', 0)
	// A tabwriter keeps the first error for Flush.
	fmt.Fprintln(w, "APP\tLIVE\tCOMMIT\tDOMAINS\tLAST DEPLOYMENT\tNEXT RUN")
	for _, a := range apps {
		live, commit, next := "-", "-", "-"
		if a.Live != nil {
			live, commit = "r"+strconv.Itoa(a.Live.Number), fmt.Sprintf("%.12s %s", a.Live.Commit, a.Live.Subject)
		}
		if len(a.NextRuns) > 0 {
			next = a.NextRuns[0].Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.Name, live, commit, strings.Join(a.Domains, " "), lastDeployment(a), next)
	}
	return w.Flush()
}

func lastDeployment(a api.App) string {
	d := a.Deployment
	if d == nil {
		return "-"
	}
	text := fmt.Sprintf("%s, %s, %s ago", d.State, d.Trigger.Kind, time.Since(d.Created).Round(time.Second))
	if !d.State.Final() && d.Step != "" {
		text += ", in " + d.Step
	}
	return text
}

func releasesCommand(env *Env) *cobra.Command {
	var conn connection
	var asJSON bool
	c := &cobra.Command{
		Use:   "releases APP",
		Short: "The releases of an app, and which of them can be rolled back to",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			list, err := conn.client(env).Releases(c.Context(), args[0])
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
	w := tabwriter.NewWriter(env.Stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "RELEASE\tCOMMIT\tIMAGE\tCREATED\tSTANDING")
	for _, r := range list {
		standing := "-"
		switch {
		case r.Live:
			standing = "live"
		case r.Kept:
			standing = "kept"
		}
		fmt.Fprintf(w, "r%d\t%.12s %s\t%.12s\t%s\t%s\n", r.Number, r.Commit, r.Subject,
			strings.TrimPrefix(r.Image, "sha256:"), r.Created.Local().Format(time.DateTime), standing)
	}
	return w.Flush()
}
