package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// checkRuntime finds the OCI runtime that was asked for, so that the record says which
// one it is whatever PATH is later, and refuses what another runtime cannot be
// trusted to do. What it then does itself is its own affair: namespaces, mounts,
// rights, seccomp. What the engine does around it stays the engine's: files,
// network, limits, log, end.
func (c *ContainerConfig) checkRuntime() error {
	if c.Runtime == "" {
		return nil
	}
	path, err := findRuntime(c.Runtime)
	if err != nil {
		return err
	}
	c.Runtime = path
	no := func(flag, why string) error { return fmt.Errorf("%s with runtime %s: %s", flag, path, why) }
	switch {
	case c.Init:
		return no("init", "the first process of the container is the runtime's affair")
	case c.Domainname != "":
		return no("domainname "+c.Domainname, "not every OCI runtime sets it")
	}
	for _, s := range c.Namespaces.all() {
		if !s.private() && s.mode != NamespaceHost {
			return no(s.flag+" "+s.mode, "only containers of our own runtime join others' namespaces")
		}
	}
	for i := range c.Mounts {
		m := &c.Mounts[i]
		switch {
		case m.ReadOnlyTree:
			return no("mount "+m.String(), "not every OCI runtime makes mounts below read-only too")
		case strings.HasSuffix(m.Propagation, "shared"):
			return no("mount "+m.String()+" with propagation "+m.Propagation, "what it mounts there does not come out of its runtime's mount namespace")
		}
	}
	return nil
}

// findRuntime turns a name into the path of the program that PATH has for it. The error
// of one that cannot be run is a *runtime.StartError.
func findRuntime(name string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			return "", fmt.Errorf("runtime %q: want an absolute path, or a name that is looked up in PATH", name)
		}
		return filepath.Clean(name), runtime.CheckForeign(name)
	}
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("runtime %q: not found in PATH %q: %w", name, os.Getenv("PATH"), fs.ErrNotExist)
	}
	if err != nil {
		return "", fmt.Errorf("runtime %q: %w", name, err)
	}
	return path, runtime.CheckForeign(path)
}

// foreign is the OCI runtime of a container, nil for our own.
func (r *record) foreign() *runtime.Foreign {
	if r.Config.Runtime == "" {
		return nil
	}
	return &runtime.Foreign{Path: r.Config.Runtime}
}

// viewProgram looks at a container's root as its program sees it. The caller checks
// afterwards that the container still runs.
func viewProgram(rt *runtime.Container) (*rootView, int, error) {
	pid, err := rt.ProgramPid()
	if err != nil {
		return nil, 0, fmt.Errorf("view container's root: %w", err)
	}
	view, err := viewProcess(pid)
	if err != nil {
		return nil, 0, err
	}
	if err := rt.IsRoot(view.fd); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("view container's root: %w", err), view.Close())
	}
	return view, pid, nil
}

// stillProgram says whether pid is the container's program after something of it
// was opened.
func stillProgram(rt *runtime.Container, pid int) error {
	if again, err := rt.ProgramPid(); err != nil || again != pid {
		return errors.Join(ErrNotRunning, err)
	}
	if rt.State() == runtime.Stopped {
		return ErrNotRunning
	}
	return nil
}

// unstarted keeps a restart policy from repeating a start that another runtime has
// refused: its monitor cannot tell that from a program that ended.
func (e *Engine) unstarted(r *record) error {
	if r.foreign() == nil || !r.Config.Restart.wanted() {
		return nil
	}
	s, err := e.loadLife(r.ID)
	if err != nil {
		return err
	}
	s.Stopped = true
	return e.saveLife(r.ID, s)
}

// ownNamespace refuses to hand a namespace of the host out as a container's.
func ownNamespace(f *os.File) error {
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &theirs); err != nil {
		return fmt.Errorf("stat namespace: %w", err)
	}
	if err := unix.Stat("/proc/thread-self/ns/"+filepath.Base(f.Name()), &ours); err != nil {
		return fmt.Errorf("stat namespace: %w", err)
	}
	if theirs.Ino == ours.Ino {
		return runtime.ErrHidden
	}
	return nil
}
