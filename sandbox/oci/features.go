package oci

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"naru/sandbox/runtime"
	"naru/sandbox/runtime/seccomp"
)

// Features says what this runtime knows, whether or not the machine has it
// (runtime-spec features.md).
func Features() features.Features {
	yes, no := true, false
	f := features.Features{
		OCIVersionMin: "1.0.0", OCIVersionMax: specs.Version,
		Hooks:        []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions: runtime.MountOptions(),
		Linux: &features.Linux{
			Namespaces:      runtime.Namespaces(),
			Capabilities:    runtime.Capabilities(),
			Cgroup:          &features.Cgroup{V1: &yes, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &yes},
			Seccomp:         seccompFeatures(),
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &no, Schemata: &no, Monitoring: &no},
			MemoryPolicy:    &features.MemoryPolicy{Modes: runtime.MemoryPolicyModes(), Flags: runtime.MemoryPolicyFlags()},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &no},
		},
	}
	slices.Sort(f.MountOptions)
	return f
}

func seccompFeatures() *features.Seccomp {
	yes := true
	return &features.Seccomp{
		Enabled: &yes, Actions: words(seccomp.Actions()), Operators: words(seccomp.Operators()), Archs: words(seccomp.Architectures()),
		KnownFlags: words(seccomp.KnownFlags()), SupportedFlags: words(seccomp.Flags()),
	}
}

// words are sorted, as what compares two runtimes likes them.
func words[T ~string](list []T) (all []string) {
	for _, w := range list {
		all = append(all, string(w))
	}
	slices.Sort(all)
	return all
}

// DefaultConfig is a config.json that runs a shell: runc's defaults, with naru's
// capabilities, system call filter and masked paths.
func DefaultConfig() *specs.Spec {
	s := runtime.DefaultSpec(nil)
	s.Hostname = "naru"
	s.Root.Readonly = true
	s.Process.Args = []string{"sh"}
	s.Process.Terminal = true
	s.Process.Env = append(s.Process.Env, "TERM=xterm")
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}}
	return s
}
