package runtime

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch/step"
	"naru/sandbox/runtime/seccomp"
)

// prepared is what the agent made before the program can be written.
type prepared struct {
	root   *os.File
	binds  map[int]*os.File // by index in spec.Mounts
	isDir  map[int]bool
	stdin  *os.File
	stdout *os.File
	stderr *os.File
	joins  []*os.File // namespaces to enter
	tasks  []*os.File // v1 cgroups to enter
	cgroup []namedDir // what a mount of type cgroup shows where v1 is in use
	filter *seccomp.Filter
	solo   *solo // nil for a container with a monitor

	keyring   string // name of the session keyring; empty: none of its own
	supervise bool   // an init of ours stays pid 1
}

// init is the containment of a container, in order, on one screen.
func (p *program) init(spec *specs.Spec, got prepared) {
	stdio := p.streams(got)
	p.register(got.solo)
	p.root = p.file(got.root)

	p.waitForParent()
	p.enterCgroups(got.tasks)
	p.enterMounts(got.solo)
	p.keyring(got.keyring)
	if mapOf(spec).mapped() {
		p.becomeRoot()
	}
	for _, ns := range got.joins {
		p.add(step.Call("enter namespace "+ns.Name(), unix.SYS_SETNS, step.R(p.file(ns)), step.I(0)))
	}
	p.cgroupNamespace(spec)
	p.loopback(spec)
	p.sysctls(spec) // before the image or a volume could redirect a path in /proc
	p.attachRoot(spec, got.solo)
	for i, m := range spec.Mounts {
		if m.Type == "cgroup" && len(got.cgroup) > 0 {
			p.mountCgroups(m, got.cgroup)
			continue
		}
		p.mount(m, spec, got.binds[i], got.isDir[i])
	}
	p.devices(spec, got.solo)
	p.workdir(spec.Process)
	p.readonlyPaths(spec.Linux.ReadonlyPaths)
	p.maskedPaths(spec.Linux.MaskedPaths, slices.ContainsFunc(spec.Mounts, isDev))
	p.halt(got.solo)
	p.pivot(spec)
	p.names(spec)
	p.findProgram(spec.Process, got.solo)
	if spec.Process.Terminal {
		p.terminal(spec.Process, p.root)
		p.console()
	}
	p.sealDev(spec, got.solo)
	p.machine(spec.Linux)
	p.openLabel(got.solo)
	if spec.Root != nil && spec.Root.Readonly {
		p.add(setMount("make root read-only", p.root, 0, unix.MOUNT_ATTR_RDONLY))
	}
	p.rootPropagation(spec, got.solo)
	if got.solo == nil {
		p.readyAndWait()
	}
	if got.supervise {
		p.supervise()
	}
	p.process(spec.Process, entrance{stdio: stdio, filter: got.filter, solo: got.solo})
}

// enterCgroups moves the child into the v1 hierarchies; it was born in the unified one.
func (p *program) enterCgroups(tasks []*os.File) {
	for _, f := range tasks {
		p.add(step.Call("enter cgroup", unix.SYS_WRITE, step.R(p.file(f)), step.S("0"), step.I(1)))
	}
}

// waitForParent lets the monitor write id maps first.
func (p *program) waitForParent() {
	p.add(step.Call("close gate", unix.SYS_CLOSE, step.R(step.RegGateWrite)))
	p.add(p.gate("wait for the monitor"))
	p.add(step.Call("hide from ptrace", unix.SYS_PRCTL, step.I(unix.PR_SET_DUMPABLE), step.I(0)))
}

func (p *program) gate(name string) step.Step {
	return step.Call(name, unix.SYS_READ, step.R(step.RegGate), step.Arg{Kind: step.Scratch}, step.I(1)).Must(step.NonEmpty)
}

// becomeRoot takes id 0 of a user namespace just entered.
func (p *program) becomeRoot() {
	p.add(step.Call("drop host groups", unix.SYS_SETGROUPS, step.I(0), step.I(0)),
		step.Call("become root of the user namespace", unix.SYS_SETRESGID, step.I(0), step.I(0), step.I(0)),
		step.Call("become root of the user namespace", unix.SYS_SETRESUID, step.I(0), step.I(0), step.I(0)))
}

// cgroupNamespace is made by unshare, when all cgroups are entered, so that its
// root is the container's cgroup in v1 hierarchies too.
func (p *program) cgroupNamespace(spec *specs.Spec) {
	for _, n := range spec.Linux.Namespaces {
		if n.Type == specs.CgroupNamespace && n.Path == "" {
			p.add(step.Call("unshare cgroup namespace", unix.SYS_UNSHARE, step.I(unix.CLONE_NEWCGROUP)))
		}
	}
}

// loopback switches the loopback interface of a new network namespace on, without
// which a program cannot even talk to itself.
func (p *program) loopback(spec *specs.Spec) {
	if !ownNetwork(spec) {
		return
	}
	const name = "switch loopback on"
	request := make([]byte, 40) // struct ifreq, netdevice(7)
	copy(request, "lo")
	binary.NativeEndian.PutUint16(request[16:], unix.IFF_UP)
	body := step.Program{step.Call(name, unix.SYS_IOCTL, step.R(regSource), step.I(unix.SIOCSIFFLAGS), step.B(request))}
	body = append(body, closeReg(regSource)...)
	p.add(step.Call(name, unix.SYS_SOCKET, step.I(unix.AF_INET), step.I(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), step.I(0)).
		Into(regSource).On(-int(unix.EAFNOSUPPORT), len(body)))
	p.add(body...)
}

func (p *program) sysctls(spec *specs.Spec) {
	if len(spec.Linux.Sysctl) == 0 {
		return
	}
	p.newFS("proc", "sysctl", mountOptions{})
	keys := make([]string, 0, len(spec.Linux.Sysctl))
	for k := range spec.Linux.Sysctl {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		v := spec.Linux.Sysctl[k]
		path := "sys/" + strings.ReplaceAll(k, ".", "/")
		name := "sysctl " + k
		how := openHow(unix.O_WRONLY|unix.O_CLOEXEC, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
		p.add(step.Call(name, unix.SYS_OPENAT2, step.R(regSource), step.S(path), how, step.I(24)).Into(regTarget),
			step.Call(name, unix.SYS_WRITE, step.R(regTarget), step.S(v), step.I(len(v))))
		p.add(closeReg(regTarget)...)
	}
	p.add(closeReg(regSource)...)
}

// mount is one mount of the spec: made by the agent and handed over, or fresh.
func (p *program) mount(m specs.Mount, spec *specs.Spec, bound *os.File, dir bool) {
	strict := uint64(0)
	switch m.Type {
	case "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue":
		strict = unix.RESOLVE_NO_SYMLINKS // an image with /proc as a symlink is refused, CVE-2019-19921
	}
	if strings.HasPrefix(m.Destination, "/dev") || m.Destination == "/proc" || m.Destination == "/sys" {
		strict = unix.RESOLVE_NO_SYMLINKS
	}
	if bound != nil {
		p.renew = p.solo && hasNamespace(spec, specs.MountNamespace)
		p.attach(p.file(bound), m.Destination, dir, strict)
		p.renew = false
		if o := parseOptions(m.Options); p.solo && o.propagation == unix.MS_UNBINDABLE {
			p.add(p.openIn("open "+m.Destination, m.Destination, 0, strict).Into(regTarget), propagate("propagation of "+m.Destination, regTarget, o.propagation, o.spread))
			p.add(closeReg(regTarget)...)
		}
		return
	}
	o := parseOptions(m.Options)
	o.source = m.Source
	if m.Type == "devpts" {
		o.data = mapGID(o.data, spec)
	}
	kind := m.Type
	if kind == "cgroup" {
		kind = "cgroup2"
	}
	p.mountNew(kind, m.Destination, o, strict)
}

// namedDir is a detached mount of one cgroup directory.
type namedDir struct {
	name string
	dir  *os.File
}

// mountCgroups shows the container's own directory of each hierarchy. The tmpfs
// around them is ours, so names in it need no care.
func (p *program) mountCgroups(m specs.Mount, dirs []namedDir) {
	flags := parseOptions(m.Options).set
	p.mountNew("tmpfs", m.Destination, mountOptions{set: flags &^ unix.MOUNT_ATTR_RDONLY, data: [][2]string{{"mode", "755"}}}, unix.RESOLVE_NO_SYMLINKS)
	p.add(p.openIn("open "+m.Destination, m.Destination, unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS).Into(regPrev))
	for _, d := range dirs {
		name := "attach " + m.Destination + "/" + d.name
		source := p.file(d.dir)
		p.add(step.Call(name, unix.SYS_MKDIRAT, step.R(regPrev), step.S(d.name), step.I(0o755)),
			step.Call(name, unix.SYS_MOVE_MOUNT, step.R(source), step.S(""), step.R(regPrev), step.S(d.name), step.I(unix.MOVE_MOUNT_F_EMPTY_PATH)))
		p.add(closeReg(source)...)
	}
	p.add(setMount("attributes of "+m.Destination, regPrev, 0, flags))
	p.add(closeReg(regPrev)...)
}

// isDev says that a mount is the /dev that mountDev makes.
func isDev(m specs.Mount) bool { return m.Destination == "/dev" && m.Type == "tmpfs" }

// mapGID drops a gid= option that the user namespace does not have.
func mapGID(data [][2]string, spec *specs.Spec) [][2]string {
	if ids := mapOf(spec); ids.mapped() && ids.gid(5) == unmapped {
		return slices.DeleteFunc(data, func(kv [2]string) bool { return kv[0] == "gid" })
	}
	return data
}

// workdir makes the working directory while the root is still writable.
func (p *program) workdir(proc *specs.Process) {
	if strings.Trim(proc.Cwd, "/") != "" {
		p.target(proc.Cwd, true, 0)
		p.add(closeReg(regTarget)...)
	}
}

func (p *program) readonlyPaths(paths []string) {
	for _, path := range paths {
		name := "read-only " + path
		body := step.Program{
			cloneMount(name, regTarget, unix.AT_RECURSIVE).Into(regSource),
			setMount(name, regSource, unix.AT_RECURSIVE, unix.MOUNT_ATTR_RDONLY),
			moveMount(name, regSource, regTarget),
		}
		body = append(body, closeReg(regSource, regTarget)...)
		p.add(p.openIn(name, path, 0, 0).Into(regTarget).On(-int(unix.ENOENT), len(body)))
		p.add(body...)
	}
}

// maskedPaths covers directories by one shared empty read-only tmpfs and files by
// read-only clones of a null device that is ours: the container's own if /dev is a mount
// of the spec and so not the image's, else the host's, which the child still has
// below its "/".
func (p *program) maskedPaths(paths []string, ownDev bool) {
	if len(paths) == 0 {
		return
	}
	p.newFS("tmpfs", "masked paths", mountOptions{
		set:  unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		data: [][2]string{{"nr_blocks", "1"}, {"nr_inodes", "2"}, {"mode", "755"}}, // 1 inode is refused by old kernels
	})
	// A detached mount can be cloned since Linux 6.15 only, so it is parked.
	p.add(step.Call("park mask", unix.SYS_MOVE_MOUNT, step.R(regSource), step.S(""), step.I(unix.AT_FDCWD), step.S("/sys"), step.I(unix.MOVE_MOUNT_F_EMPTY_PATH)),
		p.openNull(ownDev).Into(regNull))
	for _, path := range paths {
		p.mask(path)
	}
	p.add(closeReg(regSource, regNull)...)
}

func (p *program) openNull(ownDev bool) step.Step {
	if ownDev {
		return p.openIn("open /dev/null", "dev/null", 0, unix.RESOLVE_NO_SYMLINKS)
	}
	return step.Call("open /dev/null", unix.SYS_OPENAT, step.I(unix.AT_FDCWD), step.S("/dev/null"), step.I(unix.O_PATH|unix.O_CLOEXEC))
}

func (p *program) mask(path string) {
	name := "mask " + path
	cover := func(with int16) step.Program {
		c := step.Program{
			cloneMount(name, with, 0).Into(regMask),
			setMount(name, regMask, 0, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC),
			moveMount(name, regMask, regTarget),
		}
		return append(c, closeReg(regMask, regTarget)...)
	}
	dir, file := cover(regSource), cover(regNull)
	dir[len(dir)-1] = dir[len(dir)-1].Then(1 + len(file))
	p.add(p.openIn(name, path, unix.O_DIRECTORY, 0).Into(regTarget).
		On(-int(unix.ENOENT), len(dir)+1+len(file)).On(-int(unix.ENOTDIR), len(dir)))
	p.add(dir...)
	p.add(p.openIn(name, path, 0, 0).Into(regTarget))
	p.add(file...)
}

// pivot makes the container's root "/" and drops the host's tree. The second
// "." of pivot_root stacks the old root on the new one, where it is unmounted.
//
// Without a mount namespace there is nothing to pivot, and chroot is all that is left.
func (p *program) pivot(spec *specs.Spec) {
	if !hasNamespace(spec, specs.MountNamespace) {
		p.chroot(p.root)
		return
	}
	p.add(step.Call("open old root", unix.SYS_OPENAT, step.I(unix.AT_FDCWD), step.S("/"), step.I(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).Into(regOldRoot),
		step.Call("enter root", unix.SYS_FCHDIR, step.R(p.root)),
		step.Call("pivot_root", unix.SYS_PIVOT_ROOT, step.S("."), step.S(".")),
		step.Call("enter old root", unix.SYS_FCHDIR, step.R(regOldRoot)),
		step.Call("drop old root", unix.SYS_UMOUNT2, step.S("."), step.I(unix.MNT_DETACH)),
		step.Call("enter new root", unix.SYS_CHDIR, step.S("/")))
	p.add(closeReg(regOldRoot)...)
}

func (p *program) names(spec *specs.Spec) {
	if spec.Hostname != "" {
		p.add(step.Call("set host name", unix.SYS_SETHOSTNAME, step.S(spec.Hostname), step.I(len(spec.Hostname))))
	}
	if spec.Domainname != "" {
		p.add(step.Call("set domain name", unix.SYS_SETDOMAINNAME, step.S(spec.Domainname), step.I(len(spec.Domainname))))
	}
}

// attachRoot stacks the new root on the old one; where hooks look at it, it lies on
// its own path. Without a mount namespace it stays detached: the mounts in it are then
// in nobody's mount table, and go with the container.
func (p *program) attachRoot(spec *specs.Spec, s *solo) {
	const name = "attach root"
	if !hasNamespace(spec, specs.MountNamespace) {
		return
	}
	p.add(step.Call("make mounts private", unix.SYS_MOUNT, step.I(0), step.S("/"), step.I(0), step.I(unix.MS_REC|unix.MS_PRIVATE), step.I(0)))
	if s != nil && s.rootPath != "" {
		p.add(moveMount(name, p.root, regRootAt))
		p.add(closeReg(regRootAt)...)
		return
	}
	p.add(step.Call(name, unix.SYS_MOVE_MOUNT, step.R(p.root), step.S(""), step.I(unix.AT_FDCWD), step.S("/"), step.I(unix.MOVE_MOUNT_F_EMPTY_PATH)))
}

// streams are registers of the standard streams; a terminal's are made inside.
func (p *program) streams(got prepared) (regs [3]int16) {
	for i, f := range []*os.File{got.stdin, got.stdout, got.stderr} {
		regs[i] = regSlave
		if f != nil {
			regs[i] = p.file(f)
		}
	}
	return regs
}

// readyAndWait ends Create and waits for Start.
func (p *program) readyAndWait() {
	p.add(step.Call("report ready", unix.SYS_WRITE, step.R(step.RegStatus), step.B([]byte("R\x00\x00\x00\x00\x00\x00\x00")), step.I(8)), p.gate("wait for start"))
}
