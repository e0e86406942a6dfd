package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime"
)

// ExecOptions are those of Exec.
type ExecOptions struct {
	Process *specs.Process
	// Cgroup is below the container's; empty is the container's own.
	Cgroup  string
	PidFile string
	IO
}

// Exec runs one more process in a running container and returns its pid, once it
// runs. It becomes the child of the nearest subreaper.
func (r Runtime) Exec(ctx context.Context, id string, o ExecOptions) (int, error) {
	c, err := r.Open(id)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if c.Status != specs.StateRunning && c.Status != specs.StateCreated {
		return 0, fmt.Errorf("%w: cannot exec in container %s, which is %s", ErrState, id, c.Status)
	}
	if o.Process.Terminal && o.Console == nil {
		return 0, errors.New("process.terminal: needs a console socket")
	}
	warnings, err := runtime.CheckProcess(o.Process, c.Config)
	for _, w := range warnings {
		r.warn("%s", w)
	}
	if err != nil {
		return 0, err
	}
	group := path.Join(c.Cgroup, path.Join("/", o.Cgroup))
	pid, err := runtime.ExecSolo(ctx, c.rec.Init, runtime.SoloExec{
		Spec: c.Config, Process: o.Process, Cgroup: group,
		Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Preserve: o.Preserve, Console: o.Console,
		Listener: func(f *os.File, pid int) error { return sendListener(f, c.Config.Linux.Seccomp, pid, c.State) },
		Save:     func(pid int) error { return writePid(o.PidFile, pid) },
	})
	return pid, startError(o.Process, err)
}

// Process is a copy of the container's own process, to be changed for an Exec.
func (c *Container) Process() (*specs.Process, error) {
	b, err := json.Marshal(c.Config.Process)
	if err != nil {
		return nil, err
	}
	p := &specs.Process{}
	return p, json.Unmarshal(b, p)
}

// SendConsole returns a Console that sends the master to a unix socket, as
// runc's --console-socket does: SCM_RIGHTS with the terminal's name as its message.
func SendConsole(socket string) func(*os.File) error {
	return func(master *os.File) error {
		defer master.Close()
		return sendFile(socket, []byte("/dev/ptmx"), master)
	}
}

// sendListener gives the listener of a seccomp filter to the agent of the policy.
func sendListener(f *os.File, policy *specs.LinuxSeccomp, pid int, s specs.State) error {
	defer f.Close()
	b, err := json.Marshal(specs.ContainerProcessState{Version: specs.Version, Fds: []string{specs.SeccompFdName}, Pid: pid, Metadata: policy.ListenerMetadata, State: s})
	if err != nil {
		return err
	}
	if err := sendFile(policy.ListenerPath, b, f); err != nil {
		return fmt.Errorf("linux.seccomp.listenerPath: %w", err)
	}
	return nil
}

func sendFile(socket string, message []byte, f *os.File) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, _, err = conn.WriteMsgUnix(message, unix.UnixRights(int(f.Fd())), nil)
	return err
}
