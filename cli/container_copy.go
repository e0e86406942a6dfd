package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"naru/sandbox"
)

func copyCommand(env *Env) *cobra.Command {
	o, quiet := sandbox.CopyOptions{}, false
	c := &cobra.Command{
		Use:   "cp [flags] CONTAINER:SOURCE DEST|-  or  SOURCE|- CONTAINER:DEST",
		Short: "Copy files between a container and the host",
		Long: "Copy files between a container, running or not, and the host. '-' is a tar on standard input, which may be compressed, or output.\n" +
			"A directory that exists is copied into; SOURCE/. is the content of a directory.",
		Args: cobra.ExactArgs(2),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			return copyFiles(ctx, env, e, copyRequest{args[0], args[1], o, quiet})
		}),
	}
	c.Flags().BoolVarP(&o.Archive, "archive", "a", false, "keep owners, setuid and setgid bits, and extended attributes")
	c.Flags().BoolVarP(&o.Follow, "follow-link", "L", false, "copy what SOURCE leads to, should it be a link")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "say nothing on success")
	return c
}

// copyRequest is one cp as it was typed.
type copyRequest struct {
	from, to string
	options  sandbox.CopyOptions
	quiet    bool
}

func copyFiles(ctx context.Context, env *Env, e *sandbox.Engine, r copyRequest) error {
	from, err := parsePlace(r.from)
	if err != nil {
		return err
	}
	to, err := parsePlace(r.to)
	if err != nil {
		return err
	}
	switch {
	case r.from == "-" && r.to == "-", from.Container == "" && to.Container == "":
		return usage("cp %s %s: one of both must be CONTAINER:PATH", r.from, r.to)
	case r.to == "-":
		return e.CopyOut(ctx, from, r.options, env.Stdout)
	case r.from == "-":
		if env.Stdin == nil {
			return usage("no standard input to read from")
		}
		// A tar says whose its files are: they are taken as they come.
		return e.CopyIn(ctx, to, sandbox.CopyOptions{Archive: true}, env.Stdin)
	}
	if err := e.Copy(ctx, from, to, r.options); err != nil {
		return err
	}
	if !r.quiet {
		fmt.Fprintf(env.Stderr, "Copied %s to %s\n", r.from, r.to)
	}
	return nil
}

// parsePlace reads CONTAINER:PATH or a path of the host. As in Docker, a path that
// begins with / or . is always the host's.
func parsePlace(s string) (sandbox.CopyPlace, error) {
	name, path, ok := strings.Cut(s, ":")
	if s == "" || ok && (name == "" || path == "") {
		return sandbox.CopyPlace{}, usage("%q: want CONTAINER:PATH or a path", s)
	}
	if ok && name[0] != '/' && name[0] != '.' {
		if path[0] != '/' {
			path = "/" + path // Docker's containers have no other place to start from
		}
		return sandbox.CopyPlace{Container: name, Path: path}, nil
	}
	if s == "-" {
		return sandbox.CopyPlace{Path: s}, nil
	}
	abs, err := filepath.Abs(s)
	if err != nil {
		return sandbox.CopyPlace{}, err
	}
	// Abs cleans away what the end of a path says.
	if strings.HasSuffix(s, "/.") || s == "." {
		abs += "/."
	} else if strings.HasSuffix(s, "/") && abs != "/" {
		abs += "/"
	}
	return sandbox.CopyPlace{Path: abs}, nil
}

func diffCommand(env *Env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "diff CONTAINER",
		Short: "List the files that a container has added (A), changed (C) and deleted (D)",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			changes, err := e.Diff(ctx, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(env, changes)
			}
			for _, c := range changes {
				fmt.Fprintln(env.Stdout, c.Kind, c.Path)
			}
			return nil
		}),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

func exportCommand(env *Env) *cobra.Command {
	output := ""
	c := &cobra.Command{
		Use:   "export CONTAINER",
		Short: "Write the root file system of a container as a tar",
		Args:  cobra.ExactArgs(1),
		RunE: withEngine(env, func(ctx context.Context, e *sandbox.Engine, args []string) error {
			write := func(w io.Writer) error { return e.Export(ctx, args[0], w) }
			if output != "" && output != "-" {
				return saveTo(output, write)
			}
			if f, ok := env.Stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
				return errors.New("the tar would go to a terminal: use -o FILE or a pipe")
			}
			return write(env.Stdout)
		}),
	}
	c.Flags().StringVarP(&output, "output", "o", "", "file (default: standard output)")
	return c
}
