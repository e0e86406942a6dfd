package cli

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"naru/sandbox"
)

// filter says whether a container fits a value of --filter, which it has checked
// once.
type filter func(value string) (func(sandbox.Container) bool, error)

// filters are those of ps, by key.
func filters() map[string]filter {
	return map[string]filter{
		"ancestor": filterAncestor, "exited": filterExited, "health": filterHealth, "id": filterID, "label": filterLabel,
		"name": filterName, "network": filterNetwork, "status": filterStatus, "volume": filterVolume,
	}
}

func filterKeys() []string {
	keys := []string{}
	for key := range filters() {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// parseFilters reads --filter. Different keys must all hold; one key twice means
// either, but for labels, of which all must be there, as in Docker.
func parseFilters(list []string) (func(sandbox.Container) bool, error) {
	groups := map[string][]func(sandbox.Container) bool{}
	for _, f := range list {
		key, value, ok := strings.Cut(f, "=")
		parse, known := filters()[key]
		if !ok || !known {
			return nil, usage("--filter %q: want KEY=VALUE with %s", f, strings.Join(filterKeys(), ", "))
		}
		fits, err := parse(value)
		if err != nil {
			return nil, err
		}
		if key == "label" {
			key = f
		}
		groups[key] = append(groups[key], fits)
	}
	return func(c sandbox.Container) bool {
		for _, group := range groups {
			if !slices.ContainsFunc(group, func(fits func(sandbox.Container) bool) bool { return fits(c) }) {
				return false
			}
		}
		return true
	}, nil
}

func filterAncestor(value string) (func(sandbox.Container) bool, error) {
	id := strings.TrimPrefix(value, "sha256:")
	return func(c sandbox.Container) bool {
		return c.Image == value || c.Image == value+":latest" || c.Image+":latest" == value ||
			len(id) >= 4 && strings.HasPrefix(strings.TrimPrefix(c.ImageID, "sha256:"), id)
	}, nil
}

func filterExited(value string) (func(sandbox.Container) bool, error) {
	code, err := strconv.Atoi(value)
	if err != nil {
		return nil, usage("--filter exited=%s: want an exit code", value)
	}
	return func(c sandbox.Container) bool { return c.State == "stopped" && c.ExitKnown && c.ExitCode == code }, nil
}

func filterHealth(value string) (func(sandbox.Container) bool, error) {
	if !slices.Contains([]string{"none", sandbox.HealthStarting, sandbox.HealthHealthy, sandbox.HealthUnhealthy}, value) {
		return nil, usage("--filter health=%s: want starting, healthy, unhealthy or none", value)
	}
	return func(c sandbox.Container) bool {
		if c.Health == nil {
			return value == "none"
		}
		return c.Health.Status == value
	}, nil
}

func filterID(value string) (func(sandbox.Container) bool, error) {
	return func(c sandbox.Container) bool { return strings.HasPrefix(c.ID, value) }, nil
}

func filterLabel(value string) (func(sandbox.Container) bool, error) {
	key, want, isSet := strings.Cut(value, "=")
	return func(c sandbox.Container) bool {
		have, ok := c.Labels[key]
		return ok && (!isSet || have == want)
	}, nil
}

func filterName(value string) (func(sandbox.Container) bool, error) {
	pattern, err := regexp.Compile(value)
	if err != nil {
		return nil, usage("--filter name=%s: %w", value, err)
	}
	return func(c sandbox.Container) bool { return pattern.MatchString(c.Name) || pattern.MatchString("/"+c.Name) }, nil
}

func filterNetwork(value string) (func(sandbox.Container) bool, error) {
	return func(c sandbox.Container) bool { return c.Config.Network == value }, nil
}

func filterStatus(value string) (func(sandbox.Container) bool, error) {
	states := []string{"created", "running", "paused", sandbox.StateRestarting, "stopped", "dead"}
	if value == "exited" {
		value = "stopped"
	}
	if !slices.Contains(states, value) {
		return nil, usage("--filter status=%s: want created, running, paused, restarting, exited or dead", value)
	}
	return func(c sandbox.Container) bool { return c.State == value }, nil
}

func filterVolume(value string) (func(sandbox.Container) bool, error) {
	return func(c sandbox.Container) bool {
		return slices.ContainsFunc(c.Config.Mounts, func(m sandbox.Mount) bool { return m.Target == value || m.Source == value && value != "" })
	}, nil
}
