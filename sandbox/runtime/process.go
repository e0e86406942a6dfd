package runtime

import (
	"encoding/binary"
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch/step"
	"naru/sandbox/runtime/seccomp"
)

// process takes privileges away and becomes the program: the end of every list.
// With no_new_privs the filter comes last; without, it must be loaded while
// CAP_SYS_ADMIN is there.
func (p *program) process(proc *specs.Process, e entrance) {
	if e.solo != nil && !e.solo.listens() {
		p.waitForStart(e.solo)
	}
	p.add(step.Call("setsid", unix.SYS_SETSID))
	kept := p.handOver(e)
	for fd, reg := range e.stdio {
		p.add(step.Call("connect standard streams", unix.SYS_DUP3, step.R(reg), step.I(fd), step.I(0)))
	}
	if proc.Terminal {
		p.add(step.Call("make it the controlling terminal", unix.SYS_IOCTL, step.I(0), step.I(unix.TIOCSCTTY), step.I(0)))
	}
	// Nothing of ours may be open in the container, CVE-2024-21626.
	p.add(step.Call("close on exec", unix.SYS_CLOSE_RANGE, step.I(3+kept), step.I(^uint32(0)), step.I(unix.CLOSE_RANGE_CLOEXEC)))
	if proc.NoNewPrivileges {
		p.add(step.Call("set no_new_privs", unix.SYS_PRCTL, step.I(unix.PR_SET_NO_NEW_PRIVS), step.I(1), step.I(0), step.I(0), step.I(0)))
	}
	p.chdir(proc.Cwd)
	p.attributes(proc, e.solo)
	if !proc.NoNewPrivileges {
		p.loadFilter(e)
	}
	p.credentials(proc)
	if !e.solo.listens() {
		p.signals()
	}
	if proc.NoNewPrivileges {
		p.loadFilter(e)
	}
	if e.solo.listens() {
		p.waitForStart(e.solo)
		p.signals()
	}
	p.exec(proc, e.solo)
}

// entrance is what process needs beside the spec's process.
type entrance struct {
	stdio  [3]int16        // registers
	filter *seccomp.Filter // nil: none
	solo   *solo           // nil for a container with a monitor
}

// Filter compiles the policy of a process with a monitor. SCMP_ACT_NOTIFY is an
// error: nobody hands its listener over when the container is started again.
func Filter(policy *specs.LinuxSeccomp) (*seccomp.Filter, error) {
	f, err := seccomp.Build(policy)
	if err != nil {
		return nil, err
	}
	if f.Listener {
		return nil, fmt.Errorf("compile seccomp policy: SCMP_ACT_NOTIFY with listenerPath %q: only `naru oci` hands a listener over", policy.ListenerPath)
	}
	return f, nil
}

func (p *program) loadFilter(e entrance) {
	if e.filter == nil {
		return
	}
	load := step.Call("load seccomp filter", unix.SYS_SECCOMP, step.I(unix.SECCOMP_SET_MODE_FILTER), step.I(e.filter.Flags),
		step.Arg{Kind: step.Filter, Data: e.filter.Program})
	if !e.filter.Listener {
		p.add(load)
		return
	}
	p.add(load.Into(regListener),
		step.Call("keep seccomp listener", unix.SYS_DUP3, step.R(regListener), step.I(listenerFD), step.I(unix.O_CLOEXEC)))
	p.add(closeReg(regListener)...)
}

// chdir happens as root, and must end inside the container.
func (p *program) chdir(cwd string) {
	if cwd == "" {
		cwd = "/"
	}
	p.add(step.Call("change to "+cwd, unix.SYS_CHDIR, step.S(cwd)),
		step.Call("check working directory", unix.SYS_GETCWD, step.Arg{Kind: step.Scratch}, step.I(step.ScratchSize)).Must(step.Absolute))
}

// capNames are the capabilities in the order of their numbers, capabilities(7).
func capNames() []string {
	return strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID
	CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW
	CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN
	CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE
	CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND
	CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)
}

// capBits turns names into a bit set.
func capBits(names []string) (bits uint64, err error) {
	all := capNames()
	for _, n := range names {
		found := false
		for i, c := range all {
			if c == n {
				bits, found = bits|1<<i, true
			}
		}
		if !found {
			return 0, fmt.Errorf("unknown capability %q", n)
		}
	}
	return bits, nil
}

// credentials are dropped in the order that loses nothing too early: bounding
// set, ids with capabilities kept, capability sets. The inheritable set is what
// the spec says, normally empty (CVE-2022-29162).
func (p *program) credentials(proc *specs.Process) {
	caps := proc.Capabilities
	if caps == nil {
		caps = &specs.LinuxCapabilities{}
	}
	bounding, _ := capBits(caps.Bounding) // names were checked by validate
	for i := range capNames() {
		if bounding&(1<<i) == 0 {
			p.add(step.Call("drop "+capNames()[i], unix.SYS_PRCTL, step.I(unix.PR_CAPBSET_DROP), step.I(i), step.I(0), step.I(0), step.I(0)).On(-int(unix.EINVAL), 0))
		}
	}
	groups := []byte{}
	for _, g := range proc.User.AdditionalGids {
		groups = binary.NativeEndian.AppendUint32(groups, g)
	}
	uid, gid := step.I(proc.User.UID), step.I(proc.User.GID)
	p.add(step.Call("keep capabilities", unix.SYS_PRCTL, step.I(unix.PR_SET_KEEPCAPS), step.I(1)),
		step.Call("set groups", unix.SYS_SETGROUPS, step.I(len(groups)/4), step.B(groups)),
		step.Call("set group id", unix.SYS_SETRESGID, gid, gid, gid),
		step.Call("set user id", unix.SYS_SETRESUID, uid, uid, uid),
		step.Call("drop capabilities on exec", unix.SYS_PRCTL, step.I(unix.PR_SET_KEEPCAPS), step.I(0)),
		step.Call("clear ambient capabilities", unix.SYS_PRCTL, step.I(unix.PR_CAP_AMBIENT), step.I(unix.PR_CAP_AMBIENT_CLEAR_ALL), step.I(0), step.I(0), step.I(0)),
		capset(caps))
	ambient, _ := capBits(caps.Ambient)
	for i := range capNames() {
		if ambient&(1<<i) != 0 {
			p.add(step.Call("raise ambient "+capNames()[i], unix.SYS_PRCTL, step.I(unix.PR_CAP_AMBIENT), step.I(unix.PR_CAP_AMBIENT_RAISE), step.I(i), step.I(0), step.I(0)))
		}
	}
	umask := uint32(0o022)
	if proc.User.Umask != nil {
		umask = *proc.User.Umask
	}
	p.add(step.Call("umask", unix.SYS_UMASK, step.I(umask)))
}

func capset(caps *specs.LinuxCapabilities) step.Step {
	eff, _ := capBits(caps.Effective)
	perm, _ := capBits(caps.Permitted)
	inh, _ := capBits(caps.Inheritable)
	var data []byte
	for shift := 0; shift <= 32; shift += 32 {
		for _, set := range []uint64{eff, perm, inh} {
			data = binary.NativeEndian.AppendUint32(data, uint32(set>>shift))
		}
	}
	header := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	header = binary.NativeEndian.AppendUint32(header, 0)
	return step.Call("set capabilities", unix.SYS_CAPSET, step.B(header), step.B(data))
}

// lastSignal is the highest signal number (signal(7): SIGRTMAX).
const lastSignal = 64

// signals gives the program a clean start: what the agent ignored (nohup) or the
// clone blocked is not its business. That includes the two signals below SIGRTMIN
// that C libraries keep for themselves: what make starts ignores one of them.
func (p *program) signals() {
	deflt := step.B(make([]byte, 32)) // struct sigaction with SIG_DFL
	for sig := 1; sig <= lastSignal; sig++ {
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
			continue // sigaction(2): they have no disposition
		}
		p.add(step.Call("reset signals", unix.SYS_RT_SIGACTION, step.I(sig), deflt, step.I(0), step.I(8)))
	}
	p.add(step.Call("unblock signals", unix.SYS_RT_SIGPROCMASK, step.I(unix.SIG_SETMASK), step.B(make([]byte, 8)), step.I(0), step.I(8)))
}

// defaultPath is searched when the environment has no PATH, as Docker does.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// exec tries the program's candidates in PATH as execvp(3) does.
func (p *program) exec(proc *specs.Process, s *solo) {
	if s != nil && s.gate != nil {
		p.add(step.Call("report execve", unix.SYS_WRITE, step.R(step.RegStatus), step.B([]byte("X\x00\x00\x00\x00\x00\x00\x00")), step.I(8)))
	}
	argv, env := step.V(proc.Args), step.V(proc.Env)
	for _, file := range candidates(proc) {
		p.add(step.Call(stepExec, unix.SYS_EXECVE, step.S(file), argv, env).Must(step.Sticky).
			On(-int(unix.ENOENT), 0).On(-int(unix.ENOTDIR), 0).On(-int(unix.EACCES), 0))
	}
	p.add(step.Call(stepExec, step.Fail))
}

// findProgram refuses at the creation a program that is not there, which engines
// expect there; the start may still find that it cannot be run.
func (p *program) findProgram(proc *specs.Process, s *solo) {
	if s == nil {
		return
	}
	files := candidates(proc)
	for i, file := range files {
		if !strings.HasPrefix(file, "/") {
			file = path.Join("/", proc.Cwd, file)
		}
		p.add(step.Call(stepExec, unix.SYS_FACCESSAT, step.I(unix.AT_FDCWD), step.S(file), step.I(unix.X_OK)).Must(step.Sticky).Then(len(files)-i).
			On(-int(unix.ENOENT), 0).On(-int(unix.ENOTDIR), 0).On(-int(unix.EACCES), 0))
	}
	p.add(step.Call(stepExec, step.Fail))
}

func candidates(proc *specs.Process) []string {
	if strings.Contains(proc.Args[0], "/") {
		return proc.Args[:1]
	}
	search := defaultPath
	for _, kv := range proc.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	var files []string
	for _, dir := range strings.Split(search, ":") {
		if dir == "" {
			dir = "."
		}
		files = append(files, path.Join(dir, proc.Args[0]))
	}
	return files
}
