package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"naru/sandbox/build"
)

// prepare makes the context and the Dockerfile that the arguments name ready to
// be read. cleanup takes back what it made.
func (f *buildFlags) prepare(ctx context.Context, env *Env, arg string) (cleanup func(), err error) {
	cleanup = func() {}
	remote, err := build.IsRemote(arg)
	if err != nil {
		return nil, usage("context: %w", err)
	}
	if remote {
		f.options.Context = arg
		if f.options.Dockerfile == "-" {
			return cleanup, f.readDockerfile(env.Stdin)
		}
		return cleanup, nil // --file names a file of what is fetched, or has an absolute path
	}
	if arg != "-" {
		info, err := os.Stat(arg)
		if err != nil { // exit code 1, as docker build
			return nil, fmt.Errorf("context: %w", err)
		}
		if !info.IsDir() {
			return nil, usage("context: %s is no directory; a Dockerfile is given with --file", arg)
		}
		f.options.Context = arg
		if f.options.Dockerfile != "-" {
			return cleanup, f.findDockerfile()
		}
		return cleanup, f.readDockerfile(env.Stdin)
	}
	if f.options.Dockerfile == "-" {
		return nil, usage("build: standard input cannot be both the context and the Dockerfile")
	}
	dir, err := os.MkdirTemp("", "naru-context-")
	if err != nil {
		return nil, err
	}
	cleanup = func() { _ = os.RemoveAll(dir) }        // files of our own; what is left is the system's to sweep
	f.options.Context = filepath.Join(dir, "context") // whose mode COPY may see; nobody else gets past dir
	if err := os.Mkdir(f.options.Context, 0o755); err != nil {
		cleanup()
		return nil, err
	}
	if err := f.readContext(ctx, env); err != nil {
		cleanup()
		return nil, err
	}
	return cleanup, nil
}

// maxDockerfile bounds a Dockerfile that is read from standard input.
const maxDockerfile = 10 << 20

func (f *buildFlags) readDockerfile(in io.Reader) (err error) {
	if in == (*os.File)(nil) {
		return usage("no standard input to read from")
	}
	if f.options.Text, err = io.ReadAll(io.LimitReader(in, maxDockerfile)); err != nil {
		return fmt.Errorf("read Dockerfile: %w", err)
	}
	f.options.Dockerfile = ""
	return nil
}

// readContext reads standard input: an archive is unpacked into the
// context.
func (f *buildFlags) readContext(ctx context.Context, env *Env) error {
	if env.Stdin == nil {
		return usage("no standard input to read from")
	}
	if isTerminal(env.Stdin) {
		fmt.Fprintln(env.Stderr, "naru: reading a Dockerfile from the terminal; end it with ^D")
	}
	in := bufio.NewReaderSize(env.Stdin, 64<<10)
	if !build.IsArchive(in) {
		return f.readDockerfile(in)
	}
	if err := build.Unpack(ctx, in, f.options.Context); err != nil {
		return fmt.Errorf("read context: %w", err)
	}
	return nil // --file names a file in it
}
