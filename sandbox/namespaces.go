package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// NamespaceHost shares a namespace with the host, and NamespacePrivate, like the
// empty string, does not. "container:" and a name or id shares another
// container's.
const (
	NamespaceHost    = "host"
	NamespacePrivate = "private"
	namespaceOf      = "container:"
)

// Namespaces says with whom a container shares what namespaces(7) would keep apart.
type Namespaces struct {
	IPC    string `json:"ipc,omitempty"`
	PID    string `json:"pid,omitempty"`
	UTS    string `json:"uts,omitempty"`
	Cgroup string `json:"cgroup,omitempty"`
}

// sharing is one namespace and whose it is.
type sharing struct {
	flag string // of run
	file string // in /proc/<pid>/ns
	kind specs.LinuxNamespaceType
	mode string
}

func (n Namespaces) all() []sharing {
	return []sharing{
		{"ipc", "ipc", specs.IPCNamespace, n.IPC}, {"pid", "pid", specs.PIDNamespace, n.PID},
		{"uts", "uts", specs.UTSNamespace, n.UTS}, {"cgroupns", "cgroup", specs.CgroupNamespace, n.Cgroup},
	}
}

func (s sharing) private() bool { return s.mode == "" || s.mode == NamespacePrivate }

// ofHost says that a namespace was asked to be the host's.
func (n Namespaces) ofHost(kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(n.all(), func(s sharing) bool { return s.kind == kind && s.mode == NamespaceHost })
}

// shared names a namespace that is not the container's own, or nothing.
func (n Namespaces) shared() string {
	for _, s := range n.all() {
		if !s.private() {
			return s.flag + " " + s.mode
		}
	}
	return ""
}

func (n Namespaces) check(c *ContainerConfig) error {
	for _, s := range n.all() {
		_, isContainer := strings.CutPrefix(s.mode, namespaceOf)
		if !s.private() && s.mode != NamespaceHost && (!isContainer || len(s.mode) == len(namespaceOf)) {
			return fmt.Errorf("%s %q: want host, private or container:NAME", s.flag, s.mode)
		}
		if s.kind == specs.UTSNamespace && !s.private() && (c.Hostname != "" || c.Domainname != "") {
			return fmt.Errorf("uts %s: a host name cannot be set in a namespace of others", s.mode)
		}
	}
	return c.checkSysctls()
}

// checkSysctls lets through what belongs to a namespace of the container's own:
// any other would be the host's (sysctl(8), namespaces(7)).
func (c *ContainerConfig) checkSysctls() error {
	ipc := []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}
	for key := range c.Security.Sysctls {
		isIPC := slices.Contains(ipc, key) || strings.HasPrefix(key, "fs.mqueue.")
		isNet := strings.HasPrefix(key, "net.")
		switch {
		case !isIPC && !isNet:
			return fmt.Errorf("sysctl %s belongs to no namespace: it would change the host", key)
		case isIPC && !(sharing{mode: c.Namespaces.IPC}).private():
			return fmt.Errorf("sysctl %s would change the ipc namespace of others", key)
		case isNet && (c.Network == NetworkHost || strings.HasPrefix(c.Network, NetworkContainer)):
			return fmt.Errorf("sysctl %s would change the network of others", key)
		}
	}
	return nil
}

// apply takes the namespaces of the host out of the spec. Others' are joined by
// joinNamespaces, for which the other container must run.
func (n Namespaces) apply(spec *specs.Spec) {
	for _, s := range n.all() {
		if s.private() {
			continue
		}
		if s.kind == specs.UTSNamespace {
			spec.Hostname, spec.Domainname = "", "" // they would become the others' too
		}
		if s.mode == NamespaceHost {
			spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == s.kind })
		}
	}
}

// namespaceFiles keeps joined namespaces open until the container is in them.
type namespaceFiles struct{ open []*os.File }

func (f *namespaceFiles) close() {
	for _, file := range f.open {
		_ = file.Close() // read only: nothing can be lost
	}
}

// joinNamespaces writes the namespaces of other containers into the spec.
func (e *Engine) joinNamespaces(r *record, spec *specs.Spec) (*namespaceFiles, error) {
	joined := &namespaceFiles{}
	for _, s := range r.Config.Namespaces.all() {
		ref, ok := strings.CutPrefix(s.mode, namespaceOf)
		if !ok {
			continue
		}
		f, err := e.openNamespace(ref, s)
		if err != nil {
			return joined, fmt.Errorf("%s %s: %w", s.flag, s.mode, err)
		}
		joined.open = append(joined.open, f)
		for i := range spec.Linux.Namespaces {
			if spec.Linux.Namespaces[i].Type == s.kind {
				spec.Linux.Namespaces[i].Path = "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
			}
		}
	}
	return joined, nil
}

// openNamespace opens a namespace of a running container. That its process still
// lives afterwards shows that the pid was not somebody else's.
func (e *Engine) openNamespace(ref string, s sharing) (*os.File, error) {
	id, err := e.resolve(ref)
	if err != nil {
		return nil, err
	}
	other, err := e.load(id)
	if err != nil {
		return nil, err
	}
	if other.Block >= 0 {
		return nil, errors.New("it has a user namespace of its own, which guards it: run it with --userns host")
	}
	rt, err := e.open(id)
	if err != nil {
		return nil, err
	}
	if rt == nil {
		return nil, ErrNotRunning
	}
	defer rt.Close() // the container needs no descriptor of ours
	pid, err := rt.ProgramPid()
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + s.file)
	if err != nil {
		return nil, err
	}
	err = stillProgram(rt, pid)
	if err == nil && other.foreign() != nil && !other.Config.Namespaces.ofHost(s.kind) {
		err = ownNamespace(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
