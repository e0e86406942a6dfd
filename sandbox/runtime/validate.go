package runtime

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// validate refuses what could not be done as written, before anything is made.
func validate(c Config) error {
	if !validID(c.ID) {
		return fmt.Errorf("invalid id %q", c.ID)
	}
	if c.Spec == nil || c.Spec.Process == nil || c.Spec.Linux == nil {
		return errors.New("spec without process or linux part")
	}
	if !hasNamespace(c.Spec, specs.MountNamespace) {
		return errors.New("a container needs a mount namespace of its own")
	}
	if c.Spec.Process.Terminal && (c.Stdin != nil || c.Stdout != nil || c.Stderr != nil) {
		return errors.New("process.terminal: a container with a terminal has no other standard streams; use Attach")
	}
	if err := unsupported(c.Spec); err != nil {
		return err
	}
	for _, m := range c.Spec.Mounts {
		if !strings.HasPrefix(m.Destination, "/") || filepath.Clean(m.Destination) == "/" {
			return fmt.Errorf("mount on %q: not a path below /", m.Destination)
		}
	}
	return validateProcess(c.Spec.Process, mapOf(c.Spec))
}

// validID is strict, though an id is no part of a path here: it becomes one in others' hands.
func validID(id string) bool {
	for i, c := range id {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '+', c == '-':
		case c == '.' && i > 0:
		default:
			return false
		}
	}
	return id != ""
}

// unsupported lists parts of the spec that this runtime does not have; ignoring
// them would weaken what the caller asked for.
func unsupported(s *specs.Spec) error {
	l := s.Linux
	no := map[string]bool{
		"hooks":                   s.Hooks != nil,
		"linux.mountLabel":        l.MountLabel != "",
		"linux.intelRdt":          l.IntelRdt != nil,
		"linux.personality":       l.Personality != nil,
		"linux.timeOffsets":       len(l.TimeOffsets) > 0,
		"process.apparmor":        s.Process.ApparmorProfile != "",
		"process.selinuxLabel":    s.Process.SelinuxLabel != "",
		"process.scheduler":       s.Process.Scheduler != nil,
		"process.ioPriority":      s.Process.IOPriority != nil,
		"process.execCPU":         s.Process.ExecCPUAffinity != nil,
		"linux.rootfsPropagation": l.RootfsPropagation != "" && !strings.HasSuffix(l.RootfsPropagation, "private"),
	}
	for name, set := range no {
		if set {
			return fmt.Errorf("%s: not supported", name)
		}
	}
	return nil
}

func validateProcess(p *specs.Process, ids idMap) error {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return errors.New("process without arguments")
	}
	for _, s := range append(append([]string{p.Cwd}, p.Args...), p.Env...) {
		if strings.ContainsRune(s, 0) {
			return errors.New("process arguments contain a NUL byte")
		}
	}
	if p.Cwd != "" && !strings.HasPrefix(p.Cwd, "/") {
		return fmt.Errorf("working directory %q is not absolute", p.Cwd)
	}
	// -1 means "leave as it is" to setresuid(2): root, CVE-2024-40635.
	for _, id := range append([]uint32{p.User.UID, p.User.GID}, p.User.AdditionalGids...) {
		if id > 1<<31-1 {
			return fmt.Errorf("user or group id %d is out of range", id)
		}
	}
	if ids.mapped() && (ids.uid(p.User.UID) == unmapped || ids.gid(p.User.GID) == unmapped) {
		return fmt.Errorf("user %d:%d is not mapped in the user namespace", p.User.UID, p.User.GID)
	}
	if c := p.Capabilities; c != nil {
		for _, set := range [][]string{c.Bounding, c.Effective, c.Permitted, c.Inheritable, c.Ambient} {
			if _, err := capBits(set); err != nil {
				return err
			}
		}
	}
	for _, r := range p.Rlimits {
		if _, ok := rlimits()[r.Type]; !ok {
			return fmt.Errorf("unknown resource limit %q", r.Type)
		}
	}
	return nil
}

func rlimits() map[string]int {
	return map[string]int{
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
		"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
		"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
		"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
		"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
		"RLIMIT_STACK": unix.RLIMIT_STACK,
	}
}

// namespaceBits are the flags of clone(2).
func namespaceBits() map[specs.LinuxNamespaceType]uint64 {
	return map[specs.LinuxNamespaceType]uint64{
		specs.MountNamespace: unix.CLONE_NEWNS, specs.PIDNamespace: unix.CLONE_NEWPID, specs.UTSNamespace: unix.CLONE_NEWUTS,
		specs.IPCNamespace: unix.CLONE_NEWIPC, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.UserNamespace: unix.CLONE_NEWUSER,
		specs.TimeNamespace: unix.CLONE_NEWTIME, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
	}
}

// namespaceFlags maps the spec's namespaces to clone(2) flags. Those with a path
// are joined instead; the cgroup namespace is made later, by unshare.
func namespaceFlags(spec *specs.Spec) (flags uint64, join []specs.LinuxNamespace, err error) {
	clone := namespaceBits()
	for _, n := range spec.Linux.Namespaces {
		flag, ok := clone[n.Type]
		switch {
		case !ok:
			return 0, nil, fmt.Errorf("unknown namespace %q", n.Type)
		case n.Path == "":
			flags |= flag &^ unix.CLONE_NEWCGROUP
		case n.Type == specs.NetworkNamespace || n.Type == specs.IPCNamespace || n.Type == specs.UTSNamespace:
			join = append(join, n)
		default:
			return 0, nil, fmt.Errorf("joining a %s namespace is not supported", n.Type)
		}
	}
	if flags&unix.CLONE_NEWUSER != 0 && (len(spec.Linux.UIDMappings) == 0 || len(spec.Linux.GIDMappings) == 0) {
		return 0, nil, errors.New("user namespace without id mappings")
	}
	return flags, join, nil
}
