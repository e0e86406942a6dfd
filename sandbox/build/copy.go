package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"naru/sandbox/image"
)

// transfer is COPY or ADD, with all words expanded.
type transfer struct {
	name     string // COPY or ADD
	text     string // as it was written: values of ARGs are not in it
	params   instructions.SourcesAndDest
	exclude  []string
	parents  bool
	chown    string
	chmod    string
	link     bool // the layer does not depend on those below
	unpack   *bool
	checksum string
	keepGit  *bool
	from     *origin // nil: the context
}

func (r *stageRun) copy(ctx context.Context, c *instructions.CopyCommand) error {
	t := transfer{
		name: "COPY", text: argsOf(c.String()), params: c.SourcesAndDest, exclude: c.ExcludePatterns,
		parents: c.Parents, chown: c.Chown, chmod: c.Chmod, link: c.Link, unpack: new(bool),
	}
	if o, ok := r.st.from[use{cmd: c}]; ok {
		t.from = &o
	}
	return r.transfer(ctx, t)
}

func (r *stageRun) add(ctx context.Context, c *instructions.AddCommand) error {
	return r.transfer(ctx, transfer{
		name: "ADD", text: argsOf(c.String()), params: c.SourcesAndDest, exclude: c.ExcludePatterns,
		chown: c.Chown, chmod: c.Chmod, link: c.Link, unpack: c.Unpack, checksum: c.Checksum, keepGit: c.KeepGitDir,
	})
}

// argsOf is an instruction's text without its name.
func argsOf(code string) string {
	code = strings.TrimSpace(code)
	if i := strings.IndexAny(code, " \t"); i >= 0 {
		return strings.TrimSpace(code[i:])
	}
	return ""
}

// transfer makes the layer of a COPY or ADD. Its key holds the content of what
// is copied, so that a stage that was built again and made the same files does
// not make this layer again.
func (r *stageRun) transfer(ctx context.Context, t transfer) error {
	mode, err := t.check(r.o.Git)
	if err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	src, err := r.files(ctx, t)
	if err != nil {
		return err
	}
	defer src.close()
	content, err := src.key(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", t.name, err)
	}
	dest := absolute(r.config.Config.WorkingDir, t.params.DestPath)
	k := newKey("copy")
	if !t.alone() {
		k.layers(r.layers)
	}
	k.field("content", content)
	k.field("to", dest, t.chown, t.chmod, strconv.FormatBool(t.alone()))
	for _, text := range t.params.SourceContents {
		k.field("text", text.Path, text.Data)
	}
	full := t.name + " " + t.text
	return r.step(ctx, step{key: k, text: full, history: full,
		write: func(ctx context.Context, l *image.Layer, lower []string, v *vertex) error {
			if t.alone() {
				lower = []string{r.emptyDir()}
			}
			if err := r.write(ctx, layerAt{l, lower}, job{t, src, dest, mode}, v); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			return nil
		},
	})
}

// alone tells whether the layer is made without a look at those below (--link).
// As in BuildKit, --chmod takes that away again.
func (t *transfer) alone() bool { return t.link && t.chmod == "" }

// pinned tells whether --checksum says what will be copied. A URL's file then
// has the same content, whatever the server says now.
func (t *transfer) pinned() bool { return t.checksum != "" && strings.Contains(t.checksum, ":") }

// check looks at what can only be known when variables have been expanded.
func (t *transfer) check(git Git) (*modeChange, error) {
	for _, arg := range t.params.SourcePaths {
		if err := t.checkRemote(arg, git); err != nil {
			return nil, err
		}
	}
	if t.link && t.chown != "" && !byNumber(t.chown) {
		return nil, fmt.Errorf("--chown=%s: names cannot be resolved with --link, use numbers", t.chown)
	}
	return parseMode(t.chmod)
}

// absolute joins a destination to the working directory. A slash or "/." at its
// end says that it is a directory, and stays as a slash.
func absolute(workdir, dest string) string {
	if dest == "" || dest == "." {
		dest = "./"
	}
	full := path.Join("/", dest)
	if !path.IsAbs(dest) {
		full = path.Join("/", workdir, dest)
	}
	if full != "/" && (strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.")) {
		full += "/"
	}
	return full
}

// job is a transfer that has to be done.
type job struct {
	t    transfer
	src  *files
	dest string
	mode *modeChange // of --chmod
}

// layerAt is a layer that is being written, and those below it.
type layerAt struct {
	*image.Layer
	lower []string
}

// write does a transfer.
func (r *stageRun) write(ctx context.Context, l layerAt, j job, v *vertex) error {
	if err := j.src.find(ctx); err != nil {
		return err
	}
	w, err := openWriter(ctx, l)
	if err != nil {
		return err
	}
	defer w.close() // after flush it does nothing; before, there is an error already
	w.mode, w.meter = j.mode, r.budget.meter()
	defer w.meter.end() // charge counts the layer
	if j.t.chown != "" {
		o, err := lookup(w.dst, j.t.chown)
		if err != nil {
			return fmt.Errorf("--chown=%s: %w", j.t.chown, err)
		}
		w.owner = &o
	}
	if err := w.severalInto(j, v); err != nil {
		return err
	}
	for i := range j.src.found {
		p := &j.src.found[i]
		if p.unpack {
			done, err := w.unpack(p, j.dest)
			if err != nil {
				return err
			}
			if done {
				_, _ = fmt.Fprintf(v, "unpacked %s\n", p.name)
				continue
			}
		}
		if err := w.place(p, j.dest); err != nil {
			return err
		}
	}
	for _, text := range j.t.params.SourceContents {
		if err := w.text(text.Path, text.Data, j.dest); err != nil {
			return err
		}
	}
	return w.flush()
}

// severalInto warns of several files for one name. The last one stays, as in
// BuildKit, whose documentation asks for a slash.
func (w *writer) severalInto(j job, v *vertex) error {
	n := len(j.t.params.SourceContents)
	for i := range j.src.found {
		if !j.src.found[i].isDir() {
			n++
		}
	}
	if n < 2 || strings.HasSuffix(j.dest, "/") {
		return nil
	}
	p, err := w.dst.resolve(j.dest)
	if err != nil {
		return err
	}
	st, err := w.dst.lstat(p)
	if err == nil && isDir(&st) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, _ = fmt.Fprintf(v, "WARNING: %d files for %s, of which the last one stays: end it with a / if it is to be a directory\n", n, j.dest)
	return nil
}

// workdir is WORKDIR. The directory belongs to USER, as in BuildKit. The config
// keeps an absolute path as it was written, as all builders do; what is made,
// checked and used is what it comes to.
func (r *stageRun) workdir(ctx context.Context, c *instructions.WorkdirCommand) error {
	written := c.Path
	if !path.IsAbs(written) {
		written = path.Join("/", r.config.Config.WorkingDir, written)
	}
	dir := path.Clean(written)
	for _, bad := range []string{"/proc", "/sys", "/dev"} {
		if dir == bad || strings.HasPrefix(dir, bad+"/") {
			// CVE-2024-21626: /proc/self/fd/N as a directory of the host.
			return fmt.Errorf("WORKDIR %s: not in %s", dir, bad)
		}
	}
	r.config.Config.WorkingDir = written
	user := r.config.Config.User
	k := newKey("workdir")
	k.layers(r.layers)
	k.field("dir", dir, user)
	return r.step(ctx, step{key: k, text: "WORKDIR " + argsOf(c.String()), history: "WORKDIR " + written,
		write: func(ctx context.Context, l *image.Layer, lower []string, _ *vertex) error {
			tree, err := view(l, lower)
			if err != nil {
				return err
			}
			defer tree.Close()
			if err := makeWorkdir(ctx, tree, dir, user); err != nil {
				return fmt.Errorf("WORKDIR: %w", err)
			}
			return nil
		},
	})
}

func makeWorkdir(ctx context.Context, tree *root, dir, user string) error {
	p, err := tree.resolve(dir)
	if err != nil {
		return err
	}
	w := newWriter(ctx, tree)
	if user != "" {
		o, err := lookup(tree, user)
		if err != nil {
			return err
		}
		w.owner = &o
	}
	return w.mkdirAll(p)
}
