package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// call is what happens to one system call: the first condition that holds decides,
// else the verdict.
type call struct {
	number  uint32
	conds   []cond
	verdict uint32
}

type cond struct {
	args    []specs.LinuxSeccompArg
	verdict uint32
}

// segment is a range of numbers with one outcome; it ends where the next begins.
type segment struct {
	from    uint32
	verdict uint32
	conds   []cond
	narrow  bool
}

// segments lists the ranges of all numbers in order, the first from 0.
func (p *policy) segments(a arch) []segment {
	calls, newest := p.calls(a)
	segs := make([]segment, 0, 2*len(calls)+2)
	add := func(s segment) {
		if n := len(segs); n > 0 && len(s.conds) == 0 && len(segs[n-1].conds) == 0 && segs[n-1].verdict == s.verdict {
			return
		}
		segs = append(segs, s)
	}
	// gap fills [from, to) with what is not in the policy.
	gap := func(from, to uint64) {
		if newest == nil || from > uint64(*newest) && a.private != 0 && from >= uint64(a.private) {
			add(segment{from: uint32(from), verdict: p.deflt})
			return
		}
		end := uint64(*newest) + 1
		if from < min(end, to) {
			add(segment{from: uint32(from), verdict: p.deflt})
		}
		if from = max(from, end); from < to {
			add(segment{from: uint32(from), verdict: p.unknown()})
			if private := uint64(a.private); private > from && private < to {
				add(segment{from: a.private, verdict: p.deflt})
			}
		}
	}
	next := uint64(0)
	for _, c := range calls {
		if next < uint64(c.number) {
			gap(next, uint64(c.number))
		}
		add(segment{from: c.number, verdict: c.verdict, conds: c.conds, narrow: a.narrow})
		next = uint64(c.number) + 1
	}
	gap(next, 1<<32)
	return segs
}

// unknown is the verdict on numbers newer than the policy.
func (p *policy) unknown() uint32 {
	if p.deflt&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		return enosys
	}
	return p.deflt
}

// calls are the rules by number, in order, and the highest number that the policy
// names, if it names one.
func (p *policy) calls(a arch) (calls []call, newest *uint32) {
	var behind map[string]multiplexer
	if a.name == specs.ArchX86 {
		behind = multiplexed()
	}
	rules := make([]*rule, 0, len(p.rules))
	keys := make([]uint64, 0, 512) // the number, and below it the place in rules: one sort keeps their order
	add := func(number uint32, r *rule) {
		if rules[len(rules)-1] != r {
			rules = append(rules, r)
		}
		keys = append(keys, uint64(number)<<32|uint64(len(rules)-1))
	}
	for i := range p.rules {
		r := &p.rules[i]
		rules = append(rules, r)
		for _, name := range r.names {
			n, ok := a.number(name)
			if !ok {
				continue
			}
			if (newest == nil || n > *newest) && (a.private == 0 || n < a.private) {
				newest = &n
			}
			add(n, r)
		}
		p.multiplex(a, r, behind, add)
	}
	slices.Sort(keys)
	for len(keys) > 0 {
		c := call{number: uint32(keys[0] >> 32), verdict: p.deflt}
		n := 1
		for n < len(keys) && uint32(keys[n]>>32) == c.number {
			n++
		}
		if p.together(&c, rules, keys[:n]) {
			calls = append(calls, c)
		}
		keys = keys[n:]
	}
	return calls, newest
}

// together is what the rules of one call mean; false if that is the default.
func (p *policy) together(c *call, rules []*rule, keys []uint64) (matters bool) {
	for _, k := range keys {
		r := rules[uint32(k)]
		if len(r.args) == 0 && r.verdict != p.deflt {
			c.conds, c.verdict = nil, r.verdict
			return true
		}
		if len(r.args) > 0 {
			c.conds = append(c.conds, cond{r.args, r.verdict})
			matters = matters || r.verdict != p.deflt
		}
	}
	return matters
}

// multiplex adds the rule once more, for 386's calls of calls. A rule about arguments,
// which cannot be seen there, holds whatever they are if it is stricter than the
// default, and not at all if it is not.
func (p *policy) multiplex(a arch, r *rule, behind map[string]multiplexer, add func(uint32, *rule)) {
	if behind == nil || len(r.args) > 0 && !stricter(r.verdict, p.deflt) {
		return
	}
	for _, name := range r.names {
		if m, ok := behind[name]; ok {
			n, _ := a.number(m.call)
			args := []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpMaskedEqual, Value: m.mask, ValueTwo: m.value}}
			add(n, &rule{verdict: r.verdict, args: args})
		}
	}
}

// stricter compares verdicts as the kernel does among filters: their actions are
// numbers, as signed ones the lower comes first (seccomp(2)).
func stricter(a, b uint32) bool {
	return int32(a&unix.SECCOMP_RET_ACTION_FULL) < int32(b&unix.SECCOMP_RET_ACTION_FULL)
}
