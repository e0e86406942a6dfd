package image

import (
	"fmt"
	"io"
	"regexp"
	"time"

	"naru/sandbox/build/progress"
)

// summary is what a build comes to in one line of a deployment's log, after all
// the lines of its steps: what was cached, and what took longest.
type summary struct {
	begun         time.Time
	steps, cached int
	running       map[int]progress.Event
	slowest       string
	longest       time.Duration
}

// ofDockerfile matches the name of a step that a Dockerfile asks for.
var ofDockerfile = regexp.MustCompile(`^\[(?:.* )?\s*\d+/\d+\] `)

// event is Options.Progress of a build.
func (s *summary) event(e progress.Event) {
	if s.running == nil {
		s.running, s.begun = map[int]progress.Event{}, e.Time
	}
	switch e.Kind {
	case progress.Started:
		if ofDockerfile.MatchString(e.Name) {
			s.running[e.Step] = e
			s.steps++
		}
	case progress.Cached, progress.Done:
		step, ok := s.running[e.Step]
		if !ok {
			return
		}
		if e.Kind == progress.Cached {
			s.cached++
		} else if took := e.Time.Sub(step.Time); took > s.longest {
			s.longest, s.slowest = took, step.Name
		}
	}
}

// write says it, once the build is done.
func (s *summary) write(w io.Writer, now time.Time) error {
	if s.steps == 0 || w == nil {
		return nil
	}
	text := fmt.Sprintf("image built in %.1fs: %d steps, %d cached", now.Sub(s.begun).Seconds(), s.steps, s.cached)
	if s.longest >= time.Second {
		text += fmt.Sprintf("; slowest: %.80s, %.1fs", s.slowest, s.longest.Seconds())
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
