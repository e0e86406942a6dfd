package runtime

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch/step"
)

// foreign is what happens in the process that becomes another runtime: it makes the
// root visible to itself alone and has its network, and executes the runtime where
// other inits go on to the image's program.
func (p *program) foreign(spec *specs.Spec, got prepared, rootfs string) {
	stdio := p.streams(got)
	p.root = p.file(got.root)
	p.waitForParent()
	for _, ns := range got.joins {
		p.add(step.Call("enter namespace "+ns.Name(), unix.SYS_SETNS, step.R(p.file(ns)), step.I(0)))
	}
	p.loopback(spec)
	p.sysctls(spec)
	// What the host unmounts later goes here too; nothing of ours goes there.
	p.add(step.Call("make mounts slaves", unix.SYS_MOUNT, step.I(0), step.S("/"), step.I(0), step.I(unix.MS_REC|unix.MS_SLAVE), step.I(0)),
		step.Call("attach root", unix.SYS_MOVE_MOUNT, step.R(p.root), step.S(""), step.I(unix.AT_FDCWD), step.S(rootfs), step.I(unix.MOVE_MOUNT_F_EMPTY_PATH)))
	if spec.Process.Terminal {
		p.terminal(spec.Process, regInside) // of the host's devpts: the runtime makes the container's own
	}
	p.readyAndWait()
	p.becomeRuntime(spec.Process, stdio)
}

// becomeRuntime is process without the loss of rights, which is the runtime's work.
func (p *program) becomeRuntime(proc *specs.Process, stdio [3]int16) {
	p.add(step.Call("setsid", unix.SYS_SETSID))
	for fd, reg := range stdio {
		p.add(step.Call("connect standard streams", unix.SYS_DUP3, step.R(reg), step.I(fd), step.I(0)))
	}
	if proc.Terminal {
		p.add(step.Call("make it the controlling terminal", unix.SYS_IOCTL, step.I(0), step.I(unix.TIOCSCTTY), step.I(0)))
	}
	p.add(step.Call("close on exec", unix.SYS_CLOSE_RANGE, step.I(3), step.I(^uint32(0)), step.I(unix.CLOSE_RANGE_CLOEXEC)),
		step.Call("umask", unix.SYS_UMASK, step.I(0o022)))
	p.chdir("/")
	p.signals()
	p.exec(proc, nil)
}
