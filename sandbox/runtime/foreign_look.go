package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/cgroup"
)

// ErrHidden is returned where a container's files or namespaces are to be looked at from
// outside, and its OCI runtime does not let: it has no process that has the
// container's root, as the program is behind a kernel of its own.
var ErrHidden = errors.New("its OCI runtime does not show its files and namespaces")

// ProgramPid is the process to look through into the container: its program. Of a
// container with another runtime that is not Pid, which has the host's files, but
// what the runtime has written down, if that process is in the container's cgroup
// and has its root. Who has opened something of it asks again afterwards, or
// checks with IsRoot.
func (c *Container) ProgramPid() (int, error) {
	if c.rec.Foreign == nil {
		return c.Pid(), nil
	}
	if c.State() == Stopped {
		return 0, ErrNotRunning
	}
	pid, err := pidIn(c.group, filepath.Join(c.stateDir, fileProgram))
	if errors.Is(err, fs.ErrNotExist) && c.State() == Created {
		return 0, errors.New("it has not been started yet")
	}
	if err != nil {
		return 0, err
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, ErrHidden
	}
	defer unix.Close(fd)
	return pid, c.IsRoot(fd)
}

// IsRoot refuses a descriptor that is not the container's root directory. It proves
// nothing for a container of our own, whose Pid can have no other.
func (c *Container) IsRoot(fd int) error {
	f := c.rec.Foreign
	if f == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat root: %w", err)
	}
	if st.Dev != f.RootDev || st.Ino != f.RootIno {
		return ErrHidden
	}
	return nil
}

func readPid(file string) (int, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("pid file of the runtime: %q", text)
	}
	return pid, nil
}

// pidIn reads a pid file, whose process must be in the group.
func pidIn(group *cgroup.Group, file string) (int, error) {
	pid, err := readPid(file)
	if err != nil {
		return 0, err
	}
	pids, err := group.Pids()
	if err != nil {
		return 0, err
	}
	if !slices.Contains(pids, pid) {
		return 0, ErrHidden
	}
	return pid, nil
}
