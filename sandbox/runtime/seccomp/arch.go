package seccomp

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// arch is one set of system call numbers.
type arch struct {
	name    specs.Arch
	audit   uint32 // what seccomp_data.arch holds
	column  int    // of the table
	bit     uint32 // that all numbers have
	narrow  bool   // arguments have 32 bits
	private uint32 // from here on, numbers are the architecture's own and not in order of time; 0: none
}

// x32Bit marks system calls of the x32 ABI on amd64.
const x32Bit = 0x40000000

// numbers are a call's on amd64, 386, x32, arm64 and arm; -1 where it does not exist.
type numbers [5]int32

type entry struct {
	name    string
	numbers numbers
}

// family is the native architecture of a machine, and those that it can run as well.
func family(goarch string) []arch {
	switch goarch {
	case "amd64":
		return []arch{
			{name: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64, column: 0},
			{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, column: 1, narrow: true},
			{name: specs.ArchX32, audit: unix.AUDIT_ARCH_X86_64, column: 2, bit: x32Bit},
		}
	case "arm64":
		return []arch{
			{name: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64, column: 3},
			{name: specs.ArchARM, audit: unix.AUDIT_ARCH_ARM, column: 4, narrow: true, private: 0xf0000},
		}
	}
	return nil
}

// architectures are the native one, which is always there, and those wanted that the
// machine can run. Others that runtime-spec names never make a call here.
func architectures(goarch string, wanted []specs.Arch) ([]arch, error) {
	all := family(goarch)
	if all == nil {
		return nil, fmt.Errorf("no system call numbers of %s are known", goarch)
	}
	for i, name := range wanted {
		if !strings.HasPrefix(string(name), "SCMP_ARCH_") || len(name) > 32 {
			return nil, fmt.Errorf("architectures[%d]: %q is not known", i, name)
		}
	}
	var list []arch
	for i, a := range all {
		if i == 0 || slices.Contains(wanted, a.name) {
			list = append(list, a)
		}
	}
	return list, nil
}

// number is the call's on this architecture.
func (a arch) number(name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(table[:], name, func(e entry, n string) int { return strings.Compare(e.name, n) })
	if !ok || table[i].numbers[a.column] < 0 {
		return 0, false
	}
	return uint32(table[i].numbers[a.column]) | a.bit, true
}

// multiplexed are the calls that 386 also reaches through another one: socketcall(2)
// and ipc(2) have the number in their first argument, whose upper half is a version
// for ipc. What they are called with is behind a pointer.
func multiplexed() map[string]multiplexer {
	m := map[string]multiplexer{}
	for i, name := range strings.Fields("socket bind connect listen accept getsockname getpeername socketpair send recv " +
		"sendto recvfrom shutdown setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg") {
		m[name] = multiplexer{"socketcall", 1<<64 - 1, uint64(i + 1)}
	}
	for name, n := range map[string]uint64{"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12,
		"msgget": 13, "msgctl": 14, "shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24} {
		m[name] = multiplexer{"ipc", 0xffff, n}
	}
	return m
}

type multiplexer struct {
	call        string
	mask, value uint64
}
