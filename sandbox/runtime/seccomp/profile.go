package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Profile is a policy as a file holds it: the seccomp part of an OCI configuration, and what
// the files of Docker (moby/profiles) and Podman (containers/common) have beside it:
// conditions on rules, architectures that bring others along, error numbers by name.
// What a profile means is known when capabilities and kernel are: see Resolve.
type Profile struct {
	DefaultAction    specs.LinuxSeccompAction `json:"defaultAction"`
	DefaultErrnoRet  *uint                    `json:"defaultErrnoRet,omitempty"`
	DefaultErrno     string                   `json:"defaultErrno,omitempty"` // "EPERM"; goes before the number
	Architectures    []specs.Arch             `json:"architectures,omitempty"`
	ArchMap          []ArchFamily             `json:"archMap,omitempty"` // instead of Architectures
	Flags            []specs.LinuxSeccompFlag `json:"flags,omitempty"`
	ListenerPath     string                   `json:"listenerPath,omitempty"`
	ListenerMetadata string                   `json:"listenerMetadata,omitempty"`
	Syscalls         []ProfileRule            `json:"syscalls,omitempty"`
}

// ArchFamily is an architecture, and those that a machine of it can run as well.
type ArchFamily struct {
	Arch     specs.Arch   `json:"architecture"`
	SubArchs []specs.Arch `json:"subArchitectures"`
}

// ProfileRule is a rule that may count under conditions only.
type ProfileRule struct {
	specs.LinuxSyscall
	Name     string     `json:"name,omitempty"`  // one of Names, in files before Docker 1.12
	Errno    string     `json:"errno,omitempty"` // "EPERM"; goes before ErrnoRet
	Comment  string     `json:"comment,omitempty"`
	Includes *Condition `json:"includes,omitempty"` // all of it must hold
	Excludes *Condition `json:"excludes,omitempty"` // none of it may
}

// Condition is on the process and the machine.
type Condition struct {
	Caps      []string `json:"caps,omitempty"`      // "CAP_SYS_ADMIN", in the bounding set
	Arches    []string `json:"arches,omitempty"`    // the machine's, as libseccomp calls it: "amd64"
	MinKernel string   `json:"minKernel,omitempty"` // "4.8"
}

// ParseProfile reads a file. Every field must be known, also those of rules that do not
// count here: a policy that is not understood is none.
func ParseProfile(data []byte) (*Profile, error) {
	p := new(Profile)
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(p); err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("read seccomp profile: something follows the document")
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	return p, nil
}

// Resolve gives the policy for a process with the bounding set caps, on this machine.
func (p *Profile) Resolve(caps []string) (*specs.LinuxSeccomp, error) {
	here, err := thisMachine(caps)
	if err == nil {
		var policy *specs.LinuxSeccomp
		if policy, err = p.resolve(func(c *Condition) (every, some bool, err error) { return here.meets(c) }); err == nil {
			return policy, nil
		}
	}
	return nil, fmt.Errorf("resolve seccomp profile: %w", err)
}

// check reads all rules, as if all conditions held.
func (p *Profile) check() error {
	all, err := p.resolve(func(c *Condition) (bool, bool, error) {
		_, _, err := new(machine).meets(c)
		return true, false, err
	})
	if err == nil {
		_, err = build(runtime.GOARCH, all)
	}
	return err
}

// resolve leaves the rules whose conditions hold.
func (p *Profile) resolve(meets func(*Condition) (every, some bool, err error)) (*specs.LinuxSeccomp, error) {
	out := &specs.LinuxSeccomp{DefaultAction: p.DefaultAction, Flags: p.Flags, ListenerPath: p.ListenerPath, ListenerMetadata: p.ListenerMetadata}
	var err error
	if out.Architectures, err = p.architectures(); err != nil {
		return nil, err
	}
	if out.DefaultErrnoRet, err = errnoOf(p.DefaultErrno, p.DefaultErrnoRet); err != nil {
		return nil, fmt.Errorf("defaultErrno: %w", err)
	}
	for i, r := range p.Syscalls {
		rule, err := r.plain()
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d].%w", i, err)
		}
		included, _, err := meets(r.Includes)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d].includes.%w", i, err)
		}
		_, excluded, err := meets(r.Excludes)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d].excludes.%w", i, err)
		}
		if included && !excluded {
			out.Syscalls = append(out.Syscalls, rule)
		}
	}
	return out, nil
}

// architectures are those of the machine's own family.
func (p *Profile) architectures() ([]specs.Arch, error) {
	if len(p.ArchMap) == 0 {
		return p.Architectures, nil
	}
	if len(p.Architectures) > 0 {
		return nil, errors.New("architectures and archMap: only one of them can be given")
	}
	var own []specs.Arch
	for _, f := range p.ArchMap {
		if native := family(runtime.GOARCH); len(native) > 0 && f.Arch == native[0].name {
			own = append(append(own, f.Arch), f.SubArchs...)
		}
	}
	return own, nil
}

// plain is the rule without its conditions.
func (r ProfileRule) plain() (rule specs.LinuxSyscall, err error) {
	rule = r.LinuxSyscall
	if r.Name != "" {
		if len(r.Names) > 0 {
			return rule, fmt.Errorf("name: %q: there are names, too", r.Name)
		}
		rule.Names = []string{r.Name}
	}
	if rule.ErrnoRet, err = errnoOf(r.Errno, r.ErrnoRet); err != nil {
		return rule, fmt.Errorf("errno: %w", err)
	}
	return rule, nil
}

// errnoOf is the number that a name stands for.
func errnoOf(name string, number *uint) (*uint, error) {
	if name == "" {
		return number, nil
	}
	for n := range uint(4096) { // MAX_ERRNO
		if unix.ErrnoName(unix.Errno(n)) == name {
			return &n, nil
		}
	}
	return nil, fmt.Errorf("%q is no error of this system", name)
}

// machine is what conditions are about.
type machine struct {
	arch          string
	kernel, major int
	caps          []string
}

func thisMachine(caps []string) (*machine, error) {
	m := &machine{arch: runtime.GOARCH, caps: caps}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &m.kernel, &m.major); err != nil {
		return nil, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return m, nil
}

// architectureNames are libseccomp's, and one that Docker misspells.
const architectureNames = " x86 amd64 x32 arm arm64 loongarch64 m68k mips mips64 mips64n32 mipsel mipsel64 mipsel64n32 mips3l64n32" +
	" parisc parisc64 ppc ppc64 ppc64le riscv64 s390 s390x sh sheb "

// meets says whether all parts of a condition hold, and whether any does. A list of
// architectures holds when the machine's is in it, one of capabilities when all are held.
func (m *machine) meets(c *Condition) (every, some bool, err error) {
	if c == nil {
		return true, false, nil
	}
	for i, a := range c.Arches {
		if !strings.Contains(architectureNames, " "+a+" ") {
			return false, false, fmt.Errorf("arches[%d]: %q is not known", i, a)
		}
	}
	name := regexp.MustCompile(`^CAP_[A-Z_]+$`)
	held := 0
	for i, capability := range c.Caps {
		if !name.MatchString(capability) { // one that this kernel has not is held by nobody
			return false, false, fmt.Errorf("caps[%d]: %q: want a name such as CAP_SYS_ADMIN", i, capability)
		}
		if slices.Contains(m.caps, capability) {
			held++
		}
	}
	newer := false
	if c.MinKernel != "" {
		if newer, err = m.atLeast(c.MinKernel); err != nil {
			return false, false, err
		}
	}
	arch := slices.Contains(c.Arches, m.arch)
	every = (arch || len(c.Arches) == 0) && held == len(c.Caps) && (newer || c.MinKernel == "")
	return every, arch || held > 0 || newer, nil
}

// atLeast compares kernel versions without what comes behind the second number.
func (m *machine) atLeast(version string) (bool, error) {
	first, second, ok := strings.Cut(version, ".")
	kernel, err1 := strconv.Atoi(first)
	major, err2 := strconv.Atoi(second)
	if !ok || err1 != nil || err2 != nil || kernel <= 0 || major < 0 {
		return false, fmt.Errorf("minKernel: %q: want KERNEL.MAJOR, such as 4.8", version)
	}
	return m.kernel > kernel || m.kernel == kernel && m.major >= major, nil
}
