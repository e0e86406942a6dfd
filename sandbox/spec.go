package sandbox

import (
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"naru/sandbox/runtime"
)

// limits are what a container may use; zero means what the runtime gives.
type limits struct {
	memory int64
	cpus   float64
	pids   int64
}

// idRange returns the host ids of the container, nil for the host's own.
func (r *record) idRange() *runtime.IDRange {
	if r.Block < 0 {
		return nil
	}
	return &runtime.IDRange{Base: idBase + uint32(r.Block)*idSize, Count: idSize}
}

// spec turns the record into what the runtime runs.
func (e *Engine) spec(r *record) (*specs.Spec, error) {
	s := runtime.DefaultSpec(r.idRange())
	s.Process = r.Process
	s.Hostname = r.Config.Hostname
	s.Root = &specs.Root{Path: "rootfs", Readonly: r.Config.ReadOnly}
	s.Domainname, s.Annotations = r.Config.Domainname, r.Config.Annotations
	setLimits(s, limits{r.Config.Memory, r.Config.CPUs, r.Config.Pids})
	setNetwork(s, r.Config.Network)
	r.Config.Resources.apply(s)
	if err := r.Config.Security.apply(s); err != nil {
		return nil, err
	}
	r.Config.Namespaces.apply(s)
	if r.Step {
		s.Mounts = append(s.Mounts, e.etcMounts(r.ID)...)
		if r.mounts != nil {
			s.Mounts = append(s.Mounts, r.mounts.specs...)
		}
		return s, nil
	}
	mounts, err := e.userMounts(r)
	if err != nil {
		return nil, err
	}
	// A mount of the user's on /etc/hosts must lie above ours.
	s.Mounts = append(append(s.Mounts, e.etcMounts(e.etcOf(r))...), mounts...)
	return s, nil
}

func setLimits(s *specs.Spec, l limits) {
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	res := s.Linux.Resources
	if l.memory > 0 {
		// Swap counts memory and swap together: equal means no swap, so that a
		// container over its limit ends instead of dragging the host along.
		res.Memory = &specs.LinuxMemory{Limit: &l.memory, Swap: &l.memory}
	}
	if l.cpus > 0 {
		period := uint64(100_000)
		quota := int64(l.cpus * float64(period))
		res.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if l.pids != 0 {
		res.Pids = &specs.LinuxPids{Limit: &l.pids}
	}
}

// setNetwork takes the network namespace away where the host's is wanted.
func setNetwork(s *specs.Spec, network string) {
	if network != NetworkHost {
		return
	}
	kept := s.Linux.Namespaces[:0]
	for _, ns := range s.Linux.Namespaces {
		if ns.Type != specs.NetworkNamespace {
			kept = append(kept, ns)
		}
	}
	s.Linux.Namespaces = kept
	for key := range s.Linux.Sysctl {
		if len(key) > 4 && key[:4] == "net." {
			delete(s.Linux.Sysctl, key) // they would be the host's
		}
	}
}

// etcMounts are the three files that the engine writes for a container.
func (e *Engine) etcMounts(id string) []specs.Mount {
	var mounts []specs.Mount
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		mounts = append(mounts, specs.Mount{
			Type: "bind", Source: filepath.Join(e.dir(id), name), Destination: "/etc/" + name,
			Options: []string{"bind", "rprivate", "nosuid", "nodev", "noexec"},
		})
	}
	return mounts
}

func (e *Engine) userMounts(r *record) ([]specs.Mount, error) {
	var mounts []specs.Mount
	for _, m := range r.Config.Mounts {
		if m.Tmpfs {
			mounts = append(mounts, m.tmpfs())
			continue
		}
		source := m.Source
		if m.Volume {
			v, err := e.volumes.Get(m.Source)
			if err != nil {
				return nil, err
			}
			source = v.Path
		}
		options := append([]string{"rbind", firstOf(m.Propagation, "rprivate"), "nosuid", "nodev"}, m.Options...)
		if m.Flat {
			options[0] = "bind"
		}
		if m.ReadOnly {
			options = append(options, "ro")
		}
		if m.ReadOnlyTree {
			options = append(options, "rro")
		}
		mounts = append(mounts, specs.Mount{Type: "bind", Source: source, Destination: m.Target, Options: options})
	}
	return mounts, nil
}
