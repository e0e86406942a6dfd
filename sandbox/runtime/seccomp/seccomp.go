// Package seccomp turns an OCI seccomp policy into a BPF program and says how to load it.
//
// The kernel runs a new filter once per system call number to learn which calls
// it allows whatever their arguments, so the length of the path to an answer
// decides how long loading takes. A policy of 300 names is some 33 ranges of
// numbers: a binary search over their bounds answers in 7 jumps and loads in
// 40 µs, where a chain of comparisons takes ten times as long.
//
// Build checks the policy, collects for each architecture the rules by number, joins
// neighbours with the same outcome and writes: architecture check, x32 check, search
// tree, one block of argument tests per call that needs them.
//
// What rules of one call mean together is what runc and libseccomp make of it:
//
//   - names that an architecture does not have are skipped;
//   - a rule without arguments decides, whatever rules with arguments there are; of two
//     the first, and one that says the same as the default counts for nothing;
//   - otherwise the rules with arguments are asked in order, and the first decides
//     whose conditions all hold; when none does, the default;
//   - a rule with two conditions on one argument is as many rules as conditions.
//
// Where the default is an error number, calls that are newer than all that the policy
// names get ENOSYS instead, on which a libc tries an older call.
package seccomp

import (
	"encoding/binary"
	"fmt"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// MaxInstructions is the kernel's bound for one program (BPF_MAXINSNS).
const MaxInstructions = 4096

// Filter is a policy that is ready for seccomp(2), SECCOMP_SET_MODE_FILTER.
type Filter struct {
	// Program is an array of struct sock_filter.
	Program []byte
	// Flags are for seccomp(2). With SECCOMP_FILTER_FLAG_NEW_LISTENER among them the
	// call returns a descriptor.
	Flags uint
	// Listener says that the policy has SCMP_ACT_NOTIFY: that descriptor must be sent
	// to ListenerPath (runtime-spec config-linux, "The Container Process State"), with
	// ListenerMetadata, before the process calls what waits for an answer.
	Listener                       bool
	ListenerPath, ListenerMetadata string
}

// Build compiles the policy for this machine. What it asks for and neither this
// package nor the kernel can do is an error that names the field.
func Build(p *specs.LinuxSeccomp) (*Filter, error) { return buildFor(runtime.GOARCH, p) }

func buildFor(goarch string, p *specs.LinuxSeccomp) (*Filter, error) {
	f, err := build(goarch, p)
	if err != nil {
		return nil, fmt.Errorf("compile seccomp policy: %w", err)
	}
	return f, nil
}

func build(goarch string, p *specs.LinuxSeccomp) (*Filter, error) {
	policy, err := read(p)
	if err != nil {
		return nil, err
	}
	f := &Filter{Listener: policy.notifies}
	if f.Listener {
		f.ListenerPath, f.ListenerMetadata = p.ListenerPath, p.ListenerMetadata
	}
	if f.Flags, err = flags(p.Flags, f.Listener); err != nil {
		return nil, err
	}
	archs, err := architectures(goarch, p.Architectures)
	if err != nil {
		return nil, err
	}
	code := policy.program(archs)
	if len(code) > MaxInstructions {
		return nil, fmt.Errorf("%d instructions, the kernel takes %d", len(code), MaxInstructions)
	}
	f.Program = encode(code)
	return f, nil
}

// program lays the architectures out one after the other:
//
//	arch == first?  → first's numbers
//	arch == second? → second's numbers
//	kill
func (p *policy) program(archs []arch) []unix.SockFilter {
	c := &assembler{}
	c.load(offArch)
	for _, a := range archs {
		if a.bit != 0 {
			continue // x32 has the architecture of amd64, and is within its numbers
		}
		section := p.section(a, archs)
		c.emit(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 1, 0, a.audit)
		c.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(len(section)))
		c.code = append(c.code, section...)
	}
	c.ret(unix.SECCOMP_RET_KILL_PROCESS)
	return c.code
}

func (p *policy) section(a arch, archs []arch) []unix.SockFilter {
	c := &assembler{}
	c.load(offNumber)
	own := tree(p.segments(a))
	if a.name == specs.ArchX86_64 {
		x32 := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: enosys}}
		for _, x := range archs {
			if x.bit != 0 {
				x32 = tree(p.segments(x))
			}
		}
		c.emit(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, 0, 1, x32Bit)
		c.emit(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(len(own)))
		own = append(own, x32...)
	}
	c.code = append(c.code, own...)
	return c.code
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
