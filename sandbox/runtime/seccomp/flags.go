package seccomp

import (
	"errors"
	"fmt"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

type flag struct {
	name specs.LinuxSeccompFlag
	bits uint
}

// knownFlags have a name in runtime-spec.
func knownFlags() []flag {
	return []flag{
		{"SECCOMP_FILTER_FLAG_TSYNC", unix.SECCOMP_FILTER_FLAG_TSYNC},
		{specs.LinuxSeccompFlagLog, unix.SECCOMP_FILTER_FLAG_LOG},
		{specs.LinuxSeccompFlagSpecAllow, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{specs.LinuxSeccompFlagWaitKillableRecv, unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV},
	}
}

// flags puts the bits for seccomp(2) together. WAIT_KILLABLE_RECV says how a call
// waits for a listener: without one the kernel refuses it, and there is nothing to say.
func flags(names []specs.LinuxSeccompFlag, listener bool) (bits uint, err error) {
	for i, name := range names {
		known := false
		for _, f := range knownFlags() {
			if f.name != name {
				continue
			}
			known = true
			if !kernelTakes(f.bits) {
				return 0, fmt.Errorf("flags[%d]: %s: this kernel does not have it", i, name)
			}
			bits |= f.bits
		}
		if !known {
			return 0, fmt.Errorf("flags[%d]: %q is not known", i, name)
		}
	}
	if !listener {
		return bits &^ unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, nil
	}
	if bits&unix.SECCOMP_FILTER_FLAG_TSYNC != 0 {
		bits |= unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH // or the result could be a thread as well as a descriptor
	}
	if !kernelTakes(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER) {
		return 0, errors.New("SCMP_ACT_NOTIFY: this kernel does not have it")
	}
	return bits | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, nil
}

// KnownFlags are those of runtime-spec that Build knows, whatever the kernel has.
func KnownFlags() (names []specs.LinuxSeccompFlag) {
	for _, f := range knownFlags() {
		names = append(names, f.name)
	}
	return names
}

// Flags are those of KnownFlags that this kernel takes.
func Flags() (names []specs.LinuxSeccompFlag) {
	for _, f := range knownFlags() {
		if kernelTakes(f.bits) {
			names = append(names, f.name)
		}
	}
	return names
}

// Architectures are those that a policy may allow on this machine, the native one first.
func Architectures() (names []specs.Arch) {
	for _, a := range family(runtime.GOARCH) {
		names = append(names, a.name)
	}
	return names
}

// kernelTakes asks with a program at address 0: flags are looked at first, and are
// fine if that is the complaint (seccomp(2)).
func kernelTakes(bits uint) bool {
	if bits == unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV {
		bits |= unix.SECCOMP_FILTER_FLAG_NEW_LISTENER // it is refused alone
	}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(bits), 0)
	return e == unix.EFAULT
}
