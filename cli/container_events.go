package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"naru/sandbox"
	"naru/sandbox/events"
)

// eventsFlags are the flags of events.
type eventsFlags struct {
	since, until, format string
	filters              []string
	json                 bool
}

func eventsCommand(env *Env) *cobra.Command {
	f := eventsFlags{}
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what happens to containers, as it happens",
		Args:  cobra.NoArgs,
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, _ []string) error {
			return showEvents(ctx, env, e, f)
		}),
	}
	c.Flags().StringVar(&f.since, "since", "", "begin with what is on record since then: a duration (10m), a time (RFC 3339) or seconds since 1970")
	c.Flags().StringVar(&f.until, "until", "", "end then, likewise")
	c.Flags().StringArrayVarP(&f.filters, "filter", "f", nil, "container=NAME, event=ACTION, image=NAME, label=KEY[=VALUE] or type=container")
	c.Flags().BoolVar(&f.json, "json", false, "as JSON, one event in a line, with Docker's names")
	c.Flags().StringVar(&f.format, "format", "", "Go template for each event, or json")
	return c
}

// parseTime reads a duration that is past, a time, or seconds since 1970.
func parseTime(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if seconds, err := strconv.ParseFloat(s, 64); err == nil {
		return time.UnixMilli(int64(seconds * 1000)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("%s %q: want a duration, a time or seconds since 1970", flag, s)
}

func showEvents(ctx context.Context, env *Env, e *sandbox.Engine, f eventsFlags) error {
	now := time.Now()
	q := events.Query{}
	var err error
	if q.Since, err = parseTime("--since", f.since, now); err != nil {
		return err
	}
	if q.Until, err = parseTime("--until", f.until, now); err != nil {
		return err
	}
	if f.since == "" && (q.Until.IsZero() || q.Until.After(now)) {
		q.Since = now
	}
	q.Follow = q.Until.IsZero() || q.Until.After(now)
	if q.Keep, err = eventFilter(f.filters); err != nil {
		return err
	}
	err = e.Events(ctx, q, func(ev events.Event) error { return printEvent(env, ev, f) })
	if ctx.Err() != nil {
		return nil // the person has seen enough
	}
	return err
}

// dockerEvent has the names of Docker's events.
type dockerEvent struct {
	Status   string      `json:"status"`
	ID       string      `json:"id"`
	From     string      `json:"from"`
	Type     string      `json:"Type"`
	Action   string      `json:"Action"`
	Actor    dockerActor `json:"Actor"`
	Scope    string      `json:"scope"`
	Time     int64       `json:"time"`
	TimeNano int64       `json:"timeNano"`
}

type dockerActor struct {
	ID         string            `json:"ID"`
	Attributes map[string]string `json:"Attributes"`
}

func printEvent(env *Env, ev events.Event, f eventsFlags) error {
	shown := dockerEvent{
		Status: ev.Action, ID: ev.ID, From: ev.Attributes["image"], Type: "container", Action: ev.Action, Scope: "local",
		Actor: dockerActor{ev.ID, ev.Attributes}, Time: ev.Time.Unix(), TimeNano: ev.Time.UnixNano(),
	}
	if f.json || f.format == "json" {
		return json.NewEncoder(env.Stdout).Encode(shown)
	}
	if f.format != "" {
		return printFormat(env.Stdout, f.format, []any{shown})
	}
	pairs := []string{}
	for key, value := range ev.Attributes {
		pairs = append(pairs, key+"="+value)
	}
	slices.Sort(pairs)
	_, err := fmt.Fprintf(env.Stdout, "%s container %s %s (%s)\n", ev.Time.Local().Format("2006-01-02T15:04:05.000000000Z07:00"), ev.Action, ev.ID, strings.Join(pairs, ", "))
	return err
}

// eventFilter reads --filter: different keys must all hold, one key twice means
// either.
func eventFilter(filters []string) (func(events.Event) bool, error) {
	wanted := map[string][]string{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok || value == "" || !slices.Contains([]string{"container", "event", "image", "label", "type"}, key) {
			return nil, usage("--filter %q: want container=, event=, image=, label= or type=", f)
		}
		wanted[key] = append(wanted[key], value)
	}
	return func(ev events.Event) bool {
		for key, values := range wanted {
			if !slices.ContainsFunc(values, func(value string) bool { return eventMatches(ev, key, value) }) {
				return false
			}
		}
		return true
	}, nil
}

func eventMatches(ev events.Event, key, value string) bool {
	switch key {
	case "container":
		return ev.Attributes["name"] == value || strings.HasPrefix(ev.ID, value)
	case "event":
		return ev.Action == value || strings.HasPrefix(ev.Action, value+":") // health_status: healthy
	case "image":
		have := ev.Attributes["image"]
		return have == value || have == value+":latest" || have+":latest" == value
	case "type":
		return value == "container"
	}
	name, want, isSet := strings.Cut(value, "=") // a label
	have, ok := ev.Attributes[name]
	return ok && (!isSet || have == want)
}
