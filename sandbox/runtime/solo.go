package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/monitor"
	"naru/sandbox/runtime/cgroup"
	"naru/sandbox/runtime/launch/step"
	"naru/sandbox/runtime/seccomp"
)

// SoloConfig is a container of an OCI bundle. It has no monitor: when CreateSolo has
// returned and its caller has ended, the init is the child of the nearest subreaper
// (prctl(2)) above, as containerd's shim and conmon expect, and its standard
// streams are those of the caller.
type SoloConfig struct {
	// ID names the container in messages.
	ID string
	// Spec is what runs and how it is confined; CheckBundle has approved it.
	Spec *specs.Spec
	// Bundle is the directory that relative paths of the spec start from; absolute.
	Bundle string
	// StateDir takes the fifos "start" and "status". It must exist, on tmpfs.
	StateDir string
	// Cgroup is the container's path below every hierarchy.
	Cgroup string
	// Stdin, Stdout and Stderr are handed to the container as they are, except for
	// the machine's null device, in whose place it gets one of its own. They are not
	// used for a process with a terminal.
	Stdin, Stdout, Stderr *os.File
	// Preserve become the process's descriptors 3, 4, ….
	Preserve []*os.File
	// KeepKeyring leaves the session keyring of the caller to the container.
	KeepKeyring bool
	// Halt runs the hooks that come after the mounts and before pivot_root.
	Halt func(ctx context.Context, init Identity) error
	// Console takes the master of the process's terminal, which it owns.
	Console func(master *os.File) error
	// Listener takes the listener of a seccomp filter with SCMP_ACT_NOTIFY.
	Listener func(listener *os.File, pid int) error
	// Save makes the record of the container. Whoever is killed before it returns
	// leaves nothing that runs; what is killed later leaves a created container.
	Save func(init Solo) error
}

// Solo is the record of an init without a monitor.
type Solo struct {
	Identity
	// Image is the device and inode of what the init is before execve: the tiny
	// program. As long as /proc/<pid>/exe is that, nothing of the container has run.
	Image string `json:"image"`
	// Keyring is the name of the session keyring; empty: that of the caller.
	Keyring string `json:"keyring,omitempty"`
	// Steps are the names of the init's steps, for the one that may fail at the start.
	Steps []string `json:"steps"`
}

// Names of the fifos in the state directory of a Solo.
const (
	FileGate   = "start"
	FileStatus = "status"
)

// CreateSolo makes the container; its init waits for StartSolo. After an error
// nothing is left but the two fifos.
func CreateSolo(ctx context.Context, c SoloConfig) error {
	s := &soloing{SoloConfig: c}
	s.prog, s.launch, s.Config.Spec, s.ids = newProgram(), monitor.NewLaunch(), c.Spec, mapOf(c.Spec)
	defer s.release()
	if err := s.run(ctx); err != nil {
		return errors.Join(err, s.undo(ctx))
	}
	return nil
}

// soloing is one CreateSolo under way. It shares with creation how mounts and
// cgroups are made.
type soloing struct {
	SoloConfig
	creation
	solo  solo
	pidfd int
	init  Solo
}

// run is the order: everything is prepared, the init cloned, the hooks run while it
// waits, the record written; with the commit it belongs to nobody here.
func (s *soloing) run(ctx context.Context) (err error) {
	if s.monitor, err = spawn(monitor.ArgMonitor, nil); err != nil {
		return err
	}
	defer s.monitor.close()
	got := prepared{solo: &s.solo}
	for _, prepare := range []func(*prepared) error{s.groups, s.namespaces, s.filter, s.security, s.fifos, s.descriptors, s.devicesAndRoot} {
		if err := prepare(&got); err != nil {
			return err
		}
	}
	if err := s.bundleMounts(ctx, &got); err != nil {
		return err
	}
	if !s.KeepKeyring {
		s.init.Keyring = keyringOf(s.ID + "." + rand.Text())
	}
	got.keyring = s.init.Keyring
	s.prog.init(s.SoloConfig.Spec, got)
	s.launch.Name, s.launch.Solo, s.launch.Program = "naru:"+s.SoloConfig.ID, true, s.prog.steps
	if err := s.monitor.launch(monitor.OpLaunch, s.launch, s.prog.files); err != nil {
		return err
	}
	cloned, err := s.monitor.expect(ctx, monitor.ReplyCloned)
	if err != nil {
		return err
	}
	if len(cloned.fds) != 1 {
		return errors.New("internal error: monitor sent no pidfd")
	}
	s.pidfd = cloned.fds[0]
	defer unix.Close(s.pidfd)
	return s.accompany(ctx, int(cloned.value))
}

// accompany does for the init what it cannot do itself, up to the commit.
func (s *soloing) accompany(ctx context.Context, pid int) error {
	if err := s.identify(pid); err != nil {
		refused := new(StartError)
		if _, why := s.monitor.expect(ctx, monitor.ReplyReady); errors.As(why, &refused) { // it gave up before we looked
			return why
		}
		return err
	}
	if s.solo.halts {
		if _, err := s.monitor.expect(ctx, monitor.ReplyHalt); err != nil {
			return err
		}
		if err := s.Halt(ctx, s.init.Identity); err != nil {
			return err
		}
		if err := s.monitor.send([]byte{monitor.OpGo}); err != nil {
			return err
		}
	}
	if _, err := s.monitor.expect(ctx, monitor.ReplyReady); err != nil {
		return err
	}
	if err := setLimits(pid, s.SoloConfig.Spec.Process); err != nil {
		return err
	}
	if err := fetch(s.pidfd, s.SoloConfig.Spec.Process.Terminal, monitor.TerminalFD, s.Console); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	listener := func(f *os.File) error { return s.Listener(f, pid) }
	if err := fetch(s.pidfd, s.solo.listens(), listenerFD, listener); err != nil {
		return fmt.Errorf("seccomp listener: %w", err)
	}
	if err := s.Save(s.init); err != nil {
		return err
	}
	_, err := s.monitor.call(ctx, []byte{monitor.OpCommit}, monitor.ReplyOK)
	return err
}

// identify notes who the init is and what program it still is.
func (s *soloing) identify(pid int) error {
	if err := s.init.identify(pid, s.pidfd); err != nil {
		return err
	}
	exe, err := tinyProgram()
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(exe.Fd()), &st); err != nil {
		return fmt.Errorf("stat init program: %w", err)
	}
	s.init.Image = fileID(&st)
	for _, step := range s.prog.steps {
		s.init.Steps = append(s.init.Steps, step.Name)
	}
	return nil
}

// fetch takes a descriptor of the init, pidfd_getfd(2), and hands it on.
func fetch(pidfd int, wanted bool, number int, to func(*os.File) error) error {
	if !wanted {
		return nil
	}
	fd, err := unix.PidfdGetfd(pidfd, number, 0)
	if err != nil {
		return fmt.Errorf("pidfd_getfd: %w", err)
	}
	return to(os.NewFile(uintptr(fd), "from init"))
}

// groups makes the cgroups with their limits.
func (s *soloing) groups(got *prepared) error {
	host, err := cgroup.Detect()
	if err != nil {
		return err
	}
	s.Config.Cgroup = s.SoloConfig.Cgroup
	s.Monitor = &Monitor{host: host}
	err = s.cgroups()
	s.Monitor = nil
	if err != nil {
		return err
	}
	got.tasks, got.cgroup = s.tasks, s.views
	err = groupFiles(s.launch, s.prog, s.group)
	s.launch.Kill = monitor.None // nothing but the init is there before the commit, and another container may use the group at once
	return err
}

// namespaces sorts those of the spec by who can enter or make them. A namespace of
// the machine is joined by the helper, with its rights, before it clones: a child
// in a new user namespace has none. Only a process of one thread can enter a user,
// mount or time namespace: the child does.
func (s *soloing) namespaces(got *prepared) error {
	flags, joins, err := soloNamespaces(s.SoloConfig.Spec)
	if err != nil {
		return err
	}
	s.launch.Flags = flags
	s.launch.UIDMap, s.launch.GIDMap = mapText(s.ids.uids), mapText(s.ids.gids)
	for _, n := range joins {
		f, err := os.Open(n.Path)
		if err != nil {
			return fmt.Errorf("linux.namespaces: join %s: %w", n.Type, err)
		}
		switch n.Type {
		case specs.MountNamespace:
			s.solo.mounts = f
		case specs.TimeNamespace, specs.CgroupNamespace:
			got.joins = append(got.joins, f)
		default:
			s.launch.Before = append(s.launch.Before, step.Call("enter namespace "+n.Path, unix.SYS_SETNS, step.R(s.prog.file(f)), step.I(0)))
		}
	}
	if offsets := s.SoloConfig.Spec.Linux.TimeOffsets; len(offsets) > 0 {
		s.launch.Flags &^= unix.CLONE_NEWTIME
		s.solo.offsets = offsets
	}
	return nil
}

// timeNamespace makes a time namespace and enters it. Its offsets can be written as
// long as nobody is in it, and only by a process of one thread for itself, time_namespaces(7).
func timeNamespace(offsets map[string]specs.LinuxTimeOffset) step.Program {
	const name = "set time offsets"
	text := ""
	for clock, o := range offsets {
		text += fmt.Sprintf("%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	p := step.Program{
		step.Call("unshare time namespace", unix.SYS_UNSHARE, step.I(unix.CLONE_NEWTIME)),
		step.Call(name, unix.SYS_OPENAT, step.I(unix.AT_FDCWD), step.S("/proc/self/timens_offsets"), step.I(unix.O_WRONLY|unix.O_CLOEXEC)).Into(regTarget),
		step.Call(name, unix.SYS_WRITE, step.R(regTarget), step.S(text), step.I(len(text))),
		step.Call("enter time namespace", unix.SYS_OPENAT, step.I(unix.AT_FDCWD), step.S("/proc/self/ns/time_for_children"), step.I(unix.O_RDONLY|unix.O_CLOEXEC)).Into(regSource),
		step.Call("enter time namespace", unix.SYS_SETNS, step.R(regSource), step.I(unix.CLONE_NEWTIME)),
	}
	return append(p, closeReg(regTarget, regSource)...)
}

func (s *soloing) filter(got *prepared) (err error) {
	l := s.SoloConfig.Spec.Linux.Seccomp
	if l == nil {
		return nil
	}
	f, err := seccomp.Build(l)
	if err != nil {
		return fmt.Errorf("linux.seccomp: %w", err)
	}
	got.filter, s.solo.listener = f, f.Listener
	return nil
}

// fifos make the gate and the status line of the start.
func (s *soloing) fifos(*prepared) error {
	dir, err := os.Open(s.SoloConfig.StateDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	for name, end := range map[string]**os.File{FileGate: &s.solo.gate, FileStatus: &s.solo.status} {
		if err := unix.Mkfifoat(int(dir.Fd()), name, 0o600); err != nil {
			return fmt.Errorf("make fifo %s: %w", name, err)
		}
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("open fifo %s: %w", name, err)
		}
		*end = os.NewFile(uintptr(fd), name)
	}
	return nil
}

// descriptors are those of the process: standard streams and what is handed over.
func (s *soloing) descriptors(got *prepared) (err error) {
	spec := s.SoloConfig.Spec
	s.solo.halts = s.Halt != nil
	if !spec.Process.Terminal {
		owner := s.ids.uid(spec.Process.User.UID)
		for i, f := range []*os.File{s.SoloConfig.Stdin, s.SoloConfig.Stdout, s.SoloConfig.Stderr} {
			if *[]**os.File{&got.stdin, &got.stdout, &got.stderr}[i], err = passThrough(f, owner); err != nil {
				return err
			}
		}
	}
	for _, f := range s.Preserve {
		own, err := duplicate(f)
		if err != nil {
			return err
		}
		s.solo.preserve = append(s.solo.preserve, own)
	}
	return nil
}

// passThrough duplicates a standard stream. The process may open /dev/stdout again,
// so a pipe or terminal becomes its own.
func passThrough(f *os.File, owner int) (*os.File, error) {
	if f == nil {
		return privateNull()
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("standard stream: %w", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
		return privateNull()
	}
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFIFO || kind == unix.S_IFCHR {
		if err := unix.Fchown(int(f.Fd()), owner, -1); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) {
			return nil, fmt.Errorf("own standard stream: %w", err)
		}
	}
	return duplicate(f)
}

// devicesAndRoot makes /dev, where the spec has a file system for it, and the root.
func (s *soloing) devicesAndRoot(got *prepared) error {
	spec := s.SoloConfig.Spec
	ownDev, covered := false, false
	for _, m := range spec.Mounts {
		if isDev(m) {
			var err error
			if s.dev, err = mountDev(m, spec, s.ids); err != nil {
				return err
			}
			ownDev = true
		}
		covered = covered || m.Destination == "/dev" && !isDev(m)
	}
	if !covered && !ownDev { // a bound /dev is the caller's business
		s.solo.devices = defaultDevices()
	}
	for _, d := range spec.Linux.Devices {
		if !covered && !(ownDev && strings.HasPrefix(d.Path, "/dev/")) {
			s.solo.devices = append(s.solo.devices, d)
		}
	}
	path := absoluteIn(s.Bundle, spec.Root.Path)
	if h := spec.Hooks; h != nil && len(h.CreateContainer) > 0 {
		s.solo.rootPath = path
	}
	root, err := openTree(path, true, nil)
	if err != nil {
		return fmt.Errorf("root.path: %w", err)
	}
	got.root = root
	attr := &unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(int(root.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("root.path %s: make private: %w", path, err)
	}
	return nil
}

func absoluteIn(bundle, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(bundle, path)
}

// undo ends what a failed creation made: the init dies with the control socket.
func (s *soloing) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	s.release()
	if s.group == nil {
		return nil
	}
	return errors.Join(s.group.Kill(ctx), s.group.Remove())
}
