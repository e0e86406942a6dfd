package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
)

// Report lists what this machine can do for containers.
type Report []Feature

// Feature is one ability of the machine.
type Feature struct {
	// Name is stable, for example "cgroup".
	Name string `json:"name"`
	// OK is false when the ability is missing.
	OK bool `json:"ok"`
	// Detail says what was found, or what its lack means.
	Detail string `json:"detail"`
}

// Has says whether the named feature is there.
func (r Report) Has(name string) bool {
	for _, f := range r {
		if f.Name == name {
			return f.OK
		}
	}
	return false
}

// FeatureUserNS is the feature that DefaultSpec(userns) needs: user namespaces
// with id-mapped overlay layers.
const FeatureUserNS = "user namespaces with id-mapped layers"

// Features probes the machine by doing, not by version numbers. It changes
// nothing that outlives the call. Layers are probed in the temporary directory:
// use FeaturesAt for the file system that will hold them.
func Features() Report { return FeaturesAt(os.TempDir()) }

// FeaturesAt is Features with the directory whose file system will hold layers.
func FeaturesAt(dir string) Report {
	probes := []struct {
		name, lack string
		probe      func() (string, error)
	}{
		{"root", "containers need root", probeRoot},
		{"kernel", "Linux 5.12 or later is needed", probeKernel},
		{"overlay", "images cannot be stacked", func() (string, error) { return probeOverlay(dir, nil) }},
		{FeatureUserNS, "root in a container is root of the machine; Linux 5.19 and ext4, xfs or btrfs below the data directory have it", func() (string, error) { return probeUserNS(dir) }},
		{"seccomp", "system calls are not filtered", probeSeccomp},
		{"cgroup", "no limits are possible", probeCgroup},
		{"kill and freeze by cgroup", "stopping is slower", probeUnified},
		{"exit codes by pidfd", "after a monitor's death the exit code is unknown", probePidfd},
		{"raise resource limits", "limits are clamped to those of the agent", probeResource},
		{"embedded init", "the agent re-executes itself: start is slower", probeEmbedded},
	}
	var r Report
	for _, p := range probes {
		detail, err := p.probe()
		if err != nil {
			detail = p.lack + ": " + err.Error()
		}
		r = append(r, Feature{p.name, err == nil, detail})
	}
	return r
}

func probeRoot() (string, error) {
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("user id is %d", os.Geteuid())
	}
	return "user id 0", nil
}

// probeKernel asks for mount_setattr, the youngest call without a fallback.
func probeKernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{})
	if errors.Is(err, unix.ENOSYS) {
		return "", err
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// probeOverlay mounts a detached overlay of empty directories.
func probeOverlay(dir string, userns *os.File) (detail string, err error) {
	tmp, err := os.MkdirTemp(dir, ".naru-probe-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, removeProbe(tmp)) }()
	o := Overlay{Lower: []string{tmp + "/lower"}, Upper: tmp + "/upper", Work: tmp + "/work"}
	for _, d := range []string{o.Lower[0], o.Upper, o.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	root, err := mountRoot(o, false, userns)
	if err != nil {
		return "", err
	}
	return "on " + dir, root.Close()
}

// removeProbe waits for the unmount, which may be a moment later than the close.
func removeProbe(tmp string) (err error) {
	for range 100 {
		for _, d := range []string{"work/work", "work", "upper", "lower", ""} {
			err = os.Remove(filepath.Join(tmp, d))
		}
		if err == nil {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

func probeUserNS(dir string) (string, error) {
	m, err := spawn(monitor.ArgMonitor, nil)
	if err != nil {
		return "", err
	}
	defer m.close()
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	maps := mountMapText(DefaultSpec(&IDRange{Base: 1 << 20, Count: 1 << 16}).Linux.UIDMappings)
	r, err := m.call(ctx, monitor.EncodeMaps(maps, maps), monitor.ReplyFD)
	if err != nil {
		return "", err
	}
	if len(r.fds) != 1 {
		return "", errors.New("internal error: monitor sent no namespace")
	}
	userns := os.NewFile(uintptr(r.fds[0]), "userns")
	defer userns.Close()
	return probeOverlay(dir, userns)
}

func probeSeccomp() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	return strings.TrimSpace(string(b)), err
}

func probeCgroup() (string, error) {
	h, err := cgroup.Detect()
	if err != nil {
		return "", err
	}
	var lack []string
	for _, c := range []string{"memory", "pids", "cpu", "devices"} {
		if !h.Has(c) {
			lack = append(lack, c)
		}
	}
	kind := "v2"
	if len(h.V1) > 0 {
		kind = "v1"
		if h.Unified != "" {
			kind = "hybrid: limits by v1, kill and freeze by v2"
		}
	}
	if len(lack) > 0 {
		return "", fmt.Errorf("%s has no controller %s", kind, strings.Join(lack, ", "))
	}
	return kind, nil
}

func probeUnified() (string, error) {
	h, err := cgroup.Detect()
	if err != nil {
		return "", err
	}
	if h.Unified == "" {
		return "", errors.New("no cgroup2 is mounted")
	}
	return h.Unified, nil
}

// probePidfd uses our own pidfd: the ioctl exists since Linux 6.13, the exit
// code in it since 6.15.
func probePidfd() (string, error) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := monitor.CanAskExit(fd); err != nil {
		return "", err
	}
	return "PIDFD_GET_INFO", nil
}

func probeResource() (string, error) {
	data := [2]unix.CapUserData{}
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return "", err
	}
	if data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		return "", errors.New("no CAP_SYS_RESOURCE")
	}
	return "CAP_SYS_RESOURCE", nil
}

func probeEmbedded() (string, error) {
	f, err := openEmbedded()
	if err != nil {
		return "", err
	}
	return "naru-init", f.Close()
}
