package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"naru/sandbox/image"
	"naru/sandbox/runtime"
	"naru/sandbox/runtime/cgroup"
)

// Living is the part of a ContainerConfig that says how a container lives: its
// standard streams and log, and who looks after it when nobody is there.
type Living struct {
	Terminal bool `json:"terminal,omitempty"` // its standard streams are a terminal
	Stdin    bool `json:"stdin,omitempty"`    // Attach can write to its standard input
	Detached bool `json:"detached,omitempty"` // nobody waits for it: with Remove its monitor sees to that
	Init     bool `json:"init,omitempty"`     // an init of ours is its first process

	Restart Restart `json:"restart,omitzero"`
	// Health is the check that runs; nil: the image's. Zero fields are the image's
	// or Docker's defaults. Test NONE switches the image's off.
	Health *image.Healthcheck `json:"health,omitempty"`

	LogMax   int64 `json:"log_max,omitempty"`   // bytes of log in all; 0: runtime.DefaultLogMax
	LogFiles int   `json:"log_files,omitempty"` // that share LogMax; 0: two
}

// Restart says when a container that has ended is started again.
type Restart struct {
	Policy string `json:"policy,omitempty"` // "" or one of the policies below
	Max    int    `json:"max,omitempty"`    // on-failure: how often; 0: no limit
}

// Restart policies, in Docker's words.
const (
	RestartNo            = "no"
	RestartAlways        = "always"
	RestartUnlessStopped = "unless-stopped" // after a boot not, if a person had stopped it
	RestartOnFailure     = "on-failure"     // after a code other than 0
)

// ParseRestart reads "always", "on-failure:3" and the like.
func ParseRestart(s string) (Restart, error) {
	name, count, counted := strings.Cut(s, ":")
	r := Restart{Policy: name}
	switch {
	case s == "" || s == RestartNo:
		return Restart{}, nil
	case name != RestartAlways && name != RestartUnlessStopped && name != RestartOnFailure:
		return r, fmt.Errorf("restart policy %q: want no, always, unless-stopped or on-failure[:count]", s)
	case counted && name != RestartOnFailure:
		return r, fmt.Errorf("restart policy %q: only on-failure has a count", s)
	case counted:
		n, err := strconv.Atoi(count)
		if err != nil || n < 0 {
			return r, fmt.Errorf("restart policy %q: the count is no number", s)
		}
		r.Max = n
	}
	return r, nil
}

func (r Restart) wanted() bool { return r.Policy != "" && r.Policy != RestartNo }

// String is what ParseRestart reads.
func (r Restart) String() string {
	switch {
	case !r.wanted():
		return RestartNo
	case r.Max > 0:
		return r.Policy + ":" + strconv.Itoa(r.Max)
	}
	return r.Policy
}

// checkLiving refuses what contradicts itself.
func (c *ContainerConfig) checkLiving() error {
	if _, err := ParseRestart(c.Restart.String()); err != nil {
		return err
	}
	if c.Restart.wanted() && c.Remove {
		return errors.New("a container that is removed at its end cannot be restarted")
	}
	if c.LogMax != 0 && c.LogMax < minLog {
		return fmt.Errorf("log of %d bytes: at least %d are needed", c.LogMax, minLog)
	}
	if c.LogFiles < 0 || c.LogFiles > maxLogFiles {
		return fmt.Errorf("%d log files: want 1 to %d", c.LogFiles, maxLogFiles)
	}
	return checkHealth(c.Health)
}

// Bounds of a log.
const (
	minLog      = 8 << 10
	maxLogFiles = 100
)

// enliven completes a planned record by what the image says of the container's life.
func (r *record) enliven(img image.RunConfig) {
	c := &r.Config
	c.Health = mergeHealth(c.Health, img.Healthcheck, img.Shell)
	if !c.Terminal {
		return
	}
	p := *r.Process
	p.Terminal = true
	p.Env = environment([]string{"TERM=xterm"}, p.Env)
	r.Process = &p
}

// liveConfig puts the container's life into what the runtime is asked to make.
func (e *Engine) liveConfig(r *record, c *runtime.Config) error {
	l := r.Config.Living
	c.OpenStdin, c.Init, c.LogMax, c.LogFiles = l.Stdin && !l.Terminal, l.Init, l.LogMax, l.LogFiles
	calls := l.Restart.wanted() || l.Health != nil
	if !calls && !(l.Detached && r.Config.Remove && len(e.callback) > 0) {
		return nil
	}
	if len(e.callback) == 0 {
		return errNoCallback()
	}
	s, err := e.loadLife(r.ID)
	if err != nil {
		return err
	}
	c.Callback = &runtime.Callback{
		Args: append(e.callback[:len(e.callback):len(e.callback)], r.ID), Cgroup: e.events(),
		Ended: true, Delay: s.Delay, DelayMin: 0, Settled: settledTime,
	}
	if l.Restart.wanted() {
		c.Callback.DelayMin = firstDelay
	}
	if h := l.Health; h != nil {
		c.Callback.First, c.Callback.Every, c.Callback.EverySoon = h.Interval, h.Interval, h.StartInterval
		if h.StartPeriod > 0 {
			c.Callback.First = h.StartInterval
		}
	}
	return nil
}

func errNoCallback() error {
	return errors.New("restart policies and health checks need a program that the monitor can call back: this engine has none")
}

// events is the cgroup of the programs that monitors call back.
func (e *Engine) events() string { return "naru-" + e.hash + "/events" }

// removeEvents removes that cgroup, unless somebody is in it.
func (e *Engine) removeEvents() {
	host, err := cgroup.Detect()
	if err == nil && host.Unified != "" {
		dir := filepath.Join(host.Unified, e.events())
		if os.Remove(dir) == nil {
			_ = os.Remove(filepath.Dir(dir)) // busy where there are other containers
		}
	}
}

// Back-off between restarts, as Docker has it.
const (
	firstDelay  = 100 * time.Millisecond
	maxDelay    = time.Minute
	settledTime = 10 * time.Second // who runs so long begins with firstDelay again
)

// endEvents ends what monitors have called, or wait to call, for containers that are
// gone.
func (e *Engine) endEvents(ctx context.Context) error {
	host, err := cgroup.Detect()
	if err != nil || host.Unified == "" {
		return err
	}
	group := host.Open(e.events())
	if err := group.Kill(ctx); err != nil {
		return err
	}
	return group.Remove()
}
