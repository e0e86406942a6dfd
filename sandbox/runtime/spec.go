package runtime

import (
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"naru/sandbox/runtime/seccomp"
)

// defaultCaps are what package managers and servers need as root: Docker's set
// without MKNOD, NET_RAW, AUDIT_WRITE, SETFCAP and SYS_CHROOT.
func defaultCaps() []string {
	return []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_KILL"}
}

// DefaultProcess is the process of DefaultSpec.
func DefaultProcess() *specs.Process {
	caps := defaultCaps()
	return &specs.Process{
		Cwd: "/", Env: []string{"PATH=" + defaultPath}, NoNewPrivileges: true,
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
}

// DefaultSpec is the hardened default: own namespaces, few capabilities, no new
// privileges, seccomp allow-list, masked and read-only paths, a minimal /dev.
// With userns the container's ids are mapped to that host range. The caller
// fills in the process and the resources.
func DefaultSpec(userns *IDRange) *specs.Spec {
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: DefaultProcess(),
		Mounts:  defaultMounts(),
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace},
			},
			Resources:     &specs.LinuxResources{Devices: defaultDeviceRules()},
			Seccomp:       seccomp.Default(defaultCaps()),
			MaskedPaths:   append(maskedPaths(), thermalPaths("/sys")...),
			ReadonlyPaths: []string{"/proc/bus", "/proc/dynamic_debug", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys", "/proc/sysrq-trigger"},
			Sysctl:        map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
		},
	}
	if userns != nil {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: userns.Base, Size: userns.Count}}
		s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
		s.Linux.Sysctl["net.ipv4.ping_group_range"] = "0 65535" // groups outside the map are refused
	}
	return s
}

// defaultMounts have a file for each page in a tmpfs: more could only be empty, and each takes a
// kilobyte of the kernel's memory, which size= does not count.
func defaultMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=65536k", "nr_inodes=16384"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k", "nr_inodes=16384"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// maskedPaths tell about the host or reach its devices.
func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

// thermalPaths are the counters of processors that were too hot, which tell other programs of the
// machine when it works hard (Docker masks them, too). Not every machine has them.
func thermalPaths(sys string) []string {
	found, _ := filepath.Glob(sys + "/devices/system/cpu/cpu[0-9]*/thermal_throttle") // only a bad pattern is an error
	return found
}

// defaultDeviceRules deny all devices but those of the default /dev and terminals.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	allow := func(major, minor int64) {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Access: "rwm"}
		if minor >= 0 {
			r.Minor = &minor
		}
		rules = append(rules, r)
	}
	for _, d := range defaultDevices() {
		allow(d.Major, d.Minor)
	}
	allow(5, 2)    // /dev/ptmx
	allow(136, -1) // /dev/pts/*
	return rules
}
