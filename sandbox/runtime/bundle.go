package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// CheckBundle refuses a spec that could not be done as written, naming field and
// value, and returns the spec as CreateSolo wants it: what is left out filled in,
// mount points made absolute. Each warning tells of something that the spec allows a
// runtime to skip.
func CheckBundle(s *specs.Spec) (_ *specs.Spec, warnings []string, err error) {
	b, err := json.Marshal(s) // a deep copy: the caller keeps what it read
	if err != nil {
		return nil, nil, err
	}
	s = &specs.Spec{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, nil, err
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	for _, check := range []func(*specs.Spec) error{checkVersion, checkRoot, checkNamespaces, checkMappings, checkUnknown, checkSysctl, checkMounts, checkDevices, checkHooks} {
		if err := check(s); err != nil {
			return nil, nil, err
		}
	}
	if s.Process == nil {
		return nil, nil, errors.New("process: missing")
	}
	warnings, err = CheckProcess(s.Process, s)
	if !hasNamespace(s, specs.MountNamespace) {
		warnings = append(warnings, "linux.namespaces: no mount namespace; a process that may chroot can leave the container's root")
	}
	limitDevices(s.Linux)
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if !filepath.IsAbs(m.Destination) {
			warnings = append(warnings, fmt.Sprintf("mounts[%d].destination %q is not absolute, which the specification deprecates", i, m.Destination))
		}
		m.Destination = filepath.Clean("/" + m.Destination)
	}
	return s, warnings, err
}

func checkVersion(s *specs.Spec) error {
	major, rest, ok := strings.Cut(s.Version, ".")
	minor, _, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || major != "1" || minor == "" || strings.Trim(minor, "0123456789") != "" {
		return fmt.Errorf("ociVersion %q: this runtime knows 1.x.y", s.Version)
	}
	return nil
}

func checkRoot(s *specs.Spec) error {
	if s.Root == nil || s.Root.Path == "" {
		return errors.New("root.path: missing")
	}
	kind := s.Linux.RootfsPropagation
	if _, ok := propagations()[strings.TrimPrefix(kind, "r")]; kind != "" && !ok {
		return fmt.Errorf("linux.rootfsPropagation: unknown value %q", kind)
	}
	return nil
}

func checkNamespaces(s *specs.Spec) error {
	seen := map[specs.LinuxNamespaceType]bool{}
	for i, n := range s.Linux.Namespaces {
		field := fmt.Sprintf("linux.namespaces[%d]", i)
		if _, ok := namespaceBits()[n.Type]; !ok {
			return fmt.Errorf("%s.type: unknown value %q", field, n.Type)
		}
		if seen[n.Type] {
			return fmt.Errorf("%s.type: %q is listed twice", field, n.Type)
		}
		seen[n.Type] = true
		if n.Path == "" {
			continue
		}
		if !filepath.IsAbs(n.Path) {
			return fmt.Errorf("%s.path: %q is not absolute", field, n.Path)
		}
		if err := checkNamespacePath(n); err != nil {
			return fmt.Errorf("%s.path: %w", field, err)
		}
	}
	for _, need := range []struct {
		field string
		set   bool
		kind  specs.LinuxNamespaceType
	}{
		{"hostname", s.Hostname != "", specs.UTSNamespace},
		{"domainname", s.Domainname != "", specs.UTSNamespace},
		{"linux.maskedPaths", len(s.Linux.MaskedPaths) > 0, specs.MountNamespace},
		{"linux.readonlyPaths", len(s.Linux.ReadonlyPaths) > 0, specs.MountNamespace},
		{"linux.rootfsPropagation", s.Linux.RootfsPropagation != "", specs.MountNamespace},
		{"hooks.startContainer", s.Hooks != nil && len(s.Hooks.StartContainer) > 0, specs.MountNamespace},
		{"linux.timeOffsets", len(s.Linux.TimeOffsets) > 0, specs.TimeNamespace},
		{"linux.uidMappings", len(s.Linux.UIDMappings) > 0 || len(s.Linux.GIDMappings) > 0, specs.UserNamespace},
	} {
		if need.set && !seen[need.kind] {
			return fmt.Errorf("%s: needs a %s namespace", need.field, need.kind)
		}
	}
	return nil
}

func checkMappings(s *specs.Spec) error {
	if !hasNamespace(s, specs.UserNamespace) {
		return nil
	}
	if len(s.Linux.UIDMappings) == 0 {
		return errors.New("linux.uidMappings: missing, with a user namespace")
	}
	if len(s.Linux.GIDMappings) == 0 {
		return errors.New("linux.gidMappings: missing, with a user namespace")
	}
	return nil
}

// checkUnknown lists what this runtime does not have; ignoring it would weaken what
// the caller asked for.
func checkUnknown(s *specs.Spec) error {
	l := s.Linux
	if l.IntelRdt != nil {
		return errors.New("linux.intelRdt: not supported")
	}
	if l.MountLabel != "" {
		return fmt.Errorf("linux.mountLabel %q: SELinux mount labels are not supported", l.MountLabel)
	}
	if len(l.NetDevices) > 0 {
		return errors.New("linux.netDevices: not supported")
	}
	if p := l.Personality; p != nil {
		if _, ok := personalities()[p.Domain]; !ok {
			return fmt.Errorf("linux.personality.domain: unknown value %q", p.Domain)
		}
		if len(p.Flags) > 0 {
			return fmt.Errorf("linux.personality.flags: unknown value %q", p.Flags[0])
		}
	}
	if l.MemoryPolicy != nil {
		if _, _, err := memoryPolicy(l.MemoryPolicy); err != nil {
			return err
		}
	}
	for clock := range l.TimeOffsets {
		if clock != "monotonic" && clock != "boottime" {
			return fmt.Errorf("linux.timeOffsets: unknown clock %q", clock)
		}
	}
	return nil
}

// checkSysctl allows only what belongs to a namespace of the container's own
// (namespaces(7)): everything else is the machine's.
func checkSysctl(s *specs.Spec) error {
	ipc := []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}
	for key := range s.Linux.Sysctl {
		dots := strings.ReplaceAll(key, "/", ".")
		var kind specs.LinuxNamespaceType
		switch {
		case strings.Contains(key, "..") || key == "":
		case slices.Contains(ipc, dots) || strings.HasPrefix(dots, "fs.mqueue."):
			kind = specs.IPCNamespace
		case strings.HasPrefix(dots, "net."):
			kind = specs.NetworkNamespace
		case dots == "kernel.domainname":
			kind = specs.UTSNamespace
		case strings.HasPrefix(dots, "user."):
			kind = specs.UserNamespace
		}
		if kind == "" {
			return fmt.Errorf("linux.sysctl: %q is the machine's, not a namespace's", key)
		}
		if !hasNamespace(s, kind) {
			return fmt.Errorf("linux.sysctl: %q needs a %s namespace", key, kind)
		}
	}
	return nil
}

// checkMounts keeps mounts away from what the kernel shows of itself; lxcfs's files
// in /proc are the exception that everybody makes.
func checkMounts(s *specs.Spec) error {
	inProc := []string{"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg", "/proc/slabinfo", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled"}
	for i, m := range s.Mounts {
		to := filepath.Clean("/" + m.Destination)
		o := parseOptions(m.Options)
		switch {
		case strings.HasPrefix(m.Type, "cgroup") && !o.bind && !hasNamespace(s, specs.MountNamespace):
			return fmt.Errorf("mounts[%d].type: %q needs a mount namespace", i, m.Type)
		case to == "/":
			return fmt.Errorf("mounts[%d].destination: %q is no path below /", i, m.Destination)
		case strings.HasPrefix(to, "/proc/") && !slices.Contains(inProc, to):
			return fmt.Errorf("mounts[%d].destination: %q lies in /proc", i, m.Destination)
		case m.Type == "" && !o.bind:
			return fmt.Errorf("mounts[%d].type: missing", i)
		case (o.bind || m.Type == "bind") && m.Source == "":
			return fmt.Errorf("mounts[%d].source: missing for a bind mount", i)
		case o.copyUp && m.Type != "tmpfs":
			return fmt.Errorf("mounts[%d].options: tmpcopyup on a %s", i, m.Type)
		case (len(m.UIDMappings) > 0) != (len(m.GIDMappings) > 0):
			return fmt.Errorf("mounts[%d]: uidMappings and gidMappings go together", i)
		case len(m.UIDMappings) > 0 && !o.bind:
			return fmt.Errorf("mounts[%d].uidMappings: only for a bind mount", i)
		}
	}
	return nil
}

func checkDevices(s *specs.Spec) error {
	for i, d := range s.Linux.Devices {
		if !filepath.IsAbs(d.Path) || filepath.Clean(d.Path) == "/" {
			return fmt.Errorf("linux.devices[%d].path: %q is not a path below /", i, d.Path)
		}
		s.Linux.Devices[i].Path = filepath.Clean(d.Path)
		if nodeOf(d).kind == 0 {
			return fmt.Errorf("linux.devices[%d].type: unknown value %q", i, d.Type)
		}
	}
	return nil
}

func checkHooks(s *specs.Spec) error {
	if s.Hooks == nil {
		return nil
	}
	h := s.Hooks
	//lint:ignore SA1019 prestart is deprecated in the specification, and Docker's
	for name, list := range map[string][]specs.Hook{"prestart": h.Prestart, "createRuntime": h.CreateRuntime, "createContainer": h.CreateContainer,
		"startContainer": h.StartContainer, "poststart": h.Poststart, "poststop": h.Poststop} {
		for i, hook := range list {
			if !filepath.IsAbs(hook.Path) {
				return fmt.Errorf("hooks.%s[%d].path: %q is not absolute", name, i, hook.Path)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fmt.Errorf("hooks.%s[%d].timeout: %d is not positive", name, i, *hook.Timeout)
			}
		}
	}
	return nil
}

// limitDevices adds to the rules of the spec what every container needs: without
// any rule all devices would be allowed. The nodes of the default /dev and terminals
// are; making a node gives no access to it.
func limitDevices(l *specs.Linux) {
	if l.Resources == nil {
		l.Resources = &specs.LinuxResources{}
	}
	rules := l.Resources.Devices
	if len(rules) == 0 {
		rules = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	}
	for _, kind := range []string{"c", "b"} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Access: "m"})
	}
	l.Resources.Devices = append(rules, defaultDeviceRules()[1:]...)
}

// Namespaces lists the kinds of namespaces that a bundle may name.
func Namespaces() []string {
	var all []string
	for kind := range namespaceBits() {
		all = append(all, string(kind))
	}
	slices.Sort(all)
	return all
}

// Capabilities lists the capabilities by their numbers, capabilities(7).
func Capabilities() []string { return capNames() }
