package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
	"naru/sandbox/runtime/launch/step"
)

// pipeSize is the capacity in bytes of the pipes for stdout and stderr, pipe(7).
const pipeSize = 256 << 10

// regInside stands for no register: the process is inside the container already.
const regInside int16 = -1

// terminal makes a terminal of the container's own devpts, and leaves the slave in
// regSlave and the master where the parent takes it. The slave is asked of the
// master, not looked up: no path of the container is trusted (CVE-2025-52565).
func (p *program) terminal(proc *specs.Process, root int16) {
	const resolve = unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC
	from, path, how := step.R(root), "dev/pts/ptmx", uint64(resolve|unix.RESOLVE_IN_ROOT)
	if root == regInside {
		from, path, how = step.I(unix.AT_FDCWD), "/dev/pts/ptmx", resolve
	}
	p.add(step.Call("open terminal", unix.SYS_OPENAT2, from, step.S(path), openHow(flags, how), step.I(24)).Into(regMaster),
		step.Call("unlock terminal", unix.SYS_IOCTL, step.R(regMaster), step.I(unix.TIOCSPTLCK), step.B(make([]byte, 4))),
		step.Call("open terminal's other end", unix.SYS_IOCTL, step.R(regMaster), step.I(unix.TIOCGPTPEER), step.I(flags)).Into(regSlave),
		step.Call("keep terminal", unix.SYS_DUP3, step.R(regMaster), step.I(monitor.TerminalFD), step.I(unix.O_CLOEXEC)))
	p.add(closeReg(regMaster)...)
	if size := proc.ConsoleSize; size != nil {
		window := binary.NativeEndian.AppendUint16(nil, uint16(size.Height))
		window = binary.NativeEndian.AppendUint16(window, uint16(size.Width))
		p.add(step.Call("size terminal", unix.SYS_IOCTL, step.R(regSlave), step.I(unix.TIOCSWINSZ), step.B(append(window, 0, 0, 0, 0))))
	}
	keep := uint32(0xffffffff) // the group stays tty's, chown(2)
	p.add(step.Call("own terminal", unix.SYS_FCHOWN, step.R(regSlave), step.I(proc.User.UID), step.I(keep)))
}

// console shows the terminal as /dev/console too (runtime-spec, config-linux.md).
func (p *program) console() {
	p.add(cloneMount("mount /dev/console", regSlave, 0).Into(regSource))
	p.attach(regSource, "/dev/console", false, unix.RESOLVE_NO_SYMLINKS)
}

// supervise forks the program off an init of ours, which keeps nothing but the right
// to send signals to the program. It stays undumpable, so that nothing in the
// container can look into it.
func (p *program) supervise() {
	const name = "supervise"
	signals := &specs.LinuxCapabilities{Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"}}
	parent := step.Program{
		step.Call(name, unix.SYS_CLOSE_RANGE, step.I(0), step.I(^uint32(0)), step.I(0)),
		step.Call(name, unix.SYS_PRCTL, step.I(unix.PR_SET_NAME), step.S("naru-init")),
		step.Call(name, unix.SYS_PRCTL, step.I(unix.PR_SET_NO_NEW_PRIVS), step.I(1), step.I(0), step.I(0), step.I(0)),
		capset(signals),
		step.Call(name, step.Supervise, step.R(regPid)),
	}
	p.add(step.Call(name, unix.SYS_CLONE, step.I(int(unix.SIGCHLD)), step.I(0), step.I(0), step.I(0), step.I(0)).Into(regPid).On(0, len(parent)))
	p.add(parent...)
}

// openStdin makes the fifo of the standard input and returns the container's end.
// Its reader sees the end when the monitor closes the other one.
func (c *creation) openStdin(dir *os.File) (*os.File, error) {
	path := viaFD(dir, monitor.FileStdin)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("make fifo: %w", err)
	}
	user := c.Spec.Process.User
	if err := os.Lchown(path, c.ids.uid(user.UID), c.ids.gid(user.GID)); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open fifo: %w", err)
	}
	if err := unix.SetNonblock(fd, false); err != nil { // it was to open without a writer only
		return nil, errors.Join(fmt.Errorf("open fifo: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), monitor.FileStdin), nil
}

// keepStdin hands the write end of the standard input to a monitor, if there is one
// and it has not ended.
func keepStdin(l *monitor.Launch, p *program) error {
	fd, err := unix.Openat(int(p.files[l.State].Fd()), monitor.FileStdin, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) { // nobody reads it
		return nil
	}
	if err != nil {
		return fmt.Errorf("open fifo: %w", err)
	}
	l.In = p.index(os.NewFile(uintptr(fd), monitor.FileStdin))
	return nil
}

// watchOOM lets the kernel tell the monitor when it kills for memory: on v1 by an
// eventfd (cgroup-v1/memory.rst, 10); on v2 memory.events itself can be polled.
func watchOOM(l *monitor.Launch, p *program, g *cgroup.Group) error {
	path := g.OOMFile()
	if filepath.Base(path) != "memory.oom_control" || l.OOM < 0 {
		return nil
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	event := os.NewFile(uintptr(fd), "oom event")
	control, err := os.OpenFile(filepath.Join(filepath.Dir(path), "cgroup.event_control"), os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintf(control, "%d %d", event.Fd(), p.files[l.OOM].Fd())
		err = errors.Join(err, control.Close())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("watch for kills for memory: %w", err), event.Close())
	}
	l.OOMEvent = p.index(event)
	return nil
}
