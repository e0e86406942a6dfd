package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OOMFile is the file with the line "oom_kill <count>", or empty.
func (g *Group) OOMFile() string {
	if m := g.host.V1["memory"]; m != "" {
		return filepath.Join(m, g.path, "memory.oom_control")
	}
	if slices.Contains(g.host.Controllers, "memory") {
		return filepath.Join(g.UnifiedDir(), "memory.events")
	}
	return ""
}

// OOMKills counts the processes that the kernel killed as the group was out of
// memory; on v1 without those of groups below it.
func (g *Group) OOMKills() (uint64, error) {
	file := g.OOMFile()
	if g.valid() != nil || file == "" {
		return 0, fmt.Errorf("count out-of-memory kills of %q: no memory controller", g.path)
	}
	m, err := keyed(filepath.Dir(file), filepath.Base(file))
	if err != nil {
		return 0, fmt.Errorf("count out-of-memory kills: %w", err)
	}
	return m["oom_kill"], nil
}

// NotifyOOM returns a descriptor that becomes readable when the group runs out of
// memory: an eventfd of v1 (Linux Documentation cgroup-v1/memory, 9), an inotify of
// v2's memory.events. It wakes for more than kills, and v1 wakes just before the kill
// and when the group goes: read it empty, then ask OOMKills. It does not block, so
// that Go's deadlines and poll(2) work on it. The caller closes it.
func (g *Group) NotifyOOM() (*os.File, error) {
	file := g.OOMFile()
	if g.valid() != nil || file == "" {
		return nil, fmt.Errorf("watch out-of-memory of %q: no memory controller", g.path)
	}
	watch := watchEvents
	if filepath.Base(file) == "memory.oom_control" {
		watch = watchControl
	}
	f, err := watch(file)
	if err != nil {
		return nil, fmt.Errorf("watch out-of-memory: %w", err)
	}
	return f, nil
}

func watchEvents(file string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), file), nil
}

func watchControl(file string) (*os.File, error) {
	control, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer control.Close() // the event keeps what it needs
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if err := write(filepath.Dir(file), "cgroup.event_control", fmt.Sprintf("%d %d", fd, control.Fd())); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), file), nil
}

// keyed reads a file of lines "<key> <number>"; other lines are skipped.
func keyed(dir, name string) (map[string]uint64, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := map[string]uint64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		k, v, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m, lines.Err()
}

// gone says that a file is missing because its controller or its group is.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP)
}
