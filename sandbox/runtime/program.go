package runtime

import (
	"cmp"
	"encoding/binary"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/launch/step"
)

// Registers for what a program opens itself: above all descriptors that can come
// with it.
const (
	regTarget = step.FirstFD + monitor.MaxFDs + iota // where something is mounted
	regPrev                                          // its parent, while it is made
	regSource                                        // what is mounted
	regFS                                            // a file system being configured
	regMask                                          // the empty directory that covers others
	regNull                                          // /dev/null of the host, which covers files
	regOldRoot
	regProc // a procfs for sysctls
	regPid
	regMaster // of the terminal
	regSlave
	regListener // of a seccomp filter
	regRoot     // of the container that an exec enters
	regRootAt   // where the root is attached
	regLabel    // attr/exec, where the security label goes
	regKeyring
)

// program collects the steps of a start and the descriptors that they use.
type program struct {
	steps step.Program
	files []*os.File
	root  int16 // register of the root's descriptor
	solo  bool
	renew bool // clone what was mounted beforehand, so that mounts are in the order of the spec
}

// newProgram has room for the steps of a container with the default mounts.
func newProgram() *program { return &program{steps: make(step.Program, 0, 512)} }

func (p *program) add(s ...step.Step) { p.steps = append(p.steps, s...) }

// file hands a descriptor over and returns its register. The program owns it.
func (p *program) file(f *os.File) int16 {
	return int16(step.FirstFD + p.index(f))
}

// index is the same for monitor.Launch, which counts from 0.
func (p *program) index(f *os.File) int {
	p.files = append(p.files, f)
	return len(p.files) - 1
}

func (p *program) close() {
	for _, f := range p.files {
		f.Close()
	}
	p.files = nil
}

func closeReg(regs ...int16) step.Program {
	var all step.Program
	for _, r := range regs {
		all = append(all, step.Call("close", unix.SYS_CLOSE, step.R(r)))
	}
	return all
}

// Here are the few calls that many steps share.

func openHow(flags, resolve uint64) step.Arg {
	b := binary.NativeEndian.AppendUint64(nil, flags)
	b = binary.NativeEndian.AppendUint64(b, 0)
	return step.B(binary.NativeEndian.AppendUint64(b, resolve))
}

// openIn opens a path of the image as the image sees it: symlinks stay inside
// the root, and /proc/<pid>/root style links are refused.
func (p *program) openIn(name, path string, flags, resolve uint64) step.Step {
	rel := strings.TrimLeft(path, "/")
	if rel == "" {
		rel = "."
	}
	return step.Call(name, unix.SYS_OPENAT2, step.R(p.root), step.S(rel),
		openHow(flags|unix.O_PATH|unix.O_CLOEXEC, resolve|unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS), step.I(24))
}

func moveMount(name string, from, to int16) step.Step {
	return step.Call(name, unix.SYS_MOVE_MOUNT, step.R(from), step.S(""), step.R(to), step.S(""),
		step.I(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

func cloneMount(name string, reg int16, flags int) step.Step {
	return step.Call(name, unix.SYS_OPEN_TREE, step.R(reg), step.S(""),
		step.I(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|flags))
}

func setMount(name string, reg int16, flags int, set uint64) step.Step {
	b := binary.NativeEndian.AppendUint64(nil, set)
	b = append(b, make([]byte, 24)...) // attr_clr, propagation, userns_fd
	return step.Call(name, unix.SYS_MOUNT_SETATTR, step.R(reg), step.S(""), step.I(unix.AT_EMPTY_PATH|flags), step.B(b), step.I(32))
}

// propagate changes the propagation type of a mount, mount_namespaces(7).
func propagate(name string, reg int16, kind uint64, all bool) step.Step {
	flags := unix.AT_EMPTY_PATH
	if all {
		flags |= unix.AT_RECURSIVE
	}
	b := make([]byte, 16) // attr_set, attr_clr
	b = binary.NativeEndian.AppendUint64(b, kind)
	b = append(b, make([]byte, 8)...)
	return step.Call(name, unix.SYS_MOUNT_SETATTR, step.R(reg), step.S(""), step.I(flags), step.B(b), step.I(32))
}

// target opens the place of a mount into regTarget and makes it where it is
// missing, one component after the other, each opened before the next is made.
func (p *program) target(path string, dir bool, resolve uint64) {
	flags := uint64(0)
	if dir {
		flags = unix.O_DIRECTORY
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	var make step.Program
	make = append(make, p.openIn("open /", "/", unix.O_DIRECTORY, 0).Into(regPrev))
	for i, name := range parts {
		prefix := strings.Join(parts[:i+1], "/")
		last := i == len(parts)-1
		create := step.Call("make "+path, unix.SYS_MKDIRAT, step.R(regPrev), step.S(name), step.I(0o755)).On(-int(unix.EEXIST), 0)
		open := p.openIn("open "+path, prefix, unix.O_DIRECTORY, resolve)
		if last && !dir {
			create = step.Call("make "+path, unix.SYS_MKNODAT, step.R(regPrev), step.S(name), step.I(unix.S_IFREG|0o644), step.I(0)).On(-int(unix.EEXIST), 0)
			open = p.openIn("open "+path, prefix, flags, resolve)
		}
		open = open.Into(regTarget)
		// An existing component is opened, a missing one made and opened.
		make = append(make, open.Then(2).On(-int(unix.ENOENT), 0), create, open)
		make = append(make, closeReg(regPrev)...)
		if !last {
			make = append(make, step.Call("dup", unix.SYS_FCNTL, step.R(regTarget), step.I(unix.F_DUPFD_CLOEXEC), step.I(0)).Into(regPrev))
			make = append(make, closeReg(regTarget)...)
		}
	}
	p.add(p.openIn("open "+path, path, flags, resolve).Into(regTarget).Then(len(make)).On(-int(unix.ENOENT), 0))
	p.add(make...)
}

// attach mounts what a register holds at path and closes it.
func (p *program) attach(source int16, path string, dir bool, resolve uint64) {
	p.target(path, dir, resolve)
	p.add(moveMount("attach "+path, source, regTarget))
	if p.renew && dir {
		p.remake(path)
	}
	p.add(closeReg(regTarget, source)...)
}

// remake replaces a mount by its clone. The mount table shows mounts in the order in
// which they were made, and those that were made beforehand would come first.
func (p *program) remake(path string) {
	name := "order " + path
	body := step.Program{
		step.Call(name, unix.SYS_FCHDIR, step.R(regPrev)),
		step.Call(name, unix.SYS_UMOUNT2, step.S("."), step.I(unix.MNT_DETACH)),
		moveMount(name, regMask, regTarget),
	}
	body = append(body, closeReg(regMask)...)
	p.add(p.openIn(name, path, unix.O_DIRECTORY, 0).Into(regPrev),
		cloneMount(name, regPrev, unix.AT_RECURSIVE).Into(regMask).On(-int(unix.EINVAL), len(body))) // it cannot be cloned
	p.add(body...)
	p.add(closeReg(regPrev)...)
}

// mountNew mounts a fresh file system of the child's own namespaces at path.
func (p *program) mountNew(fstype, path string, o mountOptions, resolve uint64) {
	p.newFS(fstype, path, o)
	if o.propagation != 0 {
		p.add(propagate("propagation of "+path, regSource, o.propagation, o.spread))
	}
	p.attach(regSource, path, true, resolve)
}

// newFS leaves a detached mount in regSource.
func (p *program) newFS(fstype, what string, o mountOptions) {
	name, source := "mount "+fstype+" for "+what, cmp.Or(o.source, fstype)
	p.add(step.Call(name, unix.SYS_FSOPEN, step.S(fstype), step.I(unix.FSOPEN_CLOEXEC)).Into(regFS))
	for _, kv := range append([][2]string{{"source", source}}, o.data...) {
		cmd, value := unix.FSCONFIG_SET_STRING, step.S(kv[1])
		if kv[1] == "" {
			cmd, value = unix.FSCONFIG_SET_FLAG, step.I(0)
		}
		p.add(step.Call(name+", option "+kv[0], unix.SYS_FSCONFIG, step.R(regFS), step.I(cmd), step.S(kv[0]), value, step.I(0)))
	}
	p.add(step.Call(name, unix.SYS_FSCONFIG, step.R(regFS), step.I(unix.FSCONFIG_CMD_CREATE), step.I(0), step.I(0), step.I(0)),
		step.Call(name, unix.SYS_FSMOUNT, step.R(regFS), step.I(unix.FSMOUNT_CLOEXEC), step.I(o.set)).Into(regSource))
	p.add(closeReg(regFS)...)
}
