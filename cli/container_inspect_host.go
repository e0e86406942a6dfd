package cli

import (
	"cmp"
	"strings"

	"naru/sandbox"
)

// inspectedHost is what a container may use and what keeps it apart, in Docker's
// words.
type inspectedHost struct {
	Runtime                                                          string // empty: ours
	NetworkMode, UsernsMode, IpcMode, PidMode, UTSMode, CgroupnsMode string
	Memory, NanoCpus, PidsLimit                                      int64
	MemorySwap, MemoryReservation, CpuQuota, ShmSize                 int64
	CpuShares, CpuPeriod                                             uint64
	CpusetCpus, CpusetMems                                           string
	BlkioWeight                                                      uint16
	OomScoreAdj                                                      int
	ReadonlyRootfs, AutoRemove                                       bool
	CapAdd, CapDrop, SecurityOpt, GroupAdd                           []string
	Devices                                                          []inspectedDevice
	Ulimits                                                          []inspectedUlimit
	Sysctls, Tmpfs, Annotations                                      map[string]string
	Init                                                             bool
	RestartPolicy                                                    inspectedRestart
}

type inspectedDevice struct{ PathOnHost, PathInContainer, CgroupPermissions string }

type inspectedUlimit struct {
	Name       string
	Hard, Soft int64 // -1: no limit
}

func inspectHost(c sandbox.ContainerConfig) inspectedHost {
	r, s, n := c.Resources, c.Security, c.Namespaces
	private := func(mode string) string { return cmp.Or(mode, sandbox.NamespacePrivate) }
	h := inspectedHost{
		NetworkMode: c.Network, Runtime: c.Runtime, UsernsMode: c.UserNS, IpcMode: private(n.IPC), PidMode: n.PID, UTSMode: n.UTS, CgroupnsMode: private(n.Cgroup),
		Memory: c.Memory, NanoCpus: int64(c.CPUs * 1e9), PidsLimit: c.Pids,
		MemorySwap: cmp.Or(r.MemorySwap, c.Memory), MemoryReservation: r.MemoryReservation, CpuQuota: r.CPUQuota, ShmSize: cmp.Or(r.ShmSize, 64<<20),
		CpuShares: r.CPUShares, CpuPeriod: r.CPUPeriod, CpusetCpus: r.CpusetCPUs, CpusetMems: r.CpusetMems, BlkioWeight: r.BlkioWeight,
		ReadonlyRootfs: c.ReadOnly, AutoRemove: c.Remove, CapAdd: s.CapAdd, CapDrop: s.CapDrop, SecurityOpt: securityOptions(s), GroupAdd: c.GroupAdd,
		Sysctls: s.Sysctls, Tmpfs: map[string]string{}, Annotations: c.Annotations,
		Init: c.Init, RestartPolicy: inspectRestart(c.Restart),
	}
	if r.OOMScoreAdj != nil {
		h.OomScoreAdj = *r.OOMScoreAdj
	}
	for _, d := range s.Devices {
		h.Devices = append(h.Devices, inspectedDevice{d.Source, d.Target, d.Access})
	}
	for _, l := range r.Ulimits {
		h.Ulimits = append(h.Ulimits, inspectedUlimit{strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_")), int64(l.Hard), int64(l.Soft)})
	}
	for _, m := range c.Mounts {
		if m.Tmpfs {
			h.Tmpfs[m.Target] = strings.Join(m.Options, ",")
		}
	}
	return h
}

// securityOptions are the values of --security-opt that make the same.
func securityOptions(s sandbox.Security) []string {
	list := []string{}
	if s.NewPrivileges {
		list = append(list, "no-new-privileges=false")
	}
	if s.NoSeccomp {
		list = append(list, "seccomp=unconfined")
	}
	if s.Seccomp != nil {
		list = append(list, "seccomp=profile") // Docker shows the whole document here
	}
	if s.ShowPaths {
		list = append(list, "systempaths=unconfined")
	}
	return list
}
