package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// memory plans resources.memory; numbers are bytes, negative ones no limit. Its
// "kernel" is left out (package comment).
func (p *planner) memory(m *specs.LinuxMemory) {
	if m == nil {
		return
	}
	v2 := p.v2("memory")
	if n := number(m.Limit); n != 0 {
		p.put(setting{field: "memory.limit", value: n, text: amount(n, v2)}, home{"memory", "memory.limit_in_bytes", "memory.max"})
	}
	p.swap(number(m.Limit), number(m.Swap), v2)
	if n := number(m.Reservation); n != 0 {
		p.put(setting{field: "memory.reservation", value: n, text: amount(n, v2)}, home{"memory", "memory.soft_limit_in_bytes", "memory.low"})
	}
	if n := number(m.KernelTCP); n > 0 || n < 0 && !v2 {
		p.put(setting{field: "memory.kernelTCP", value: n, text: amount(n, v2)}, home{"memory", "memory.kmem.tcp.limit_in_bytes", ""})
	}
	if n := m.Swappiness; n != nil {
		s := setting{field: "memory.swappiness", value: *n, text: strconv.FormatUint(*n, 10)}
		p.put(s, home{"memory", "memory.swappiness", ""})
		if *n > 100 {
			p.fail(s, errors.New("it is a number from 0 to 100"))
		}
	}
	if b := m.DisableOOMKiller; b != nil && (*b || !v2) {
		p.put(setting{field: "memory.disableOOMKiller", value: *b, text: bit(*b)}, home{"memory", "memory.oom_control", ""})
	}
	if b := m.UseHierarchy; b != nil && !(*b && v2) { // v2 always accounts so
		p.put(setting{field: "memory.useHierarchy", value: *b, text: bit(*b), check: true}, home{"memory", "memory.use_hierarchy", ""})
	}
}

// swap plans the limit of memory and swap together, as runtime-spec and v1 count;
// v2 counts swap alone. No limit of memory means none of swap, unless one is named.
func (p *planner) swap(limit, swap int64, v2 bool) {
	files := home{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max"}
	file := files.v1
	if v2 {
		file = files.v2
	}
	if limit < 0 && swap == 0 {
		swap = -1
	}
	s := setting{field: "memory.swap", value: swap}
	switch {
	case swap == 0 || !p.has("memory", file) && (swap < 0 || noSwap()):
		return // without swap accounting: nothing to limit
	case !v2:
		s.text = amount(swap, false)
	default:
		var err error
		if s.text, err = p.swapAlone(limit, swap); err != nil {
			p.fail(s, err)
			return
		}
	}
	p.put(s, files)
}

func (p *planner) swapAlone(limit, swap int64) (string, error) {
	if limit == 0 && swap > 0 { // not named: what counts is what there is
		n, err := strconv.ParseInt(p.read("memory", "memory.max"), 10, 64)
		if err != nil {
			return "", errors.New("memory and swap together can have a limit on cgroup v2 only if memory has one")
		}
		limit = n
	}
	switch {
	case swap < 0 || limit < 0:
		return amount(swap, true), nil
	case swap < limit:
		return "", fmt.Errorf("less than the limit of memory alone (%d)", limit)
	}
	return amount(swap-limit, true), nil
}

// noSwap says that the machine has no swap at all now (proc_swaps(5): one line of heading).
func noSwap() bool {
	b, err := readFile("/proc/swaps")
	return err == nil && bytes.Count(b, []byte("\n")) <= 1
}

// checkUsage is resources.memory.checkBeforeUpdate: v2 would kill processes until
// the limit is kept.
func (g *Group) checkUsage(m *specs.LinuxMemory) error {
	if m == nil || m.CheckBeforeUpdate == nil || !*m.CheckBeforeUpdate || number(m.Limit) <= 0 {
		return nil
	}
	p := planner{g: g}
	file := "memory.usage_in_bytes"
	if p.v2("memory") {
		file = "memory.current"
	}
	usage, err := strconv.ParseInt(p.read("memory", file), 10, 64)
	s := setting{field: "memory.limit", value: *m.Limit}
	if err != nil {
		return s.fail(fmt.Errorf("read the usage that checkBeforeUpdate asks for: %w", err))
	}
	if usage > *m.Limit {
		return s.fail(fmt.Errorf("%d bytes are in use, and checkBeforeUpdate is set", usage))
	}
	return nil
}

// number is zero for what is not set.
func number(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}

func bit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}
