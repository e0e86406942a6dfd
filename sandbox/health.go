package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"naru/internal/atomicfile"
	"naru/sandbox/image"
)

// Health states, in Docker's words.
const (
	HealthStarting  = "starting"
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
)

// Health is what the checks of a container have found.
type Health struct {
	Status        string        `json:"status"`
	FailingStreak int           `json:"failing_streak"`
	Log           []HealthCheck `json:"log"` // the last five, the newest last
}

// HealthCheck is one check: 0 is healthy, -1 was killed at its timeout.
type HealthCheck struct {
	Start    time.Time `json:"start"`
	End      time.Time `json:"end"`
	ExitCode int       `json:"exit_code"`
	Output   string    `json:"output"` // its first 4 KiB
}

const (
	healthFile   = "health.json"
	healthLog    = 5
	healthOutput = 4 << 10
)

// checkHealth refuses what is no check.
func checkHealth(h *image.Healthcheck) error {
	if h == nil {
		return nil
	}
	if len(h.Test) > 0 && h.Test[0] != "NONE" && (len(h.Test) < 2 || h.Test[0] != "CMD" && h.Test[0] != "CMD-SHELL") {
		return fmt.Errorf("health check %q: want NONE, CMD or CMD-SHELL and a command", h.Test)
	}
	for name, d := range map[string]time.Duration{"interval": h.Interval, "timeout": h.Timeout, "start period": h.StartPeriod, "start interval": h.StartInterval} {
		if d != 0 && d < time.Millisecond {
			return fmt.Errorf("health check: %s of %s is too short", name, d)
		}
	}
	if h.Retries < 0 {
		return fmt.Errorf("health check: %d retries", h.Retries)
	}
	return nil
}

// mergeHealth lays the container's check over the image's and both over Docker's
// defaults; nil is none. A shell form is resolved to the shell's arguments.
func mergeHealth(own, img *image.Healthcheck, shell []string) *image.Healthcheck {
	h := image.Healthcheck{Interval: 30 * time.Second, Timeout: 30 * time.Second, StartInterval: 5 * time.Second, Retries: 3}
	for _, over := range []*image.Healthcheck{img, own} {
		if over == nil {
			continue
		}
		if len(over.Test) > 0 {
			h.Test = over.Test
		}
		set(&h.Interval, over.Interval)
		set(&h.Timeout, over.Timeout)
		set(&h.StartPeriod, over.StartPeriod)
		set(&h.StartInterval, over.StartInterval)
		set(&h.Retries, over.Retries)
	}
	if len(h.Test) < 2 {
		return nil
	}
	if h.Test[0] == "CMD-SHELL" {
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		h.Test = append(append([]string{"CMD"}, shell...), h.Test[1])
	}
	return &h
}

func set[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

// health is what is known now; a container that was not checked yet is starting.
func (e *Engine) health(r *record) (Health, error) {
	h := Health{Status: HealthStarting}
	_, err := loadRun(filepath.Join(e.dir(r.ID), healthFile), &h)
	return h, err
}

// probe runs one check and writes down what it found. soon says that the container
// is still starting and is to be asked again after the start interval.
func (e *Engine) probe(ctx context.Context, r *record, c Container) (soon bool, err error) {
	check := r.Config.Health
	if check == nil {
		return false, nil
	}
	result, err := e.checkOnce(ctx, r)
	if errors.Is(err, ErrNotRunning) { // it has ended, or was paused, meanwhile
		return false, nil
	}
	if err != nil {
		result.ExitCode, result.Output = -1, err.Error()
	}
	h, err := e.health(r)
	if err != nil {
		return false, err
	}
	before, starting := h.Status, time.Since(c.Started) < check.StartPeriod
	h.add(result, starting, check.Retries)
	data, err := json.Marshal(h)
	if err != nil {
		return false, err
	}
	// After a power cut the container is not what was checked, so no disk is waited for.
	err = atomicfile.Replace(filepath.Join(e.dir(r.ID), healthFile), data, 0o600)
	if err == nil && h.Status != before {
		e.emit(r, "health_status: "+h.Status)
	}
	return starting && h.Status == HealthStarting, err
}

// add counts a result. A failure in the start period of a container that was never
// healthy does not count.
func (h *Health) add(c HealthCheck, starting bool, retries int) {
	h.Log = append(h.Log, c)
	h.Log = h.Log[max(0, len(h.Log)-healthLog):]
	switch {
	case c.ExitCode == 0:
		h.Status, h.FailingStreak = HealthHealthy, 0
	case starting && h.Status == HealthStarting:
	default:
		if h.FailingStreak++; h.FailingStreak >= retries {
			h.Status = HealthUnhealthy
		}
	}
}

// checkOnce runs the check in the container, for no longer than its timeout.
func (e *Engine) checkOnce(ctx context.Context, r *record) (HealthCheck, error) {
	check := r.Config.Health
	read, write, err := os.Pipe()
	if err != nil {
		return HealthCheck{}, fmt.Errorf("health check: %w", err)
	}
	output := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(read, healthOutput)) // what could be read says what there is to say
		output <- b
		_, _ = io.Copy(io.Discard, read)
		read.Close()
	}()
	result := HealthCheck{Start: time.Now().UTC()}
	limited, cancel := context.WithTimeout(ctx, check.Timeout)
	defer cancel()
	result.ExitCode, err = e.Exec(limited, r.ID, ExecOptions{Args: check.Test[1:], Stdout: write, Stderr: write})
	_ = write.Close() // a pipe of our own: nothing can be lost
	result.End = time.Now().UTC()
	if limited.Err() != nil && ctx.Err() == nil {
		result.ExitCode, result.Output = -1, fmt.Sprintf("Health check exceeded timeout (%s)", check.Timeout)
		return result, nil
	}
	if refused(err) {
		result.Output = err.Error()
		return result, nil
	}
	if err != nil {
		return result, err
	}
	select {
	case b := <-output:
		result.Output = string(bytes.ToValidUTF8(b, []byte("\uFFFD")))
	case <-time.After(time.Second): // what it left in the background holds its output open
	}
	return result, nil
}
