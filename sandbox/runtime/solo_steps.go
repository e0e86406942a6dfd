package runtime

import (
	"os"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/launch/step"
)

// solo are the parts of a start without a monitor: the process stays behind alone,
// as a child of whoever adopts the creator's orphans. An init waits for its start
// at a fifo in the state directory.
type solo struct {
	gate, status *os.File   // fifos; the init has both open for reading and writing; nil for an exec
	mounts       *os.File   // a mount namespace to join
	preserve     []*os.File // become descriptors 3, 4, …
	rootPath     string     // where hooks see the root before pivot_root; empty without such hooks
	halts        bool       // hooks run before pivot_root
	listener     bool       // the seccomp filter has one
	label        string     // written to labelFile
	labelFile    string     // of the security module, below /proc
	devices      []specs.LinuxDevice
	offsets      map[string]specs.LinuxTimeOffset
	regs         struct {
		gate, status, mounts int16
		preserve             []int16
	}
}

// listenerFD is where the creator finds, with pidfd_getfd(2), the listener of a
// filter that only the init could load. Like monitor.TerminalFD it is above all that
// the init has, and below a usual limit of 1024.
const listenerFD = monitor.TerminalFD + 1

// listens says that the filter has a listener, which is handed over before the
// start: the filter is then loaded early.
func (s *solo) listens() bool {
	return s != nil && s.listener
}

// register hands the descriptors over.
func (p *program) register(s *solo) {
	if s == nil {
		return
	}
	p.solo = true
	if s.gate != nil {
		s.regs.gate, s.regs.status = p.file(s.gate), p.file(s.status)
	}
	if s.mounts != nil {
		s.regs.mounts = p.file(s.mounts)
	}
	for _, f := range s.preserve {
		s.regs.preserve = append(s.regs.preserve, p.file(f))
	}
}

// enterMounts joins a mount namespace before anything is given up, and finds the
// place of the root while the way there is still open to us.
func (p *program) enterMounts(s *solo) {
	if s == nil {
		return
	}
	if len(s.offsets) > 0 { // while our user id still opens the file
		p.add(timeNamespace(s.offsets)...)
	}
	if s.mounts != nil {
		p.add(step.Call("enter mount namespace", unix.SYS_SETNS, step.R(s.regs.mounts), step.I(unix.CLONE_NEWNS)))
	}
	if s.rootPath != "" {
		p.add(step.Call("open "+s.rootPath, unix.SYS_OPENAT, step.I(unix.AT_FDCWD), step.S(s.rootPath),
			step.I(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).Into(regRootAt))
	}
}

// chroot makes a directory the root.
func (p *program) chroot(root int16) {
	p.add(step.Call("enter root", unix.SYS_FCHDIR, step.R(root)), step.Call("chroot", unix.SYS_CHROOT, step.S(".")))
}

// halt lets the creator run the hooks that come before pivot_root.
func (p *program) halt(s *solo) {
	if s == nil || !s.halts {
		return
	}
	p.add(step.Call("report mounts", unix.SYS_WRITE, step.R(step.RegStatus), step.B([]byte("H\x00\x00\x00\x00\x00\x00\x00")), step.I(8)),
		p.gate("wait for hooks"))
}

// rootPropagation comes after pivot_root, which refuses a shared root.
func (p *program) rootPropagation(spec *specs.Spec, s *solo) {
	kind := spec.Linux.RootfsPropagation
	if s == nil || kind == "" {
		return
	}
	p.add(propagate("make root "+kind, p.root, propagations()[strings.TrimPrefix(kind, "r")], strings.HasPrefix(kind, "r")))
}

// waitForStart reports ready and waits for the creator's commit, and then, when the
// fifos have taken the place of the pipes to our parent, for the start.
func (p *program) waitForStart(s *solo) {
	p.readyAndWait()
	if s.gate == nil {
		return
	}
	p.add(step.Call("report to the fifo", unix.SYS_DUP3, step.R(s.regs.status), step.R(step.RegStatus), step.I(unix.O_CLOEXEC)),
		step.Call("wait for the start", unix.SYS_READ, step.R(s.regs.gate), step.Arg{Kind: step.Scratch}, step.I(1)).Must(step.NonEmpty))
}

// handOver puts the caller's descriptors at 3 and up, and says how many there are.
// What is still needed moves out of their way first.
func (p *program) handOver(e entrance) int {
	if e.solo == nil || len(e.solo.preserve) == 0 {
		return 0
	}
	s, n := e.solo, len(e.solo.preserve)
	away := append([]int16{step.RegStatus, step.RegGate}, s.regs.preserve...)
	for _, r := range e.stdio {
		if r != regSlave || !moves(away, r) {
			away = append(away, r)
		}
	}
	if s.gate != nil {
		away = append(away, s.regs.gate, s.regs.status)
	}
	if s.label != "" {
		away = append(away, regLabel)
	}
	for _, r := range away {
		p.add(step.Call("move descriptor", unix.SYS_FCNTL, step.R(r), step.I(unix.F_DUPFD_CLOEXEC), step.I(3+n)).Into(r))
	}
	for i, r := range s.regs.preserve {
		p.add(step.Call("hand over descriptor", unix.SYS_DUP3, step.R(r), step.I(3+i), step.I(0)))
	}
	return n
}

func moves(regs []int16, r int16) bool {
	for _, other := range regs {
		if other == r {
			return true
		}
	}
	return false
}

// sealDev makes a read-only /dev read-only, when nothing is to be made in it any more.
func (p *program) sealDev(spec *specs.Spec, s *solo) {
	for _, m := range spec.Mounts {
		if s != nil && isDev(m) && parseOptions(m.Options).set&unix.MOUNT_ATTR_RDONLY != 0 {
			p.add(p.openIn("open /dev", "/dev", unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS).Into(regTarget), setMount("make /dev read-only", regTarget, 0, unix.MOUNT_ATTR_RDONLY))
			p.add(closeReg(regTarget)...)
		}
	}
}

// openLabel finds the file of the security module in a procfs of our own, past the
// one that the container sees (CVE-2019-16884).
func (p *program) openLabel(s *solo) {
	if s == nil || s.label == "" {
		return
	}
	const name = "open security label"
	p.newFS("proc", "security label", mountOptions{})
	p.add(step.Call(name, unix.SYS_OPENAT, step.R(regSource), step.S(s.labelFile), step.I(unix.O_WRONLY|unix.O_CLOEXEC)).Into(regLabel))
	p.add(closeReg(regSource)...)
}

// devices makes the nodes that do not lie in a /dev of our own making.
func (p *program) devices(spec *specs.Spec, s *solo) {
	if s == nil {
		return
	}
	for _, d := range s.devices {
		name := "make device " + d.Path
		at := int16(regPrev)
		p.add(p.openIn(name, "/", unix.O_DIRECTORY, 0).Into(at))
		if dir := path.Dir(d.Path); strings.Trim(dir, "/.") != "" {
			p.add(closeReg(at)...)
			p.target(dir, true, unix.RESOLVE_NO_SYMLINKS)
			at = regTarget
		}
		node := nodeOf(d)
		owned := step.Program{
			step.Call(name, unix.SYS_FCHOWNAT, step.R(at), step.S(path.Base(d.Path)), step.I(node.uid), step.I(node.gid), step.I(unix.AT_SYMLINK_NOFOLLOW)),
			step.Call(name, unix.SYS_FCHMODAT, step.R(at), step.S(path.Base(d.Path)), step.I(node.mode)),
		}
		p.add(step.Call(name, unix.SYS_MKNODAT, step.R(at), step.S(path.Base(d.Path)), step.I(node.kind|node.mode), step.I(node.dev)).
			On(-int(unix.EEXIST), len(owned)))
		p.add(owned...)
		p.add(closeReg(at)...)
	}
}
