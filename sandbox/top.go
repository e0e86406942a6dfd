package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one process of a container.
type Process struct {
	Pid     int           `json:"pid"`     // on the host
	Inside  int           `json:"inside"`  // in the container's pid namespace
	Parent  int           `json:"parent"`  // on the host
	UID     int           `json:"uid"`     // in the container
	State   string        `json:"state"`   // a letter of ps(1): R, S, D, Z, T …
	CPU     time.Duration `json:"cpu"`     // used so far
	Memory  int64         `json:"memory"`  // resident bytes
	Started time.Time     `json:"started"` // to a hundredth of a second
	Command string        `json:"command"` // in brackets without arguments: a process that is ending
}

// Top lists the processes of a running container by pid. It reads the host's
// /proc; nothing is run in the container.
func (e *Engine) Top(_ context.Context, ref string) ([]Process, error) {
	r, rt, err := e.openRunning(ref)
	if err != nil {
		return nil, err
	}
	defer rt.Close() // the container needs no descriptor of ours
	group, err := e.group(r.ID)
	if err != nil {
		return nil, err
	}
	pids, err := group.Pids()
	if err != nil {
		return nil, err
	}
	slices.Sort(pids)
	list := []Process{}
	for _, pid := range slices.Compact(pids) {
		p, err := readProcess(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // just ended
		}
		if err != nil {
			return nil, fmt.Errorf("look at process %d: %w", pid, err)
		}
		if base := idBase + r.Block*idSize; r.Block >= 0 && p.UID >= base && p.UID < base+idSize {
			p.UID -= base
		}
		list = append(list, p)
	}
	return list, nil
}

// ticks per second of what /proc shows (sysconf(3), _SC_CLK_TCK); it is 100 everywhere
// that Go runs.
const ticks = 100

// readProcess reads proc_pid_stat(5), proc_pid_status(5) and proc_pid_cmdline(5).
func readProcess(pid int) (Process, error) {
	p := Process{Pid: pid}
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return p, err
	}
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')') // the name between may hold anything
	if open < 0 || end < open {
		return p, errors.New("stat: no name")
	}
	name, fields := string(stat[open+1:end]), strings.Fields(string(stat[end+1:]))
	if len(fields) < 22 {
		return p, errors.New("stat: too short")
	}
	number := func(i int) int64 { // field i of the man page
		n, _ := strconv.ParseInt(fields[i-3], 10, 64) // the kernel writes numbers
		return n
	}
	p.State, p.Parent = fields[0], int(number(4))
	p.CPU = time.Duration(number(14)+number(15)) * time.Second / ticks
	p.Memory = number(24) * int64(os.Getpagesize())
	p.Started = bootTime().Add(time.Duration(number(22)) * time.Second / ticks)
	if p.UID, p.Inside, err = readStatus(dir); err != nil {
		return p, err
	}
	args, err := os.ReadFile(dir + "cmdline")
	if err != nil {
		return p, err
	}
	p.Command = strings.Join(strings.Split(strings.TrimRight(string(args), "\x00"), "\x00"), " ")
	if p.Command == "" {
		p.Command = "[" + name + "]"
	}
	return p, nil
}

func readStatus(dir string) (uid, inside int, err error) {
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch key {
		case "Uid":
			uid, err = strconv.Atoi(fields[0])
		case "NSpid":
			inside, err = strconv.Atoi(fields[len(fields)-1])
		}
		if err != nil {
			return 0, 0, fmt.Errorf("status: %w", err)
		}
	}
	return uid, inside, nil
}

func bootTime() time.Time {
	var up unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) // always there
	return time.Now().Add(-time.Duration(up.Nano()))
}
