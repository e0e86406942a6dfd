package cgroup

import (
	"math"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// cpu plans resources.cpu; times are microseconds, a negative quota is no limit.
func (p *planner) cpu(c *specs.LinuxCPU) {
	if c == nil {
		return
	}
	idle := func() {
		if c.Idle != nil {
			p.put(setting{field: "cpu.idle", value: *c.Idle, text: strconv.FormatInt(*c.Idle, 10)}, home{"cpu", "cpu.idle", "cpu.idle"})
		}
	}
	if c.Idle != nil && *c.Idle == 0 {
		idle()
	}
	if n := c.Shares; n != nil && *n != 0 {
		s := setting{field: "cpu.shares", value: *n, text: strconv.FormatUint(*n, 10), check: true}
		if p.v2("cpu") {
			s.text = strconv.FormatUint(weight(*n), 10)
		}
		p.put(s, home{"cpu", "cpu.shares", "cpu.weight"})
	}
	if c.Idle != nil && *c.Idle != 0 {
		idle() // an idle group refuses a weight
	}
	p.bandwidth(c)
	if n := number(c.RealtimeRuntime); n != 0 {
		p.put(setting{field: "cpu.realtimeRuntime", value: n, text: strconv.FormatInt(n, 10)}, home{"cpu", "cpu.rt_runtime_us", ""})
	}
	if n := c.RealtimePeriod; n != nil && *n != 0 {
		p.put(setting{field: "cpu.realtimePeriod", value: *n, text: strconv.FormatUint(*n, 10)}, home{"cpu", "cpu.rt_period_us", ""})
	}
	if c.Cpus != "" {
		p.put(setting{field: "cpu.cpus", value: c.Cpus, text: c.Cpus}, home{"cpuset", "cpuset.cpus", "cpuset.cpus"})
	}
	if c.Mems != "" {
		p.put(setting{field: "cpu.mems", value: c.Mems, text: c.Mems}, home{"cpuset", "cpuset.mems", "cpuset.mems"})
	}
}

// bandwidth plans quota, period and burst. On v1, where the first two have a file
// each, they go in the order in which the group never gets more than it had or will
// have.
func (p *planner) bandwidth(c *specs.LinuxCPU) {
	var quota, period, burst []setting
	if n := number(c.Quota); n != 0 {
		quota = []setting{{field: "cpu.quota", value: n, text: amount(n, false)}}
	}
	if n := c.Period; n != nil && *n != 0 {
		period = []setting{{field: "cpu.period", value: *n, text: strconv.FormatUint(*n, 10)}}
	}
	if n := c.Burst; n != nil {
		burst = []setting{{field: "cpu.burst", value: *n, text: strconv.FormatUint(*n, 10)}}
	}
	putAll := func(list []setting, v1, v2 string) {
		for _, s := range list {
			p.put(s, home{"cpu", v1, v2})
		}
	}
	switch {
	case p.v2("cpu"):
		putAll(p.joined(quota, period), "", "cpu.max")
	case len(period) > 0 && len(quota) > 0 && p.shorter(*c.Period):
		putAll(quota, "cpu.cfs_quota_us", "")
		putAll(period, "cpu.cfs_period_us", "")
	default:
		putAll(period, "cpu.cfs_period_us", "")
		putAll(quota, "cpu.cfs_quota_us", "")
	}
	putAll(burst, "cpu.cfs_burst_us", "cpu.max.burst")
}

func (p *planner) shorter(period uint64) bool {
	old, err := strconv.ParseUint(p.read("cpu", "cpu.cfs_period_us"), 10, 64)
	return err == nil && period < old
}

// joined is v2's one value "<quota> <period>"; a part that is not named stays.
func (p *planner) joined(quota, period []setting) []setting {
	if len(quota) == 0 && len(period) == 0 {
		return nil
	}
	s := setting{}
	if len(quota) > 0 {
		s = quota[0]
		if strings.HasPrefix(s.text, "-") {
			s.text = "max"
		}
	} else {
		s = period[0]
		s.text, _, _ = strings.Cut(p.read("cpu", "cpu.max"), " ")
	}
	if len(period) > 0 {
		s.text += " " + period[0].text
	}
	return []setting{s}
}

// weight maps cpu.shares (2..262144, 1024 usual) onto cpu.weight (1..10000, 100
// usual): the curve through these three points that runc and crun use since 2025, in
// place of runtime-spec's older line which made 39 of the usual value.
func weight(shares uint64) uint64 {
	if shares <= 2 {
		return 1
	}
	if shares >= 262144 {
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}
