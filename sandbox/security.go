package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
	"naru/sandbox/runtime/seccomp"
)

// Security loosens or tightens what a container is allowed. The zero value is the
// hardened default.
type Security struct {
	CapAdd        []string                  `json:"cap_add,omitempty"`  // "NET_ADMIN", "CAP_NET_ADMIN" or "ALL"
	CapDrop       []string                  `json:"cap_drop,omitempty"` // likewise; what is added stays
	NewPrivileges bool                      `json:"new_privileges,omitempty"`
	Seccomp       *seccomp.Profile          `json:"seccomp,omitempty"`      // instead of the default policy
	NoSeccomp     bool                      `json:"no_seccomp,omitempty"`   // no policy at all
	ShowPaths     bool                      `json:"show_paths,omitempty"`   // neither masked nor read-only paths in /proc and /sys
	Devices       []Device                  `json:"devices,omitempty"`      // nodes of the host in /dev
	DeviceRules   []specs.LinuxDeviceCgroup `json:"device_rules,omitempty"` // what may be used beside them
	Sysctls       map[string]string         `json:"sysctls,omitempty"`      // of the container's own namespaces
}

// Device is a device of the host inside a container.
type Device struct {
	Source string `json:"source"` // absolute path on the host
	Target string `json:"target"` // absolute path in the container, below /dev
	Access string `json:"access"` // of "rwm": read, write, make a node
}

// check refuses what could not be done.
func (s *Security) check() error {
	caps, err := capabilities(s.CapAdd, s.CapDrop)
	if err != nil {
		return err
	}
	if s.Seccomp != nil {
		if s.NoSeccomp {
			return errors.New("a seccomp profile and no seccomp exclude each other")
		}
		policy, err := s.Seccomp.Resolve(caps)
		if err == nil {
			_, err = runtime.Filter(policy) // it would refuse at every start
		}
		if err != nil {
			return fmt.Errorf("seccomp profile: %w", err)
		}
	}
	for _, d := range s.Devices {
		if _, _, err := d.find(); err != nil {
			return err
		}
	}
	return nil
}

// knownCapabilities are those of capabilities(7), by number.
func knownCapabilities() []string {
	return strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID
		CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER
		CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE
		CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP
		CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF
		CAP_CHECKPOINT_RESTORE`)
}

// capabilities are the default ones with some added and dropped. As in Docker,
// ALL in one list leaves it to the other to name exceptions, and what is
// in both lists by name is dropped.
func capabilities(add, drop []string) ([]string, error) {
	added, err := namedCapabilities(add)
	if err != nil {
		return nil, err
	}
	dropped, err := namedCapabilities(drop)
	if err != nil {
		return nil, err
	}
	kept := runtime.DefaultProcess().Capabilities.Bounding
	if slices.Contains(added, "ALL") {
		kept, added = knownCapabilities(), nil
	}
	if slices.Contains(dropped, "ALL") {
		if len(added) == 0 && len(add) > 0 {
			return nil, errors.New("capabilities: ALL is both added and dropped")
		}
		return added, nil
	}
	all := slices.Clone(kept)
	for _, c := range added {
		if !slices.Contains(all, c) {
			all = append(all, c)
		}
	}
	return slices.DeleteFunc(all, func(c string) bool { return slices.Contains(dropped, c) }), nil
}

func namedCapabilities(list []string) ([]string, error) {
	known, names := knownCapabilities(), []string{}
	for _, s := range list {
		name := strings.ToUpper(s)
		if name != "ALL" && !strings.HasPrefix(name, "CAP_") {
			name = "CAP_" + name
		}
		if name != "ALL" && !slices.Contains(known, name) {
			return nil, fmt.Errorf("unknown capability %q", s)
		}
		names = append(names, name)
	}
	return names, nil
}

// process gives the container's process its capabilities.
func (s *Security) process(p *specs.Process) error {
	caps, err := capabilities(s.CapAdd, s.CapDrop)
	if err != nil {
		return err
	}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	p.NoNewPrivileges = !s.NewPrivileges
	return nil
}

// allOfBounding are the capabilities of root in the container of p.
func allOfBounding(p *specs.Process) *specs.LinuxCapabilities {
	if p.Capabilities == nil {
		return nil
	}
	caps := p.Capabilities.Bounding
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// policy is what the profile says for a process; nil without a profile. A kernel that was
// changed since the container was made may change it, too.
func (s *Security) policy(p *specs.Process) (*specs.LinuxSeccomp, error) {
	if s.Seccomp == nil {
		return nil, nil
	}
	var caps []string
	if p.Capabilities != nil {
		caps = p.Capabilities.Bounding
	}
	return s.Seccomp.Resolve(caps)
}

// apply writes the choices into the spec. The default seccomp policy is the one
// that belongs to the capabilities.
func (s *Security) apply(spec *specs.Spec) error {
	switch {
	case s.NoSeccomp:
		spec.Linux.Seccomp = nil
	case s.Seccomp != nil:
		policy, err := s.policy(spec.Process)
		if err != nil {
			return err
		}
		spec.Linux.Seccomp = policy
	case len(s.CapAdd) > 0 || len(s.CapDrop) > 0:
		spec.Linux.Seccomp = seccomp.Default(spec.Process.Capabilities.Bounding)
	}
	if s.ShowPaths {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
	}
	for _, d := range s.Devices {
		node, rule, err := d.find()
		if err != nil {
			return err
		}
		spec.Linux.Devices = append(spec.Linux.Devices, node)
		spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, rule)
	}
	spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, s.DeviceRules...)
	if len(s.Sysctls) > 0 {
		all := maps.Clone(spec.Linux.Sysctl)
		maps.Copy(all, s.Sysctls)
		spec.Linux.Sysctl = all
	}
	return nil
}

// find looks the device up on the host.
func (d Device) find() (node specs.LinuxDevice, rule specs.LinuxDeviceCgroup, err error) {
	if !path.IsAbs(d.Source) || path.Dir(path.Clean(d.Target)) != "/dev" {
		return node, rule, fmt.Errorf("device %s: the host path must be absolute, and that in the container directly in /dev, not %s", d.Source, d.Target)
	}
	if d.Access == "" || strings.Trim(d.Access, "rwm") != "" {
		return node, rule, fmt.Errorf("device %s: access %q, want some of rwm", d.Source, d.Access)
	}
	var st unix.Stat_t
	if err := unix.Stat(d.Source, &st); err != nil {
		return node, rule, &os.PathError{Op: "find device", Path: d.Source, Err: err}
	}
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
	if kind == "" {
		return node, rule, fmt.Errorf("device %s is no device", d.Source)
	}
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	mode := os.FileMode(st.Mode & 0o777)
	gid := uint32(0)
	if st.Gid < idSize {
		gid = st.Gid // so that a member of "video" inside can use it
	}
	node = specs.LinuxDevice{Path: path.Clean(d.Target), Type: kind, Major: major, Minor: minor, FileMode: &mode, GID: &gid}
	return node, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: d.Access}, nil
}

// ParseDevice reads Docker's HOST[:CONTAINER[:rwm]] or HOST:rwm.
func ParseDevice(s string) (Device, error) {
	parts := strings.Split(s, ":")
	d := Device{Source: parts[0], Target: parts[0], Access: "rwm"}
	switch {
	case parts[0] == "" || len(parts) > 3:
		return d, fmt.Errorf("device %q: want HOST[:CONTAINER[:rwm]]", s)
	case len(parts) == 2 && !path.IsAbs(parts[1]):
		d.Access = parts[1]
	case len(parts) >= 2:
		d.Target = parts[1]
	}
	if len(parts) == 3 {
		d.Access = parts[2]
	}
	_, _, err := d.find()
	return d, err
}

// ParseDeviceRule reads Docker's "c 13:* rmw".
func ParseDeviceRule(s string) (specs.LinuxDeviceCgroup, error) {
	r := specs.LinuxDeviceCgroup{Allow: true}
	wrong := fmt.Errorf("device rule %q: want TYPE MAJOR:MINOR ACCESS, such as \"c 13:* rw\"", s)
	fields := strings.Fields(s)
	if len(fields) != 3 || !slices.Contains([]string{"a", "b", "c"}, fields[0]) || fields[2] == "" || strings.Trim(fields[2], "rwm") != "" {
		return r, wrong
	}
	r.Type, r.Access = fields[0], fields[2]
	major, minor, ok := strings.Cut(fields[1], ":")
	var errs [2]error
	r.Major, errs[0] = deviceNumber(major)
	r.Minor, errs[1] = deviceNumber(minor)
	if !ok || errs[0] != nil || errs[1] != nil {
		return r, wrong
	}
	return r, nil
}

// deviceNumber is nil for "*".
func deviceNumber(s string) (*int64, error) {
	if s == "*" {
		return nil, nil
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err == nil && n < 0 {
		err = strconv.ErrRange
	}
	return &n, err
}
