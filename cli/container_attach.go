package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"naru/sandbox"
	"naru/sandbox/runtime"
)

// defaultDetachKeys are Docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// foregroundPatience is how long the reader of a foreground container may take no
// output, in a pager for instance, before it is given up and the container goes on
// without it.
const foregroundPatience = 10 * time.Minute

// errDetached says that the person has left and the container goes on.
var errDetached = errors.New("detached")

// session connects this process's streams to a container, or to the terminal of an
// exec.
type session struct {
	env    *Env
	to     io.Writer // the container's input; nil: none
	end    func()    // of the input; nil: it has none
	resize func(rows, columns uint16) error
	tty    bool
	keys   []byte
	leave  func() // what detach keys do
}

// open puts our terminal into raw mode, if there is one on both sides, and begins to
// pass input and sizes on. The function it returns puts everything back, and may be
// called again.
func (s *session) open() (restore func(), err error) {
	restore = func() {}
	fd, ours := s.terminal()
	if s.tty && ours {
		if s.to != nil {
			old, err := term.MakeRaw(fd)
			if err != nil {
				return restore, fmt.Errorf("raw mode: %w", err)
			}
			restore = func() { _ = term.Restore(fd, old) } // there is nobody to tell
		}
		stop := s.watchSize(fd)
		raw := restore
		restore = sync.OnceFunc(func() { stop(); raw() })
	}
	switch {
	case s.to == nil:
	case s.env.Stdin != nil:
		go s.input()
	case s.end != nil:
		s.end()
	}
	return restore, nil
}

func (s *session) terminal() (int, bool) {
	if s.env.Stdin == nil {
		return -1, false
	}
	fd := int(s.env.Stdin.Fd())
	return fd, term.IsTerminal(fd)
}

// input passes standard input on until its end or the detach keys.
func (s *session) input() {
	err := copyKeys(s.to, s.env.Stdin, s.keys)
	switch {
	case errors.Is(err, errDetached):
		s.leave()
	case err == nil && s.end != nil:
		s.end()
	}
}

// watchSize tells the size of our terminal now, and whenever it changes.
func (s *session) watchSize(fd int) (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	tell := func() {
		if columns, rows, err := term.GetSize(fd); err == nil {
			_ = s.resize(uint16(rows), uint16(columns)) // it has ended: that shows elsewhere
		}
	}
	tell()
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-changed:
				tell()
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(changed); close(done) }
}

// copyKeys copies until the end of from, or returns errDetached when the keys come
// one after the other. Keys that could be the begin of them are held back.
func copyKeys(to io.Writer, from io.Reader, keys []byte) error {
	buf, held := make([]byte, 4096), 0
	for {
		n, err := from.Read(buf)
		out := make([]byte, 0, n+len(keys))
		for _, b := range buf[:n] {
			if held < len(keys) && b == keys[held] {
				if held++; held == len(keys) {
					_, _ = to.Write(out) // who leaves does not wait for it
					return errDetached
				}
				continue
			}
			out = append(append(out, keys[:held]...), b)
			if held = 0; len(keys) > 0 && b == keys[0] {
				out, held = out[:len(out)-1], 1
			}
		}
		if err != nil {
			out = append(out, keys[:held]...)
		}
		if len(out) > 0 {
			if _, err := to.Write(out); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// parseKeys reads "ctrl-p,ctrl-q": characters, or ctrl- and one of a-z @ [ \ ] ^ _.
func parseKeys(s string) ([]byte, error) {
	keys := []byte{}
	if s == "" {
		return keys, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		name, ctrl := strings.CutPrefix(part, "ctrl-")
		if len(name) != 1 {
			return nil, fmt.Errorf("--detach-keys %q: want characters or ctrl-X, with commas", s)
		}
		b := name[0]
		if ctrl {
			if b >= 'a' && b <= 'z' {
				b -= 'a' - 'A'
			}
			if b < '@' || b > '_' {
				return nil, fmt.Errorf("--detach-keys %q: there is no ctrl-%s", s, name)
			}
			b -= '@'
		}
		keys = append(keys, b)
	}
	return keys, nil
}

// attachFlags are those of attach, and of start -a.
type attachFlags struct {
	noStdin, sigProxy bool
	keys              string
}

func attachCommand(env *Env) *cobra.Command {
	f := attachFlags{}
	c := &cobra.Command{
		Use:   "attach CONTAINER",
		Short: "Connect to the standard streams of a running container",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			c, err := e.Get(ctx, args[0])
			if err != nil {
				return err
			}
			a, err := e.Attach(ctx, c.ID, runtime.AttachOptions{Once: !f.noStdin && c.Config.Stdin})
			if err != nil {
				return err
			}
			return follow(ctx, env, watched{e, c, a}, f)
		}),
	}
	c.Flags().BoolVar(&f.noStdin, "no-stdin", false, "do not pass standard input on")
	c.Flags().BoolVar(&f.sigProxy, "sig-proxy", true, "pass signals on to the container")
	c.Flags().StringVar(&f.keys, "detach-keys", defaultDetachKeys, "keys that leave the container")
	return c
}

// watched is a container that somebody looks at.
type watched struct {
	engine     *sandbox.Engine
	container  sandbox.Container
	attachment *runtime.Attachment
}

// follow shows an attached container until it ends, and ends with its exit code; or
// until the person leaves.
func follow(ctx context.Context, env *Env, w watched, f attachFlags) error {
	err := connect(ctx, env, w, f)
	if errors.Is(err, errDetached) {
		return nil
	}
	code, over := w.attachment.ExitCode()
	if err == nil && over && code != 0 {
		return &ExitError{Code: code}
	}
	return err
}

// connect runs a session with an attached container.
func connect(ctx context.Context, env *Env, w watched, f attachFlags) error {
	c, a := w.container, w.attachment
	keys, err := parseKeys(f.keys)
	if err != nil {
		return errors.Join(usage("%w", err), a.Close())
	}
	left := make(chan struct{})
	s := &session{env: env, tty: c.Config.Terminal, keys: keys, resize: a.Resize}
	s.leave = func() { close(left); _ = a.Close() } // the container goes on
	if c.Config.Stdin && !f.noStdin {
		s.to = a
		if !s.tty {
			s.end = func() { _ = a.CloseInput() } // an ended container needs no end of input
		}
	}
	if !s.tty {
		s.keys = nil
	}
	restore, err := s.open()
	if err != nil {
		return errors.Join(err, a.Close())
	}
	defer restore()
	ctx, done := context.WithCancel(context.WithoutCancel(ctx))
	defer done()
	if f.sigProxy {
		signals := make(chan os.Signal, 16)
		signal.Notify(signals, proxied()...)
		defer signal.Stop(signals)
		go forward(ctx, w.engine, c.ID, signals)
	}
	err = a.Copy(env.Stdout, env.Stderr)
	select {
	case <-left:
		restore()
		fmt.Fprintln(env.Stderr)
		return errDetached
	default:
	}
	if errors.Is(err, runtime.ErrDropped) {
		err = fmt.Errorf("%w: the container goes on, see 'naru logs %s'", err, c.Name)
	}
	return errors.Join(err, a.Close())
}

// proxied are the signals that are passed on to a container.
func proxied() []os.Signal {
	return []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
}

// runInteractive is run -i, -t and -it.
func runInteractive(ctx context.Context, env *Env, e *sandbox.Engine, f *runFlags) error {
	s := &session{env: env}
	if _, ours := s.terminal(); f.config.Terminal && f.config.Stdin && !ours {
		return engineError(errors.New("the input device is not a TTY"))
	}
	c, err := e.Create(ctx, f.config, sandbox.Stdio{})
	if err != nil {
		return engineError(err)
	}
	warn(env, c)
	a, err := e.Attach(ctx, c.ID, runtime.AttachOptions{Once: c.Config.Stdin && !c.Config.Terminal, Patience: foregroundPatience})
	if err != nil {
		return engineError(errors.Join(err, e.Remove(context.WithoutCancel(ctx), c.ID, true)))
	}
	if err := start(ctx, e, c); err != nil {
		return errors.Join(err, a.Close())
	}
	exit := make(chan error, 1)
	code := 0
	waiting, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	go func() {
		end, err := e.Wait(waiting, c.ID)
		code = end.Code
		exit <- err
	}()
	err = connect(ctx, env, watched{e, c, a}, attachFlags{sigProxy: f.life.sigProxy, keys: f.life.detachKeys})
	if errors.Is(err, errDetached) {
		return nil
	}
	if err != nil {
		fmt.Fprintln(env.Stderr, "naru:", err)
	}
	if err := <-exit; err != nil {
		return engineError(err)
	}
	if code != 0 {
		return &ExitError{Code: code}
	}
	return nil
}
