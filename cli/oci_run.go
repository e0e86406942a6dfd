package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"naru/sandbox/oci"
)

// ociStart are the flags of create, run and exec.
type ociStart struct {
	bundle, console, pidFile string
	preserve                 int
	detach, keep             bool
	noPivot, noKeyring       bool
}

func (s *ociStart) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.console, "console-socket", "", "unix socket that receives the master of the terminal")
	f.StringVar(&s.pidFile, "pid-file", "", "file for the process id")
	f.IntVar(&s.preserve, "preserve-fds", 0, "hand over that many descriptors from 3 on, beside LISTEN_FDS")
}

func (s *ociStart) bundleFlags(c *cobra.Command) {
	s.flags(c)
	c.Flags().StringVarP(&s.bundle, "bundle", "b", ".", "directory of the bundle")
	c.Flags().BoolVar(&s.noPivot, "no-pivot", false, "refused: a container without pivot_root is not one")
	c.Flags().BoolVar(&s.noKeyring, "no-new-keyring", false, "leave the caller's session keyring to the container")
}

func (o *ociEnv) createCommand() *cobra.Command {
	s := &ociStart{}
	c := &cobra.Command{
		Use: "create CONTAINER", Short: "Make a container from a bundle; start runs it", Args: cobra.ExactArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			io, err := o.io(s)
			if err != nil {
				return err
			}
			return startExit(r.Create(c.Context(), oci.CreateOptions{ID: args[0], Bundle: s.bundle, PidFile: s.pidFile, KeepKeyring: s.noKeyring, IO: io}))
		}),
	}
	s.bundleFlags(c)
	return c
}

func (o *ociEnv) runCommand() *cobra.Command {
	s := &ociStart{}
	c := &cobra.Command{
		Use: "run CONTAINER", Short: "Create a container and start it; wait for its end and delete it unless detached", Args: cobra.ExactArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			return startExit(o.run(c.Context(), r, s, args[0]))
		}),
	}
	s.bundleFlags(c)
	c.Flags().BoolVarP(&s.detach, "detach", "d", false, "return once the program runs")
	c.Flags().BoolVar(&s.keep, "keep", false, "do not delete the container at its end")
	return c
}

// io connects the process to our own descriptors.
func (o *ociEnv) io(s *ociStart) (oci.IO, error) {
	if s.noPivot {
		return oci.IO{}, usage("--no-pivot: not supported")
	}
	conn := oci.IO{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if s.console != "" {
		conn.Console = oci.SendConsole(s.console)
	}
	n := s.preserve
	if listen, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err == nil && listen > 0 {
		n += listen
	}
	for fd := 3; fd < 3+n; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return conn, fmt.Errorf("--preserve-fds: descriptor %d: %w", fd, err)
		}
		conn.Preserve = append(conn.Preserve, os.NewFile(uintptr(fd), "preserved"))
	}
	return conn, nil
}

// attach is io for a process that may be waited for: then it becomes our child, and
// its terminal is ours.
func (o *ociEnv) attach(s *ociStart, t *ociTerminal) (oci.IO, error) {
	conn, err := o.io(s)
	if err != nil || s.detach {
		return conn, err
	}
	if conn.Console == nil {
		conn.Console = t.attach
	}
	return conn, oci.Adopt()
}

func (o *ociEnv) run(ctx context.Context, r oci.Runtime, s *ociStart, id string) error {
	t := &ociTerminal{}
	defer t.restore()
	conn, err := o.attach(s, t)
	if err != nil {
		return err
	}
	if err := r.Create(ctx, oci.CreateOptions{ID: id, Bundle: s.bundle, PidFile: s.pidFile, KeepKeyring: s.noKeyring, IO: conn}); err != nil {
		return err
	}
	err = o.startAndWait(ctx, r, s, id, t)
	var exit *ExitError
	if s.detach && err == nil || s.keep && errors.As(err, &exit) {
		return err
	}
	return errors.Join(err, r.Delete(context.WithoutCancel(ctx), id, true))
}

func (o *ociEnv) startAndWait(ctx context.Context, r oci.Runtime, s *ociStart, id string, t *ociTerminal) error {
	c, err := r.Open(id)
	if err != nil {
		return err
	}
	pid := c.Pid
	c.Close()
	if s.detach {
		return r.Start(ctx, id)
	}
	child, err := r.Child(pid)
	if err != nil {
		return err
	}
	stop := forwardSignals(child, t)
	defer stop()
	if err := r.Start(ctx, id); err != nil {
		return err
	}
	return o.wait(child, t)
}

// wait ends with the process's exit code.
func (o *ociEnv) wait(child *oci.Child, t *ociTerminal) error {
	code, err := child.Wait(context.Background()) // signals go to the process, which ends or not
	t.drain()
	if err != nil || code == 0 {
		return err
	}
	return &ExitError{Code: code}
}

// forwardSignals sends what we get to the process, except for what is about us.
func forwardSignals(child *oci.Child, t *ociTerminal) (stop func()) {
	got := make(chan os.Signal, 64)
	signal.Notify(got)
	go func() {
		for s := range got {
			sig, ok := s.(syscall.Signal)
			switch {
			case !ok || sig == unix.SIGCHLD || sig == unix.SIGURG || sig == unix.SIGPIPE:
			case sig == unix.SIGWINCH && t.master != nil:
				t.resize()
			default:
				_ = child.Signal(sig) // it may have ended
			}
		}
	}()
	return func() { signal.Stop(got); close(got) }
}

// ociTerminal connects our terminal with the container's while we wait.
type ociTerminal struct {
	master *os.File
	before *term.State
	done   chan struct{}
}

func (t *ociTerminal) attach(master *os.File) error {
	t.master, t.done = master, make(chan struct{})
	if in := int(os.Stdin.Fd()); term.IsTerminal(in) {
		before, err := term.MakeRaw(in)
		if err != nil {
			return fmt.Errorf("raw terminal: %w", err)
		}
		t.before = before
		t.resize()
	}
	go func() { _, _ = io.Copy(master, os.Stdin) }() // nothing can interrupt a read of a terminal
	go func() {
		defer close(t.done)
		_, _ = io.Copy(os.Stdout, master) // ends with EIO when the last slave is closed
	}()
	return nil
}

func (t *ociTerminal) resize() {
	if size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(t.master.Fd()), unix.TIOCSWINSZ, size) // the terminal may be gone
	}
}

func (t *ociTerminal) drain() {
	if t.done == nil {
		return
	}
	select {
	case <-t.done:
	case <-time.After(drainTime):
	}
}

func (t *ociTerminal) restore() {
	if t.before != nil {
		_ = term.Restore(int(os.Stdin.Fd()), t.before) // it is ours to restore or gone
	}
}

// ociExec are the flags of exec alone.
type ociExec struct {
	ociStart
	process, cwd, user, apparmor, label, cgroup string
	env, caps                                   []string
	groups                                      []uint
	tty, noNewPrivs, ignorePaused               bool
}

func (o *ociEnv) execCommand() *cobra.Command {
	s := &ociExec{}
	c := &cobra.Command{
		Use: "exec CONTAINER COMMAND [ARG...]", Short: "Run one more process in a running container", Args: cobra.MinimumNArgs(1),
		RunE: o.with(func(c *cobra.Command, r oci.Runtime, args []string) error {
			return startExit(o.exec(c, r, s, args))
		}),
	}
	s.flags(c)
	f := c.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&s.process, "process", "p", "", "file with the process as JSON")
	f.StringVar(&s.cwd, "cwd", "", "working directory")
	f.StringArrayVarP(&s.env, "env", "e", nil, "set an environment variable, NAME=value")
	f.BoolVarP(&s.tty, "tty", "t", false, "give it a terminal")
	f.StringVarP(&s.user, "user", "u", "", "user id, or uid:gid")
	f.UintSliceVarP(&s.groups, "additional-gids", "g", nil, "more group ids")
	f.BoolVarP(&s.detach, "detach", "d", false, "return once it runs")
	f.StringVar(&s.label, "process-label", "", "SELinux label")
	f.StringVar(&s.apparmor, "apparmor", "", "AppArmor profile")
	f.BoolVar(&s.noNewPrivs, "no-new-privs", false, "set no_new_privs")
	f.StringArrayVarP(&s.caps, "cap", "c", nil, "add a capability")
	f.StringVar(&s.cgroup, "cgroup", "", "path of a cgroup below the container's")
	f.BoolVar(&s.ignorePaused, "ignore-paused", false, "refused: a paused container runs nothing")
	return c
}

func (o *ociEnv) exec(cmd *cobra.Command, r oci.Runtime, s *ociExec, args []string) error {
	process, err := s.of(r, cmd, args)
	if err != nil {
		return err
	}
	t := &ociTerminal{}
	defer t.restore()
	conn, err := o.attach(&s.ociStart, t)
	if err != nil {
		return err
	}
	pid, err := r.Exec(cmd.Context(), args[0], oci.ExecOptions{Process: process, Cgroup: s.cgroup, PidFile: s.pidFile, IO: conn})
	if err != nil || s.detach {
		return err
	}
	child, err := r.Child(pid)
	if err != nil {
		return err
	}
	stop := forwardSignals(child, t)
	defer stop()
	return o.wait(child, t)
}

// of is the process: what --process says, or the container's own as flags change it.
func (s *ociExec) of(r oci.Runtime, cmd *cobra.Command, args []string) (*specs.Process, error) {
	if s.ignorePaused {
		return nil, usage("--ignore-paused: not supported")
	}
	if s.process != "" {
		b, err := os.ReadFile(s.process)
		if err != nil {
			return nil, fmt.Errorf("--process: %w", err)
		}
		p := &specs.Process{}
		if err := json.Unmarshal(b, p); err != nil {
			return nil, fmt.Errorf("--process %s: %w", s.process, err)
		}
		return p, nil
	}
	if len(args) < 2 {
		return nil, usage("exec: no command and no --process")
	}
	c, err := r.Open(args[0])
	if err != nil {
		return nil, err
	}
	defer c.Close()
	p, err := c.Process()
	if err != nil {
		return nil, err
	}
	p.Args, p.Terminal = args[1:], s.tty
	return p, s.change(p, cmd)
}

func (s *ociExec) change(p *specs.Process, cmd *cobra.Command) error {
	if s.cwd != "" {
		p.Cwd = s.cwd
	}
	p.Env = append(p.Env, s.env...)
	if s.label != "" {
		p.SelinuxLabel = s.label
	}
	if s.apparmor != "" {
		p.ApparmorProfile = s.apparmor
	}
	if cmd.Flags().Changed("no-new-privs") {
		p.NoNewPrivileges = s.noNewPrivs
	}
	if len(s.caps) > 0 {
		if p.Capabilities == nil {
			p.Capabilities = &specs.LinuxCapabilities{}
		}
		c := p.Capabilities
		c.Bounding, c.Effective, c.Permitted = append(c.Bounding, s.caps...), append(c.Effective, s.caps...), append(c.Permitted, s.caps...)
	}
	if s.user != "" {
		uid, gid, both := strings.Cut(s.user, ":")
		u, err := strconv.ParseUint(uid, 10, 31)
		if err != nil {
			return usage("--user %q: not a user id or uid:gid", s.user)
		}
		p.User.UID = uint32(u)
		if both {
			g, err := strconv.ParseUint(gid, 10, 31)
			if err != nil {
				return usage("--user %q: not a user id or uid:gid", s.user)
			}
			p.User.GID = uint32(g)
		}
	}
	for _, g := range s.groups {
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(g))
	}
	return nil
}
