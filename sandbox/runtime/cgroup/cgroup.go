// Package cgroup makes, limits, freezes, kills and removes the control groups of
// one container, on cgroup v2, v1 and the mix of both.
//
// A group's life: ParsePath reads the configuration's cgroupsPath, Detect finds the
// hierarchies, Create makes the directories and writes all limits while nobody is
// inside, the container's first process is born in the unified directory (clone3
// CLONE_INTO_CGROUP) and enters the others through Tasks. Then Update changes
// limits, Freeze stops and goes on, Stats, Pids and OOMKills look, NotifyOOM waits.
// Kill ends everything inside, Remove takes the directories away.
//
// Wherever a cgroup2 mount exists, even one without controllers, the group has a
// directory there: killing, freezing and pressure need it. Limits go to whichever
// hierarchy has the controller; of device rules, both get all they can hold.
//
// A limit that the machine cannot hold is an error which names field and value, with
// two exceptions. resources.memory.kernel does nothing: kernels ignore it since 5.16
// and runtime-spec lets runtimes do so. And zero means "not set" for the numbers of
// memory, cpu, pids and blockIO, as it does for runc and Docker.
package cgroup

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Host is what cgroup file systems the machine has mounted.
type Host struct {
	// Unified is the mount point of cgroup2, or empty.
	Unified string
	// V1 maps a controller to the mount point of its v1 hierarchy.
	V1 map[string]string
	// Controllers are those of the unified hierarchy.
	Controllers []string
}

// detected is what the machine was found to have, and when.
type detected struct {
	mu   sync.Mutex
	host Host
	at   time.Time
}

// last is shared by all, as there is one machine.
var last = sync.OnceValue(func() *detected { return new(detected) })

// fresh is how long an answer is believed: a container's start and end ask nine
// times, and each look at all hierarchies takes as long as making a group in one.
const fresh = 50 * time.Millisecond

// Detect finds the machine's hierarchies. The mount table is read once, as that
// takes longer than making a group; it is read again when what was found is no
// longer there. An answer may be 50 ms old. Its maps must not be changed.
func Detect() (Host, error) {
	d := last()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.at.IsZero() && time.Since(d.at) < fresh {
		return d.host, nil
	}
	h, err := d.host, error(nil)
	if d.at.IsZero() || !h.mounted() {
		h, err = readMounts()
	}
	if err == nil && h.Unified != "" {
		var b []byte
		b, err = readFile(filepath.Join(h.Unified, "cgroup.controllers"))
		h.Controllers = strings.Fields(string(b))
	}
	if err != nil {
		d.at = time.Time{}
		return Host{}, fmt.Errorf("detect cgroups: %w", err)
	}
	d.host, d.at = h, time.Now()
	return h, nil
}

// mounted says whether every hierarchy still is where it was found.
func (h Host) mounted() bool {
	is := func(path string, kind int64) bool {
		var st unix.Statfs_t
		return unix.Statfs(path, &st) == nil && int64(st.Type) == kind
	}
	for _, m := range h.V1 {
		if !is(m, unix.CGROUP_SUPER_MAGIC) {
			return false
		}
	}
	if h.Unified == "" {
		return len(h.V1) > 0
	}
	return is(h.Unified, unix.CGROUP2_SUPER_MAGIC)
}

// readMounts reads the mount table of the calling process (proc_pid_mountinfo(5)).
func readMounts() (Host, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Host{}, err
	}
	defer f.Close()
	h := Host{V1: map[string]string{}}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		h.mount(strings.Fields(lines.Text()))
	}
	return h, lines.Err()
}

// controllers are those that this package can limit or needs for statistics.
func controllers() []string {
	return []string{"memory", "pids", "cpu", "cpuacct", "cpuset", "blkio", "devices", "freezer", "hugetlb", "net_cls", "net_prio", "rdma"}
}

// mount takes one line of mountinfo: fields, "-", type, source, super options.
func (h *Host) mount(f []string) {
	dash := slices.Index(f, "-")
	if dash < 5 || len(f) < dash+4 || f[3] != "/" {
		return
	}
	switch f[dash+1] {
	case "cgroup2":
		if h.Unified == "" {
			h.Unified = f[4]
		}
	case "cgroup":
		for _, option := range strings.Split(f[dash+3], ",") {
			if slices.Contains(controllers(), option) && h.V1[option] == "" {
				h.V1[option] = f[4]
			}
		}
	}
}

// Has says whether the controller can be used, in words of v1 ("blkio" is v2's "io").
func (h Host) Has(controller string) bool {
	if h.V1[controller] != "" {
		return true
	}
	switch controller {
	case "cpuacct", "devices", "freezer":
		return h.Unified != "" // core features of v2
	}
	return slices.Contains(h.Controllers, unifiedName(controller))
}

// unifiedName is v2's name of a controller of v1.
func unifiedName(controller string) string {
	if controller == "blkio" {
		return "io"
	}
	return controller
}

func v1Name(controller string) string {
	if controller == "io" {
		return "blkio"
	}
	return controller
}
