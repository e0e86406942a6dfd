// Package seccomp turns an OCI seccomp policy into a BPF program.
//
// The kernel runs a new filter once per system call number to learn which calls
// it allows whatever their arguments, so the length of the path to an answer
// decides how long loading takes. A policy of 300 names is some 33 ranges of
// numbers: a binary search over their bounds answers in 7 jumps and loads in
// 40 µs, where a chain of comparisons takes ten times as long.
//
// Compile collects the rules by number, joins neighbours with the same outcome
// and writes: architecture check, x32 check, search tree, one block of argument
// tests per call that needs them.
package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// MaxInstructions is the kernel's bound for one program (BPF_MAXINSNS).
const MaxInstructions = 4096

// x32Bit marks system calls of the x32 ABI on amd64.
const x32Bit = 0x40000000

// Offsets in struct seccomp_data, seccomp(2).
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

type entry struct {
	name   string
	number uint16
}

// Number is the system call's number on this architecture.
func Number(name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(table[:], name, func(e entry, n string) int { return strings.Compare(e.name, n) })
	if !ok {
		return 0, false
	}
	return uint32(table[i].number), true
}

// Newest is the highest number that this package knows.
func Newest() uint32 {
	newest := uint16(0)
	for _, e := range table {
		newest = max(newest, e.number)
	}
	return uint32(newest)
}

// rule is what happens to one system call.
type rule struct {
	always  uint32 // verdict when no condition holds; valid if fixed
	fixed   bool
	conds   []specs.LinuxSyscall
	verdict []uint32 // of each cond
}

// segment is a range of numbers with one outcome; it ends where the next begins.
type segment struct {
	from    uint32
	verdict uint32
	rule    *rule // argument tests, or nil
}

// Compile returns the program as the bytes of an array of struct sock_filter.
// Names that this architecture lacks are skipped; numbers newer than the table
// get ENOSYS under an allow-list, so that libc falls back instead of failing.
func Compile(p *specs.LinuxSeccomp) ([]byte, error) {
	deflt, err := verdict(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	rules, err := collect(p)
	if err != nil {
		return nil, err
	}
	c := &compiler{deflt: deflt}
	c.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offArch)
	c.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 1, 0, nativeArch)
	c.ret(unix.SECCOMP_RET_KILL_PROCESS)
	c.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, offNumber)
	if hasX32 {
		c.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, 0, 1, x32Bit)
		c.ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
	}
	tree, err := c.tree(segments(rules, deflt))
	if err != nil {
		return nil, err
	}
	c.code = append(c.code, tree...)
	if len(c.code) > MaxInstructions {
		return nil, fmt.Errorf("compile seccomp policy: %d instructions, the kernel takes %d", len(c.code), MaxInstructions)
	}
	return encode(c.code), nil
}

// collect returns the rules by number.
func collect(p *specs.LinuxSeccomp) ([]rule, error) {
	rules := make([]rule, Newest()+1)
	for _, s := range p.Syscalls {
		v, err := verdict(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range s.Names {
			n, ok := Number(name)
			if !ok {
				continue
			}
			r := &rules[n]
			if len(s.Args) == 0 {
				r.always, r.fixed = v, true
			} else {
				r.conds, r.verdict = append(r.conds, s), append(r.verdict, v)
			}
		}
	}
	return rules, nil
}

// segments lists the ranges in order, the first from 0.
func segments(rules []rule, deflt uint32) []segment {
	segs := make([]segment, 0, 128)
	add := func(s segment) {
		if n := len(segs); n > 0 && s.rule == nil && segs[n-1].rule == nil && segs[n-1].verdict == s.verdict {
			return
		}
		segs = append(segs, s)
	}
	for i := range rules {
		r, n := &rules[i], uint32(i)
		switch {
		case !r.fixed && len(r.conds) == 0:
			add(segment{from: n, verdict: deflt})
		case len(r.conds) == 0 || r.fixed && onlyVerdict(r):
			add(segment{from: n, verdict: r.always})
		default:
			add(segment{from: n, rule: r})
		}
	}
	if deflt&unix.SECCOMP_RET_ACTION_FULL == unix.SECCOMP_RET_ERRNO {
		deflt = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	add(segment{from: uint32(len(rules)), verdict: deflt})
	return segs
}

// onlyVerdict says that the conditions change nothing.
func onlyVerdict(r *rule) bool {
	for _, v := range r.verdict {
		if v != r.always {
			return false
		}
	}
	return true
}

func verdict(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		data = uint32(*errno)
	}
	data &= unix.SECCOMP_RET_DATA
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	}
	return 0, fmt.Errorf("compile seccomp policy: action %q is not supported", a)
}

func encode(code []unix.SockFilter) []byte {
	b := make([]byte, 0, 8*len(code))
	for _, in := range code {
		b = binary.NativeEndian.AppendUint16(b, in.Code)
		b = append(b, in.Jt, in.Jf)
		b = binary.NativeEndian.AppendUint32(b, in.K)
	}
	return b
}
