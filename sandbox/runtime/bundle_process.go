package runtime

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// CheckProcess is CheckBundle for one process of a container. Capabilities that do
// not exist, or that this process cannot give because it lacks them itself, are
// taken out with a warning, as the specification wants it.
func CheckProcess(p *specs.Process, s *specs.Spec) (warnings []string, err error) {
	if p.Cwd == "" {
		return nil, fmt.Errorf("process.cwd: missing")
	}
	if c := p.Capabilities; c != nil {
		possible, err := givable(mapOf(s).mapped())
		if err != nil {
			return nil, err
		}
		for name, set := range map[string]*[]string{"bounding": &c.Bounding, "effective": &c.Effective, "permitted": &c.Permitted,
			"inheritable": &c.Inheritable, "ambient": &c.Ambient} {
			*set = slices.DeleteFunc(*set, func(n string) bool {
				bit, err := capBits([]string{n})
				if err != nil || bit&possible == 0 {
					warnings = append(warnings, fmt.Sprintf("process.capabilities.%s: %s is unknown or not available here, ignored", name, n))
				}
				return err != nil || bit&possible == 0
			})
		}
		slices.Sort(warnings)
		c.Ambient = slices.DeleteFunc(c.Ambient, func(n string) bool {
			lacks := !slices.Contains(c.Inheritable, n) || !slices.Contains(c.Permitted, n)
			if lacks {
				warnings = append(warnings, fmt.Sprintf("process.capabilities.ambient: %s is not inheritable and permitted too, ignored", n))
			}
			return lacks
		})
	}
	if err := validateProcess(p, mapOf(s)); err != nil {
		return warnings, fmt.Errorf("process: %w", err)
	}
	seen := map[string]bool{}
	for i, r := range p.Rlimits {
		if seen[r.Type] {
			return warnings, fmt.Errorf("process.rlimits[%d].type: %q is listed twice", i, r.Type)
		}
		seen[r.Type] = true
		if r.Soft > r.Hard {
			return warnings, fmt.Errorf("process.rlimits[%d]: soft limit %d is above hard limit %d", i, r.Soft, r.Hard)
		}
	}
	return warnings, checkSchedule(p)
}

// givable are the capabilities that a process started here can have: all of them in
// a user namespace of its own, else those of this process.
func givable(mapped bool) (uint64, error) {
	if mapped {
		return ^uint64(0), nil
	}
	data := [2]unix.CapUserData{}
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

func checkSchedule(p *specs.Process) error {
	if s := p.Scheduler; s != nil {
		if _, ok := schedPolicies()[s.Policy]; !ok {
			return fmt.Errorf("process.scheduler.policy: unknown value %q", s.Policy)
		}
		for _, f := range s.Flags {
			if _, ok := schedFlags()[f]; !ok {
				return fmt.Errorf("process.scheduler.flags: unknown value %q", f)
			}
		}
	}
	if io := p.IOPriority; io != nil {
		if _, ok := ioClasses()[io.Class]; !ok {
			return fmt.Errorf("process.ioPriority.class: unknown value %q", io.Class)
		}
		if io.Priority < 0 || io.Priority > 7 {
			return fmt.Errorf("process.ioPriority.priority: %d is not from 0 to 7", io.Priority)
		}
	}
	if a := p.ExecCPUAffinity; a != nil {
		for field, list := range map[string]string{"initial": a.Initial, "final": a.Final} {
			if _, err := bitList(list); err != nil {
				return fmt.Errorf("process.execCPUAffinity.%s: %w", field, err)
			}
		}
	}
	if p.OOMScoreAdj != nil && (*p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000) {
		return fmt.Errorf("process.oomScoreAdj: %d is not from -1000 to 1000", *p.OOMScoreAdj)
	}
	return nil
}
