package runtime

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch/step"
)

// attributes are what the spec says of how a process is scheduled and labelled. They
// are set while the process may still set them.
func (p *program) attributes(proc *specs.Process, s *solo) {
	if s == nil {
		return
	}
	if proc.Scheduler != nil {
		p.add(step.Call("set scheduler", unix.SYS_SCHED_SETATTR, step.I(0), step.B(schedAttr(proc.Scheduler)), step.I(0)))
	}
	if io := proc.IOPriority; io != nil {
		const whoProcess, classShift = 1, 13 // ioprio_set(2)
		p.add(step.Call("set io priority", unix.SYS_IOPRIO_SET, step.I(whoProcess), step.I(0), step.I(ioClasses()[io.Class]<<classShift|io.Priority)))
	}
	if s.label != "" {
		p.add(step.Call("set security label", unix.SYS_WRITE, step.R(regLabel), step.S(s.label), step.I(len(s.label))))
	}
}

// machine sets what belongs to a container's init: the execution domain and the
// memory policy.
func (p *program) machine(l *specs.Linux) {
	if l.Personality != nil {
		p.add(step.Call("set personality", unix.SYS_PERSONALITY, step.I(personalities()[l.Personality.Domain])))
	}
	if m := l.MemoryPolicy; m != nil {
		mode, nodes, _ := memoryPolicy(m) // checked by validate
		args := []step.Arg{step.I(mode), step.I(0), step.I(0)}
		if len(nodes) > 0 {
			args[1], args[2] = step.B(nodes), step.I(len(nodes)*8+1)
		}
		p.add(step.Call("set memory policy", unix.SYS_SET_MEMPOLICY, args...))
	}
}

func personalities() map[specs.LinuxPersonalityDomain]int {
	return map[specs.LinuxPersonalityDomain]int{specs.PerLinux: 0, specs.PerLinux32: 8} // personality(2)
}

func ioClasses() map[specs.IOPriorityClass]int {
	return map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}
}

func schedPolicies() map[specs.LinuxSchedulerPolicy]uint32 {
	return map[specs.LinuxSchedulerPolicy]uint32{
		specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6,
	}
}

func schedFlags() map[specs.LinuxSchedulerFlag]uint64 {
	return map[specs.LinuxSchedulerFlag]uint64{
		specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2, specs.SchedFlagDLOverrun: 4, specs.SchedFlagKeepPolicy: 8,
		specs.SchedFlagKeepParams: 16, specs.SchedFlagUtilClampMin: 32, specs.SchedFlagUtilClampMax: 64,
	}
}

// schedAttr is struct sched_attr, sched_setattr(2).
func schedAttr(s *specs.Scheduler) []byte {
	flags := uint64(0)
	for _, f := range s.Flags {
		flags |= schedFlags()[f]
	}
	b := binary.NativeEndian.AppendUint32(nil, 48)
	b = binary.NativeEndian.AppendUint32(b, schedPolicies()[s.Policy])
	b = binary.NativeEndian.AppendUint64(b, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Nice))
	b = binary.NativeEndian.AppendUint32(b, uint32(s.Priority))
	b = binary.NativeEndian.AppendUint64(b, s.Runtime)
	b = binary.NativeEndian.AppendUint64(b, s.Deadline)
	return binary.NativeEndian.AppendUint64(b, s.Period)
}

// memoryPolicy returns the mode and the node mask of set_mempolicy(2).
func memoryPolicy(m *specs.LinuxMemoryPolicy) (mode int, mask []byte, err error) {
	flags := memoryFlags()
	mode, ok := memoryModes()[m.Mode]
	if !ok {
		return 0, nil, fmt.Errorf("linux.memoryPolicy.mode: unknown value %q", m.Mode)
	}
	for _, f := range m.Flags {
		bit, ok := flags[f]
		if !ok {
			return 0, nil, fmt.Errorf("linux.memoryPolicy.flags: unknown value %q", f)
		}
		mode |= bit
	}
	mask, err = bitList(m.Nodes)
	if err != nil {
		return 0, nil, fmt.Errorf("linux.memoryPolicy.nodes: %w", err)
	}
	return mode, mask, nil
}

// maxBit bounds the numbers in a list of processors or nodes.
const maxBit = 8191

// bitList turns "0-2,7" into a bit mask of whole machine words.
func bitList(list string) ([]byte, error) {
	var words []uint64
	for _, part := range strings.Split(list, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || from > to || to > maxBit {
			return nil, fmt.Errorf("invalid list %q", list)
		}
		for i := from; i <= to; i++ {
			for len(words) <= int(i/bits.UintSize) {
				words = append(words, 0)
			}
			words[i/64] |= 1 << (i % 64)
		}
	}
	var mask []byte
	for _, w := range words {
		mask = binary.NativeEndian.AppendUint64(mask, w)
	}
	return mask, nil
}

func memoryModes() map[specs.MemoryPolicyModeType]int {
	return map[specs.MemoryPolicyModeType]int{specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3,
		specs.MpolLocal: 4, specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6}
}

func memoryFlags() map[specs.MemoryPolicyFlagType]int {
	return map[specs.MemoryPolicyFlagType]int{specs.MpolFStaticNodes: 1 << 15, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFNumaBalancing: 1 << 13}
}

// MemoryPolicyModes and MemoryPolicyFlags are the words of linux.memoryPolicy.
func MemoryPolicyModes() []string { return sorted(memoryModes()) }

// MemoryPolicyFlags are its flags.
func MemoryPolicyFlags() []string { return sorted(memoryFlags()) }

func sorted[K ~string](m map[K]int) []string {
	var all []string
	for k := range m {
		all = append(all, string(k))
	}
	slices.Sort(all)
	return all
}
