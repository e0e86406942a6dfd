package main

import (
	"context"
	_ "embed" // idle.c
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"naru/sandbox"
)

//go:embed stamp/idle.c
var idleSource []byte

// Idle containers, and how long they are watched.
const (
	idleCount = 100
	idleTime  = 10 * time.Second
)

// idle starts containers that do nothing and looks at what stays beside them: the
// memory of processes of ours that nobody shares with them, and the time they take.
func (b *startBench) idle(ctx context.Context, found *budgets) (err error) {
	config := sandbox.ContainerConfig{Image: "stamp", Entrypoint: []string{"/idle"}, Network: sandbox.NetworkNone, Memory: 64 << 20, Pids: 64}
	names := map[string]bool{}
	defer func() {
		for id := range names {
			err = errors.Join(err, b.e.Remove(context.WithoutCancel(ctx), id, true))
		}
	}()
	for range idleCount {
		c, err := b.e.Run(ctx, config, sandbox.Stdio{})
		if err != nil {
			return err
		}
		names[c.ID] = true
	}
	before, err := beside(names)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(idleTime):
	}
	after, err := beside(names)
	if err != nil {
		return err
	}
	each := float64(after.private) / float64(len(names))
	ticks, switches := after.ticks-before.ticks, after.switches-before.switches
	fmt.Printf("%d idle containers: %d processes of ours, each container %.0f KiB private and %.0f KiB of page tables; in %s %d ticks and %d context switches in all\n",
		len(names), after.processes, each, float64(after.tables)/float64(len(names)), idleTime, ticks, switches)
	found.add("memory beside an idle container", "≤ 1024 KiB private", fmt.Sprintf("%.0f KiB (of %d)", each, idleCount), each <= 1024)
	found.add("processor time of idle containers", "none in 10 s", fmt.Sprintf("%d ticks, %d switches", ticks, switches), ticks == 0)
	return nil
}

// usage is what processes have and have used; memory in KiB.
type usage struct{ processes, private, tables, ticks, switches int }

// beside adds up the processes of ours that belong to containers, told by their name
// in ps(1): "naru:" and as much of the id as the kernel keeps of it.
func beside(ids map[string]bool) (sum usage, err error) {
	const kept = 15 - len("naru:") // TASK_COMM_LEN without its zero
	prefixes := map[string]bool{}
	for id := range ids {
		prefixes["naru:"+id[:kept]] = true
	}
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return sum, err
	}
	for _, path := range comms {
		name, err := os.ReadFile(path)
		if err != nil || !prefixes[strings.TrimSpace(string(name))] {
			continue // ended meanwhile, or somebody else's
		}
		if err := sum.addProcess(filepath.Dir(path)); err != nil {
			return sum, err
		}
	}
	if sum.processes == 0 {
		return sum, errors.New("no process beside the containers was found")
	}
	return sum, nil
}

func (u *usage) addProcess(dir string) error {
	u.processes++
	for file, fields := range map[string]map[string]*int{
		"smaps_rollup": {"Private_Clean:": &u.private, "Private_Dirty:": &u.private},
		"status":       {"VmPTE:": &u.tables, "voluntary_ctxt_switches:": &u.switches, "nonvoluntary_ctxt_switches:": &u.switches},
	} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 2 || fields[f[0]] == nil {
				continue
			}
			n, err := strconv.Atoi(f[1])
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			*fields[f[0]] += n
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold anything (proc_pid_stat(5))
	f := strings.Fields(rest)
	if len(f) < 13 {
		return fmt.Errorf("%s/stat is short", dir)
	}
	for _, field := range f[11:13] { // utime, stime
		n, err := strconv.Atoi(field)
		if err != nil {
			return err
		}
		u.ticks += n
	}
	return nil
}
