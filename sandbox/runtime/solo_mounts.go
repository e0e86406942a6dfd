package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
)

// bundleMounts makes every mount that comes from the machine and not from the
// container's own namespaces.
func (s *soloing) bundleMounts(ctx context.Context, got *prepared) error {
	got.binds, got.isDir = map[int]*os.File{}, map[int]bool{}
	for i, m := range s.SoloConfig.Spec.Mounts {
		o := parseOptions(m.Options)
		if o.propagation == unix.MS_UNBINDABLE {
			o.propagation = 0 // the init may clone it once more, and sets this at last
		}
		var err error
		switch {
		case isDev(m):
			got.binds[i], got.isDir[i], s.dev = s.dev, true, nil
		case o.bind || m.Type == "bind":
			got.binds[i], got.isDir[i], err = s.bindFrom(ctx, m, o)
		case (m.Type == "cgroup" || m.Type == "cgroup2") && len(got.cgroup) == 0 && !hasNamespace(s.SoloConfig.Spec, specs.CgroupNamespace):
			// Without a namespace a fresh mount would show the machine's whole tree.
			got.binds[i], err = cloneWith(s.group.UnifiedDir(), o, nil)
			got.isDir[i] = true
		case o.copyUp:
			got.binds[i], err = s.copyUp(m, o, got.root)
			got.isDir[i] = true
		case m.Type == "sysfs" && s.ids.mapped() && !ownNetwork(s.SoloConfig.Spec):
			// The kernel mounts sysfs for the owner of the network namespace only.
			o.set |= unix.MOUNT_ATTR_RDONLY
			got.binds[i], err = cloneWith("/sys", o, nil)
			got.isDir[i] = true
		}
		if err != nil {
			return fmt.Errorf("mounts[%d], on %s: %w", i, m.Destination, err)
		}
	}
	return nil
}

// bindFrom clones a path of the machine, with its ids mapped where the spec says so.
func (s *soloing) bindFrom(ctx context.Context, m specs.Mount, o mountOptions) (*os.File, bool, error) {
	source := absoluteIn(s.Bundle, m.Source)
	st, err := os.Stat(source)
	if err != nil {
		return nil, false, err
	}
	if o.idmap != nil && !*o.idmap || o.idmap == nil && len(m.UIDMappings) == 0 {
		f, err := cloneWith(source, o, nil)
		return f, st.IsDir(), err
	}
	uids, gids := m.UIDMappings, m.GIDMappings
	if len(uids) == 0 {
		uids, gids = s.ids.uids, s.ids.gids
	}
	if len(uids) == 0 || len(gids) == 0 {
		return nil, false, errors.New("idmap without uidMappings and gidMappings, and no user namespace to take them from")
	}
	r, err := s.monitor.call(ctx, monitor.EncodeMaps(mapText(uids), mapText(gids)), monitor.ReplyFD)
	if err != nil || len(r.fds) != 1 {
		return nil, false, fmt.Errorf("make user namespace: %w", err)
	}
	userns := os.NewFile(uintptr(r.fds[0]), "userns")
	defer userns.Close()
	f, err := cloneWith(source, o, userns)
	return f, st.IsDir(), err
}

// soloNamespaces is namespaceFlags for a bundle, where all but user namespaces can be
// joined.
func soloNamespaces(spec *specs.Spec) (flags uint64, join []specs.LinuxNamespace, err error) {
	clone := namespaceBits()
	for _, n := range spec.Linux.Namespaces {
		if n.Path == "" {
			flags |= clone[n.Type]
			continue
		}
		join = append(join, n)
	}
	return flags &^ unix.CLONE_NEWCGROUP, join, nil
}

// security finds out how a label of the spec is set on this machine.
func (s *soloing) security(*prepared) (err error) {
	s.solo.label, s.solo.labelFile, err = securityLabel(s.SoloConfig.Spec.Process)
	return err
}

func securityLabel(p *specs.Process) (label, file string, err error) {
	if p.ApparmorProfile != "" {
		b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		if err != nil || !strings.HasPrefix(string(b), "Y") {
			return "", "", fmt.Errorf("process.apparmorProfile %q: AppArmor is not enabled on this machine", p.ApparmorProfile)
		}
		return "exec " + p.ApparmorProfile, "self/attr/apparmor/exec", nil
	}
	if p.SelinuxLabel != "" {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
			return "", "", fmt.Errorf("process.selinuxLabel %q: SELinux is not enabled on this machine", p.SelinuxLabel)
		}
		return p.SelinuxLabel, "self/attr/exec", nil
	}
	return "", "", nil
}

// checkNamespacePath makes sure that a path is a namespace of the kind that it is
// listed for: entered by mistake, another kind would leave the container outside.
func checkNamespacePath(n specs.LinuxNamespace) error {
	fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: n.Path, Err: err}
	}
	defer unix.Close(fd)
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("%s is no namespace: %w", n.Path, err)
	}
	if uint64(kind) != namespaceBits()[n.Type] {
		return fmt.Errorf("%s is no %s namespace", n.Path, n.Type)
	}
	if n.Type == specs.UserNamespace {
		return errors.New("joining a user namespace is not supported")
	}
	return nil
}
