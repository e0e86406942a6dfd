package attacks

import (
	"encoding/binary"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch/step"
)

// Here are the switches: each takes one thing away from a container.

func all(changes ...change) change {
	return func(b *box) {
		for _, c := range changes {
			c(b)
		}
	}
}

// caps gives the process capabilities, the seccomp policy stays.
func caps(names ...string) change {
	return func(b *box) {
		c := b.Spec.Process.Capabilities
		for _, n := range names {
			for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
				*set = append(slices.Clone(*set), "CAP_"+n)
			}
		}
	}
}

// allow lets system calls pass the seccomp filter, whatever their arguments.
func allow(names ...string) change {
	return func(b *box) {
		p := b.Spec.Linux.Seccomp
		for i := range p.Syscalls {
			p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(p.Syscalls[i].Names), func(n string) bool { return slices.Contains(names, n) })
		}
		p.Syscalls = slices.DeleteFunc(p.Syscalls, func(r specs.LinuxSyscall) bool { return len(r.Names) == 0 })
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: names, Action: specs.ActAllow})
	}
}

// share drops a namespace: the container uses the one of the tests.
func share(kind specs.LinuxNamespaceType) change {
	return func(b *box) {
		l := b.Spec.Linux
		l.Namespaces = slices.DeleteFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		if kind == specs.NetworkNamespace {
			l.Sysctl = nil // they are the network's
		}
	}
}

func unmask(path string) change {
	return func(b *box) {
		b.Spec.Linux.MaskedPaths = slices.DeleteFunc(b.Spec.Linux.MaskedPaths, func(p string) bool { return p == path })
	}
}

func writable(path string) change {
	return func(b *box) {
		b.Spec.Linux.ReadonlyPaths = slices.DeleteFunc(b.Spec.Linux.ReadonlyPaths, func(p string) bool { return p == path })
	}
}

// withoutOption drops an option of the mount at path.
func withoutOption(path, option string) change {
	return func(b *box) {
		for i, m := range b.Spec.Mounts {
			if m.Destination == path {
				b.Spec.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, option) })
			}
		}
	}
}

func withOption(path, option string) change {
	return func(b *box) {
		for i, m := range b.Spec.Mounts {
			if m.Destination == path {
				b.Spec.Mounts[i].Options = append(slices.Clone(m.Options), option)
			}
		}
	}
}

func newPrivileges(b *box) { b.Spec.Process.NoNewPrivileges = false }

func allDevices(b *box) {
	b.Spec.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
}

// edit changes the list of steps.
func edit(f stepEdit) change { return func(b *box) { b.steps = append(b.steps, f) } }

// late is for the list of an exec instead.
func late(c change) change { return func(b *box) { b.late = append(b.late, c) } }

// every changes each step whose name begins so. It panics when there is none: a
// switch that switches nothing must not look like one.
func every(prefix string, f func(*step.Step)) stepEdit {
	return func(p step.Program) step.Program {
		n := 0
		for i := range p {
			if strings.HasPrefix(p[i].Name, prefix) {
				f(&p[i])
				n++
			}
		}
		if n == 0 {
			panic("no step is named " + prefix)
		}
		return p
	}
}

// skip makes steps do nothing. They keep their place, as others jump over them.
func skip(prefix string) change {
	return edit(every(prefix, func(s *step.Step) { *s = step.Call(s.Name, unix.SYS_GETPID) }))
}

// before puts steps in front of the first one with that name.
func before(name string, make func(at step.Step) []step.Step) change {
	return insert(name, func(s step.Step) bool { return s.Name == name }, make)
}

// beforeCall puts steps in front of the one that has that name and makes that call.
func beforeCall(name string, number uint32, make func(at step.Step) []step.Step) change {
	return insert(name, func(s step.Step) bool { return s.Name == name && s.NR == number }, make)
}

func insert(name string, where func(step.Step) bool, make func(at step.Step) []step.Step) change {
	return edit(func(p step.Program) step.Program {
		i := slices.IndexFunc(p, where)
		if i < 0 {
			panic("no step is named " + name)
		}
		return slices.Insert(p, i, make(p[i])...)
	})
}

// unresolved clears RESOLVE_* flags of the openat2 steps with that name.
func unresolved(prefix string, flags uint64) change {
	return edit(every(prefix, func(s *step.Step) {
		if s.NR != unix.SYS_OPENAT2 {
			return
		}
		how := slices.Clone(s.Args[2].Data)
		binary.NativeEndian.PutUint64(how[16:], binary.NativeEndian.Uint64(how[16:])&^flags)
		s.Args[2].Data = how
	}))
}

// clearAttr takes attributes off the mount that is attached in the named step.
func clearAttr(attach string, attr uint64) change {
	return beforeCall(attach, unix.SYS_MOVE_MOUNT, func(at step.Step) []step.Step {
		b := binary.NativeEndian.AppendUint64(make([]byte, 8), attr)
		b = append(b, make([]byte, 16)...)
		return []step.Step{step.Call("clear attributes", unix.SYS_MOUNT_SETATTR, at.Args[0], step.S(""), step.I(unix.AT_EMPTY_PATH), step.B(b), step.I(32))}
	})
}

// leakedFD is where leak leaves a directory of the host open.
const leakedFD = 60

// leak makes the mistake of CVE-2024-21626: a directory of the host stays open.
func leak(dir, at string) change {
	const reg = 500
	return before(at, func(step.Step) []step.Step {
		return []step.Step{
			step.Call("leak", unix.SYS_OPENAT, step.I(unix.AT_FDCWD), step.S(dir), step.I(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)).Into(reg),
			step.Call("leak", unix.SYS_DUP3, step.R(reg), step.I(leakedFD), step.I(0)),
		}
	})
}
