package runtime

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/cgroup"
)

// Foreign lets another OCI runtime run the container. The monitor's child is then
// that runtime: it gets the overlay, the network, the standard streams and a bundle
// from us, and makes the rest, on which the container's isolation depends, itself.
type Foreign struct {
	// Path is an absolute path of a program with runc's command line: run, exec, kill
	// and delete with --root, --log, --log-format, --bundle, --process and --pid-file.
	Path string
}

// What a foreign container has in its state directory beside the files of every one.
const (
	fileBundle  = "config.json" // the bundle is the state directory
	dirRootfs   = "rootfs"      // empty, but in the mount namespace of the runtime
	dirRuntime  = "oci"         // the runtime's own state; it is there as long as anything of this list
	fileProgram = "oci.pid"     // the program's pid, once the runtime has started it
	fileRefusal = "oci.log"     // what the runtime had to say, for its errors
	jobPattern  = "exec-*"      // a directory for each exec under way
)

// foreignRecord is what state.json keeps of a foreign container.
type foreignRecord struct {
	Path    string `json:"path"`
	Program string `json:"program"` // its first argument, to tell whom an error is about
	// RootDev and RootIno are of the root directory: a process that has another root
	// is not the container's.
	RootDev uint64 `json:"root_dev"`
	RootIno uint64 `json:"root_ino"`
}

// checkForeign refuses what another runtime cannot be trusted to do as written.
func checkForeign(c Config) error {
	if err := CheckForeign(c.Foreign.Path); err != nil {
		return err
	}
	if c.Init {
		return errors.New("init: the program of a container with another runtime has no init of ours")
	}
	if c.Spec.Domainname != "" {
		return errors.New("domainname: not every OCI runtime sets it")
	}
	for _, n := range c.Spec.Linux.Namespaces {
		switch {
		case n.Type == specs.UserNamespace:
			return errors.New("linux.namespaces: a user namespace needs id-mapped layers, which other runtimes are not given")
		case n.Path != "" && n.Type != specs.NetworkNamespace:
			return fmt.Errorf("linux.namespaces: another runtime does not join a %s namespace", n.Type)
		}
	}
	if s := c.Spec.Linux.Seccomp; s != nil {
		_, err := Filter(s)
		return err
	}
	return nil
}

// CheckForeign refuses a path that cannot be run. The error is a *StartError whose Code is
// 127 where nothing is there and 126 where it is no program.
func CheckForeign(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("runtime %q: not an absolute path", path)
	}
	st, err := os.Stat(path)
	if err == nil && (!st.Mode().IsRegular() || st.Mode()&0o111 == 0) {
		err = unix.EACCES
	}
	if err == nil {
		return nil
	}
	if e := new(fs.PathError); errors.As(err, &e) {
		err = e.Err
	}
	return &StartError{Step: stepExec, Err: &fs.PathError{Op: "runtime", Path: path, Err: err}}
}

// foreign splits the spec: Spec becomes what the runtime's own process is started by,
// bundle what the runtime is told.
func (c *creation) foreign() error {
	if c.Foreign == nil {
		return nil
	}
	if err := checkForeign(c.Config); err != nil {
		return err
	}
	whole := c.Spec
	told, linux := *whole, *whole.Linux
	told.Linux, told.Root = &linux, &specs.Root{Path: filepath.Join(c.StateDir, dirRootfs), Readonly: whole.Root != nil && whole.Root.Readonly}
	linux.CgroupsPath = "/" + c.Cgroup
	linux.Namespaces, linux.Sysctl = nil, maps.Clone(whole.Linux.Sysctl)
	ours := &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}, Sysctl: map[string]string{}}
	for _, n := range whole.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace { // its process is in it, and so what it starts
			ours.Namespaces = append(ours.Namespaces, n)
			continue
		}
		linux.Namespaces = append(linux.Namespaces, n)
	}
	for key, value := range whole.Linux.Sysctl {
		if strings.HasPrefix(key, "net.") { // runtimes refuse them for a network that they did not make
			ours.Sysctl[key] = value
			delete(linux.Sysctl, key)
		}
	}
	if r := whole.Linux.Resources; r != nil {
		limits := *r
		limits.Devices = nil // a sandbox may need devices that the program is not to have: the runtime sees to them
		ours.Resources = &limits
	}
	c.bundle, c.told = &told, whole.Process.Args[0]
	c.Spec = &specs.Spec{Version: whole.Version, Linux: ours, Process: c.runtimeProcess(whole.Process)}
	return nil
}

// runtimeProcess is the process of the runtime itself.
func (c *creation) runtimeProcess(program *specs.Process) *specs.Process {
	args := foreignArgs(c.Foreign.Path, c.StateDir, filepath.Join(c.StateDir, fileRefusal), "run",
		"--bundle", c.StateDir, "--pid-file", filepath.Join(c.StateDir, fileProgram), c.ID)
	return &specs.Process{Args: args, Env: foreignEnv(), Cwd: "/", Terminal: program.Terminal, ConsoleSize: program.ConsoleSize}
}

// foreignArgs is a command line of the runtime.
func foreignArgs(path, stateDir, log, verb string, args ...string) []string {
	return append([]string{path, "--root", filepath.Join(stateDir, dirRuntime), "--log", log, "--log-format", "json", verb}, args...)
}

// foreignEnv is all of our environment that a runtime gets to know.
func foreignEnv() []string { return []string{"PATH=" + defaultPath} }

// writeBundle fills the state directory. The runtime's directory comes first, as it
// tells removeBundle to look for the others.
func (c *creation) writeBundle() error {
	if c.bundle == nil {
		return nil
	}
	for _, name := range []string{dirRuntime, dirRootfs} {
		if err := os.Mkdir(filepath.Join(c.StateDir, name), 0o700); err != nil {
			return err
		}
	}
	config, err := json.Marshal(c.bundle)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.StateDir, fileBundle), config, 0o600)
}

// foreignRecord tells later processes how to find the container's own.
func (c *creation) foreignRecord() (*foreignRecord, error) {
	if c.Foreign == nil {
		return nil, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(c.rootfs.Fd()), &st); err != nil {
		return nil, fmt.Errorf("stat root: %w", err)
	}
	return &foreignRecord{Path: c.Foreign.Path, Program: c.told, RootDev: st.Dev, RootIno: st.Ino}, nil
}

// removeElsewhere removes a foreign container's group where only its runtime used it.
func removeElsewhere(stateDir string, group *cgroup.Group) error {
	_, err := os.Lstat(filepath.Join(stateDir, dirRuntime))
	if err != nil || group == nil {
		return nil // it is ours
	}
	return group.RemoveElsewhere()
}

// removeBundle removes what writeBundle and the runtime made in a state directory.
func removeBundle(stateDir string) error {
	own := filepath.Join(stateDir, dirRuntime)
	if _, err := os.Lstat(own); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	jobs, err := filepath.Glob(filepath.Join(stateDir, jobPattern))
	if err != nil {
		return err
	}
	for _, name := range []string{fileBundle, fileProgram, fileRefusal, dirRootfs} {
		jobs = append(jobs, filepath.Join(stateDir, name))
	}
	for _, path := range append(jobs, own) {
		if err := removeUnmounted(path); err != nil {
			return err
		}
	}
	return nil
}

// removeUnmounted is os.RemoveAll that refuses to go into a mount: the overlay, should
// a runtime have let it out of its namespace, is somebody's files.
func removeUnmounted(path string) error {
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == path || strings.HasPrefix(f[4], path+"/")) {
			return fmt.Errorf("remove %s: %s is mounted there", path, f[4])
		}
	}
	return os.RemoveAll(path)
}
