package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"naru/internal/atomicfile"
	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
	"naru/sandbox/runtime/launch/step"
)

// Callback is a program on the host that the monitor of a container starts: once
// after its end, when exit.json is durable, and at intervals while it runs. It is
// what takes the place of a daemon: it may Open, Destroy and Create the container.
// When it is killed after an end, it is started again.
type Callback struct {
	// Args is the program, by its absolute path, with its arguments. Where the path
	// no longer exists, the file that it named at Create is run.
	Args []string
	// Cgroup is where it runs, below the unified hierarchy.
	Cgroup string
	// Ended runs it after the end: DelayMin later if the container ran at least
	// Settled, else Delay later.
	Ended                    bool
	Delay, DelayMin, Settled time.Duration
	// First is the time from the start to the first run, Every that from one run to
	// the next, EverySoon the same after exit code CallbackSoon. 0 means never.
	First, Every, EverySoon time.Duration
}

// CallbackSoon is the exit code of a callback that wants to run again after EverySoon.
const CallbackSoon = monitor.CallbackSoon

const fileCallback = "callback.json"

// callback puts the callback into the launch record, and into the state directory
// for a later monitor.
func (c *creation) callback() error {
	if c.Callback == nil {
		return nil
	}
	if len(c.Callback.Args) == 0 || !filepath.IsAbs(c.Callback.Args[0]) {
		return fmt.Errorf("callback %q: want an absolute path", c.Callback.Args)
	}
	b, err := json.Marshal(c.Callback)
	if err != nil {
		return err
	}
	if err := atomicfile.Replace(filepath.Join(c.StateDir, fileCallback), b, 0o600); err != nil {
		return fmt.Errorf("save callback: %w", err)
	}
	return c.Callback.launch(c.launch, c.prog, c.Monitor.host)
}

// againCallback gives a new monitor the callback of the one that died.
func againCallback(l *monitor.Launch, p *program, stateDir string, host cgroup.Host) error {
	b, err := os.ReadFile(filepath.Join(stateDir, fileCallback))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var c Callback
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("read callback: %w", err)
	}
	return c.launch(l, p, host)
}

func (c *Callback) launch(l *monitor.Launch, p *program, host cgroup.Host) error {
	if host.Unified != "" {
		f, err := os.Open(host.Unified)
		if err != nil {
			return err
		}
		l.CgroupRoot = p.index(f)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l.Hold[0] = p.index(null)
	call := &program{}
	from := int16(step.FirstFD + l.Hold[0])
	call.outside([3]int16{from, from, from})
	env := []string{"PATH=" + defaultPath, "HOME=/root", "LANG=C"}
	call.add(step.Call(stepExec, unix.SYS_EXECVE, step.S(c.Args[0]), step.V(c.Args), step.V(env)).Must(step.Sticky).
		On(-int(unix.ENOENT), 0).On(-int(unix.EACCES), 0))
	if exe, err := os.Open(c.Args[0]); err == nil { // it may be replaced or moved later
		l.Hold[1] = p.index(exe)
		call.add(step.Call(stepExec, unix.SYS_EXECVEAT, step.R(int16(step.FirstFD+l.Hold[1])), step.S(""), step.V(c.Args), step.V(env), step.I(unix.AT_EMPTY_PATH)))
	}
	call.add(step.Call(stepExec, step.Fail))
	ms := func(d time.Duration) uint64 { return uint64(d.Milliseconds()) }
	l.Callback = monitor.Callback{
		Program: call.steps, Ended: c.Ended, Delay: ms(c.Delay), DelayMin: ms(c.DelayMin), Settled: ms(c.Settled),
		Group: c.Cgroup, First: ms(c.First), Every: ms(c.Every), EverySoon: ms(c.EverySoon),
	}
	return nil
}

// outside makes a clean start for a program on the host.
func (p *program) outside(stdio [3]int16) {
	p.add(step.Call("setsid", unix.SYS_SETSID))
	for fd, reg := range stdio {
		p.add(step.Call("connect standard streams", unix.SYS_DUP3, step.R(reg), step.I(fd), step.I(0)))
	}
	p.add(step.Call("close on exec", unix.SYS_CLOSE_RANGE, step.I(3), step.I(^uint32(0)), step.I(unix.CLOSE_RANGE_CLOEXEC)))
	p.signals()
}
