package sandbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"naru/sandbox/runtime"
	"naru/sandbox/runtime/cgroup"
)

// Stats is one reading of what a running container uses.
type Stats struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	cgroup.Stats
	Network []NetworkStats `json:"network,omitempty"` // without the loopback; none on the host's network
}

// NetworkStats are the counters of one interface, as the container sees it.
type NetworkStats struct {
	Interface string `json:"interface"`
	RxBytes   uint64 `json:"rxBytes"`
	RxPackets uint64 `json:"rxPackets"`
	RxErrors  uint64 `json:"rxErrors"`
	RxDropped uint64 `json:"rxDropped"`
	TxBytes   uint64 `json:"txBytes"`
	TxPackets uint64 `json:"txPackets"`
	TxErrors  uint64 `json:"txErrors"`
	TxDropped uint64 `json:"txDropped"`
}

// Stats reads the counters of a container, or returns ErrNotRunning.
func (e *Engine) Stats(_ context.Context, ref string) (Stats, error) {
	s := Stats{}
	r, rt, err := e.openRunning(ref)
	if err != nil {
		return s, err
	}
	defer rt.Close() // the container needs no descriptor of ours
	s.ID, s.Name = r.ID, r.Name
	group, err := e.group(r.ID)
	if err != nil {
		return s, err
	}
	counted, err := group.Stats()
	if err == nil {
		s.Stats = *counted
		if r.Config.Network != NetworkHost {
			s.Network, err = networkStats(rt.Pid())
		}
	}
	if rt.State() == runtime.Stopped || errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%w: %s", ErrNotRunning, r.Name)
	}
	return s, err
}

// openRunning opens a container that has processes.
func (e *Engine) openRunning(ref string) (*record, *runtime.Container, error) {
	id, err := e.resolve(ref)
	if err != nil {
		return nil, nil, err
	}
	r, err := e.load(id)
	if err != nil {
		return nil, nil, err
	}
	rt, err := e.open(id)
	if err != nil {
		return nil, nil, err
	}
	if rt == nil {
		return nil, nil, fmt.Errorf("%w: %s", ErrNotRunning, r.Name)
	}
	if rt.State() == runtime.Stopped {
		return nil, nil, errors.Join(fmt.Errorf("%w: %s", ErrNotRunning, r.Name), rt.Close())
	}
	return r, rt, nil
}

// networkStats reads /proc/<pid>/net/dev: two lines of headings, then one for each
// interface (proc_pid_net(5)).
func networkStats(pid int) ([]NetworkStats, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/net/dev")
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	var list []NetworkStats
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		name = strings.TrimSpace(name)
		numbers := strings.Fields(rest)
		if !ok || name == "lo" || len(numbers) < 12 {
			continue
		}
		n := NetworkStats{Interface: name}
		for i, to := range map[int]*uint64{
			0: &n.RxBytes, 1: &n.RxPackets, 2: &n.RxErrors, 3: &n.RxDropped, 8: &n.TxBytes, 9: &n.TxPackets, 10: &n.TxErrors, 11: &n.TxDropped,
		} {
			if *to, err = strconv.ParseUint(numbers[i], 10, 64); err != nil {
				return nil, fmt.Errorf("read counters of %s: %w", name, err)
			}
		}
		list = append(list, n)
	}
	return list, lines.Err()
}
