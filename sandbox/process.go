package sandbox

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"naru/sandbox/image"
	"naru/sandbox/runtime"
)

// defaultPath is what Docker gives a process whose image sets no PATH.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// command joins entrypoint and arguments as Docker does: an entrypoint that is
// given drops the image's arguments too.
func command(c ContainerConfig, img image.RunConfig) ([]string, error) {
	entrypoint, args := img.Entrypoint, img.Cmd
	if c.Entrypoint != nil {
		entrypoint, args = c.Entrypoint, nil
		if len(entrypoint) == 1 && entrypoint[0] == "" {
			entrypoint = nil
		}
	}
	if len(c.Args) > 0 {
		args = c.Args
	}
	argv := slices.Concat(entrypoint, args)
	if len(argv) == 0 || argv[0] == "" {
		return nil, errors.New("no command given, and the image has none")
	}
	return argv, nil
}

// environment lays lists of KEY=value over each other; the last one of a key
// wins and stays where the key came first.
func environment(lists ...[]string) []string {
	at := map[string]int{}
	env := []string{}
	for _, list := range lists {
		for _, kv := range list {
			key, _, _ := strings.Cut(kv, "=")
			if i, ok := at[key]; ok {
				env[i] = kv
				continue
			}
			at[key] = len(env)
			env = append(env, kv)
		}
	}
	return env
}

// asUser makes p run as who. A plain user gets no capability to begin with;
// the bounding set stays, as a file capability or sudo would need it where
// no_new_privs is off.
func asUser(p *specs.Process, view *rootView, who string) error {
	a, err := view.lookup(who)
	if err != nil {
		return err
	}
	p.User = a.User
	p.Env = environment([]string{defaultPath, "HOME=" + a.Home}, p.Env)
	if a.UID != 0 && p.Capabilities != nil {
		bounding := p.Capabilities.Bounding
		p.Capabilities = &specs.LinuxCapabilities{Bounding: bounding}
	}
	return nil
}

// newProcess builds the container's process from what was asked and the image.
func newProcess(c ContainerConfig, img image.RunConfig, lower []string) (*specs.Process, error) {
	argv, err := command(c, img)
	if err != nil {
		return nil, err
	}
	p := runtime.DefaultProcess()
	p.Args, p.Terminal = argv, false
	// The kernel would want /a to be there for "/a/../b", which an image's config may say.
	p.Cwd = path.Clean(firstOf(c.Workdir, img.WorkingDir, "/"))
	p.Env = environment(img.Env, []string{"HOSTNAME=" + c.Hostname}, c.Env)
	if err := c.Security.process(p); err != nil {
		return nil, err
	}
	p.Rlimits, p.OOMScoreAdj = c.Resources.Ulimits, c.Resources.OOMScoreAdj
	view, err := viewLayers(lower)
	if err != nil {
		return nil, err
	}
	defer view.Close() // read only: nothing can be lost
	if err := asUser(p, view, firstOf(c.User, img.User)); err != nil {
		return nil, err
	}
	return p, view.addGroups(&p.User, c.GroupAdd)
}

func firstOf(choices ...string) string {
	for _, s := range choices {
		if s != "" {
			return s
		}
	}
	return ""
}

// ParseSignal reads "TERM", "SIGTERM" or "15".
func ParseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("signal %d: want 1 to 64", n)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(name, "SIGRTMIN+")); err == nil && n >= 0 && n <= 30 {
		return unix.Signal(34 + n), nil // systemd in an image asks for SIGRTMIN+3
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}
