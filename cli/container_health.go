package cli

import (
	"time"

	"naru/sandbox"
)

// healthText is Docker's word on the health of a running container.
func healthText(c sandbox.Container) string {
	switch {
	case c.Health == nil:
		return ""
	case c.Health.Status == sandbox.HealthStarting:
		return " (health: starting)"
	}
	return " (" + c.Health.Status + ")"
}

// The shapes of docker inspect.
type inspectedHealth struct {
	Status        string
	FailingStreak int
	Log           []inspectedCheck
}

type inspectedCheck struct {
	Start, End string
	ExitCode   int
	Output     string
}

type inspectedRestart struct {
	Name              string
	MaximumRetryCount int
}

func inspectHealth(h *sandbox.Health) *inspectedHealth {
	if h == nil {
		return nil
	}
	shown := &inspectedHealth{Status: h.Status, FailingStreak: h.FailingStreak, Log: []inspectedCheck{}}
	for _, c := range h.Log {
		shown.Log = append(shown.Log, inspectedCheck{
			Start: c.Start.Format(time.RFC3339Nano), End: c.End.Format(time.RFC3339Nano), ExitCode: c.ExitCode, Output: c.Output,
		})
	}
	return shown
}

func inspectRestart(r sandbox.Restart) inspectedRestart {
	if r.Policy == "" {
		return inspectedRestart{Name: sandbox.RestartNo}
	}
	return inspectedRestart{r.Policy, r.Max}
}
