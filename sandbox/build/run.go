package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	k.field("as", cfg.User, cfg.WorkingDir, instructions.GetNetwork(c))
	text := "RUN " + runText(c)
	return r.step(ctx, step{
		key: k, text: text, history: "RUN " + strings.Join(args, " "),
		write: func(ctx context.Context, l *image.Layer, lower []string, v *vertex) error {
			s := r.newStep(c, args)
			s.Lower, s.Upper, s.Work, s.Out = lower, l.Upper, l.Work, v
			if err := putScript(l.Upper, script); err != nil {
				return err
			}
			free, err := r.slot(ctx)
			if err != nil {
				return err
			}
			code, err := r.exec.Run(ctx, s)
			free()
			tail := v.rest()
			if ctx.Err() != nil {
				return errors.Join(context.Cause(ctx), err)
			}
			if err != nil {
				return fmt.Errorf("RUN: %w", err)
			}
			if code != 0 {
				return &StepError{
					File: r.file.name, Line: lineOf(c.Location()), Instruction: text, Code: code, Tail: tail,
					Hint: r.hint(exit{code, s.Args, s.Env, s.Dir, tail}, append(slices.Clone(lower), l.Upper)),
				}
			}
			return r.tidy(l.Upper, lower)
		},
	})
}

// newStep is the step as the Executor gets it, without its directories.
func (r *stageRun) newStep(c *instructions.RunCommand, args []string) Step {
	s := Step{
		Args: args, Env: append(r.proxies(r.env), r.env.list...),
		Dir: r.config.Config.WorkingDir, User: r.config.Config.User, Hostname: r.hostname(), Network: r.o.Network,
		Memory: r.o.Memory, Pids: r.o.Pids, CPUs: r.o.CPUs,
	}
	if n := instructions.GetNetwork(c); n == instructions.NetworkNone {
		s.Network = n
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	return s
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

// tidy takes out of a layer what was there for the step only: its script, and
// the empty mount points that a runtime makes for /dev, /etc/resolv.conf and so
// on where the image has none. No process of the step is left, and no link that
// one has put in the way is followed (CVE-2024-23652).
func (r *stageRun) tidy(upper string, lower []string) error {
	tree, err := openRoot(upper)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.removeAll(scriptDir); err != nil {
		return err
	}
	below, err := r.viewOf(lower)
	if err != nil {
		return err
	}
	defer below.Close()
	for _, p := range []string{"etc/resolv.conf", "etc/hosts", "etc/hostname", "etc", "dev", "proc", "sys"} {
		if err := dropStub(tree, below, p); err != nil {
			return err
		}
	}
	return nil
}

// dropStub removes p from a layer if it is empty and was not there before, or
// is a directory with nothing in it that looks as it did before.
func dropStub(tree, below *root, p string) error {
	st, err := tree.lstat(p)
	if err != nil || !isDir(&st) && !(isFile(&st) && st.Size == 0) {
		return nil // not there, or something of the step's own
	}
	old, err := below.lstat(p)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && (p != "etc" || old.Mode != st.Mode || old.Uid != st.Uid || old.Gid != st.Gid || tree.isOpaque(p)) {
		return nil
	}
	if err := tree.remove(p); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}
