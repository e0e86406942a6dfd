package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"golang.org/x/sys/unix"

	"naru/sandbox/image"
)

// runCommand is RUN.
func (r *stageRun) runCommand(ctx context.Context, c *instructions.RunCommand) error {
	args, script, err := r.runArgs(c)
	if err != nil {
		return err
	}
	cfg := r.config.Config
	k := newKey("run")
	k.layers(r.layers)
	k.field("args", args...)
	k.field("script", script)
	k.field("env", r.env.list...)
	k.field("as", cfg.User, path.Clean("/"+cfg.WorkingDir), r.network(c))
	r.o.RunSettings.key(k)
	list, err := r.mounts(ctx, c, k)
	if err != nil {
		return err
	}
	text := "RUN " + runText(c)
	return r.step(ctx, step{
		key: k, text: text, history: "RUN " + strings.Join(args, " "),
		write: func(ctx context.Context, l *image.Layer, lower []string, v *vertex) (err error) {
			mounts, err := r.openMounts(ctx, list, v)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, mounts.Close()) }()
			s := r.newStep(c, args)
			s.Lower, s.Upper, s.Work = lower, l.Upper, l.Work
			s.Mounts, s.Secrets, s.Env = mounts.list, mounts.secrets, append(mounts.env, s.Env...)
			if err := putScript(l.Upper, script); err != nil {
				return err
			}
			points, err := r.makePoints(l, lower, s.Mounts)
			if err != nil {
				return fmt.Errorf("RUN --mount: %w", err)
			}
			if err := r.execute(ctx, s, v, StepError{Line: lineOf(c.Location()), Instruction: text}); err != nil {
				return err
			}
			return r.tidy(l.Upper, lower, points)
		},
	})
}

// execute runs a step and tells how it failed.
func (r *stageRun) execute(ctx context.Context, s Step, v *vertex, failed StepError) error {
	left, err := r.budget.left()
	if err != nil {
		return err
	}
	s.Disk, s.Inodes = left.Bytes, left.Inodes
	free, err := r.slot(ctx)
	if err != nil {
		return err
	}
	out, flush := r.masked(v)
	s.Out = out
	exit, err := r.exec.Run(ctx, s)
	free()
	err = errors.Join(err, flush())
	failed.File, failed.Tail = r.file.name, v.rest()
	if cause := context.Cause(ctx); errors.Is(cause, errTimeout) {
		failed.Code, failed.Reason, failed.Detail, failed.cause = 128+9, ReasonTime, cause.Error(), cause
		return &failed
	} else if cause != nil {
		return errors.Join(cause, err)
	}
	if err != nil {
		return fmt.Errorf("RUN: %w", err)
	}
	if exit.Code == 0 && exit.Reason == "" {
		return nil
	}
	failed.Code, failed.Reason, failed.Detail = exit.Code, exit.Reason, exit.Detail
	if exit.Reason == ReasonExit || exit.Reason == "" {
		failed.Hint = r.hint(exitCode{exit.Code, s.Args, s.Env, s.Dir, failed.Tail}, append(slices.Clone(s.Lower), s.Upper))
	}
	return &failed
}

// newStep is the step as the Executor gets it, without its directories.
func (r *stageRun) newStep(c *instructions.RunCommand, args []string) Step {
	return Step{
		Args: args, Env: append(r.proxies(r.env), r.env.list...),
		Dir: path.Clean("/" + r.config.Config.WorkingDir), User: r.config.Config.User, Hostname: r.hostname(), Network: r.network(c),
		RunSettings: r.o.RunSettings, Timeout: r.o.StepTimeout, Memory: r.o.Memory, Pids: r.o.Pids, CPUs: r.o.CPUs,
	}
}

// network is the one of a RUN: its own, or the build's.
func (r *stageRun) network(c *instructions.RunCommand) string {
	if n := instructions.GetNetwork(c); n != instructions.NetworkDefault {
		return n
	}
	if r.o.Network == instructions.NetworkDefault {
		return ""
	}
	return r.o.Network
}

// key adds the settings to the key of a step, which sees them all.
func (s RunSettings) key(k *keyHash) {
	if len(s.AddHosts)+len(s.DNS)+len(s.DNSSearch)+len(s.DNSOptions)+len(s.Ulimits) == 0 && s.ShmSize == 0 {
		return
	}
	k.field("hosts", s.AddHosts...)
	k.field("dns", fmt.Sprint(s.DNS))
	k.field("search", s.DNSSearch...)
	k.field("options", s.DNSOptions...)
	k.field("shm", fmt.Sprint(s.ShmSize))
	k.field("ulimits", fmt.Sprint(s.Ulimits))
}

// allowed refuses what the caller has to allow.
func (b *build) allowed(c *instructions.RunCommand) error {
	if n := instructions.GetNetwork(c); n == instructions.NetworkHost && !b.o.AllowHostNetwork && b.o.Network != n {
		return errors.New("RUN --network=host needs the caller's permission (--allow network.host): the step could reach whatever listens on the host")
	}
	return nil
}

// runText is the instruction as it was written, with the first line of a
// heredoc.
func runText(c *instructions.RunCommand) string {
	text := argsOf(c.String())
	if len(c.Files) > 0 {
		first, _, more := strings.Cut(strings.TrimSpace(c.Files[0].Data), "\n")
		if more {
			first += "..."
		}
		text += " (" + first + ")"
	}
	return text
}

// A RUN that is one heredoc which begins with "#!" runs as this file, which is
// gone again when it ends.
const (
	scriptDir  = ".naru-heredoc"
	scriptPath = scriptDir + "/script"
)

// runArgs is the command of RUN. script is the text of the file that it runs,
// if it does.
func (r *stageRun) runArgs(c *instructions.RunCommand) (args []string, script string, err error) {
	if len(c.Files) == 0 {
		return r.command(c.ShellDependantCmdLine), "", nil
	}
	if len(c.CmdLine) != 1 || !c.PrependShell {
		return nil, "", fmt.Errorf("RUN: a heredoc has no exec form: %q", c.CmdLine)
	}
	line := c.CmdLine[0]
	if parser.MustParseHeredoc(line) == nil {
		// The shell gets the heredocs as they stand in the Dockerfile.
		for _, f := range c.Files {
			line += "\n" + f.Data + f.Name
		}
		return r.withShell(line), "", nil
	}
	text := c.Files[0].Data
	if c.Files[0].Chomp {
		text = parser.ChompHeredocContent(text)
	}
	if strings.HasPrefix(text, "#!") {
		return r.withShell("/" + scriptPath), text, nil
	}
	return r.withShell(text), "", nil
}

func putScript(upper, script string) error {
	if script == "" {
		return nil
	}
	tree, err := openRoot(upper)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.mkdir(scriptDir); err != nil {
		return err
	}
	if err := tree.setMeta(scriptDir, meta{mode: dirMode}); err != nil {
		return err
	}
	f, err := tree.create(scriptPath)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, script)
	if err == nil {
		err = setFileMeta(f, meta{mode: 0o755})
	}
	return errors.Join(err, f.Close())
}

// tidy takes out of a layer what was there for the step only: its script, the mount
// points of its mounts, and the empty ones that a runtime makes for /dev,
// /etc/resolv.conf and so on where the image has none. No process of the step is left,
// and no link that one has put in the way is followed (CVE-2024-23652).
func (r *stageRun) tidy(upper string, lower []string, mounts *points) error {
	tree, err := openRoot(upper)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.removeAll(scriptDir); err != nil {
		return err
	}
	stubs := stubsIn(tree)
	if len(stubs)+len(mounts.made) == 0 {
		return nil
	}
	below, err := r.viewOf(lower)
	if err != nil {
		return err
	}
	defer below.Close()
	if err := mounts.drop(tree, below); err != nil {
		return err
	}
	for _, p := range stubs {
		if _, err := below.lstat(p); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// Gone: it was a mount's too.
		if err := tree.remove(p); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return dropCopied(tree, below, "etc")
}

// stubsIn lists the places of a runtime's own mounts that are empty in a layer.
func stubsIn(tree *root) (list []string) {
	for _, p := range []string{"etc/resolv.conf", "etc/hosts", "etc/hostname", "etc", "dev", "proc", "sys"} {
		if st, err := tree.lstat(p); err == nil && (isDir(&st) || isFile(&st) && st.Size == 0) {
			list = append(list, p)
		}
	}
	return list
}
