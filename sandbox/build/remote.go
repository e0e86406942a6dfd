package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"naru/sandbox/build/fetch"
	"naru/sandbox/image"
)

// Git fetches the repositories that ADD names. Its addresses must be behind a
// fetch.Guard too.
type Git interface {
	// Checkout writes the files of s into dir, an empty directory, and returns the
	// full id of the commit.
	Checkout(ctx context.Context, s GitSource, dir string) (commit string, err error)
}

// GitSource is a commit of a repository.
type GitSource struct {
	// URL is as git takes it: https, http, ssh, git, or user@host:path.
	URL string
	// Ref is a branch, a tag or another ref, short or whole, or the full id of a
	// commit; "" is the default branch.
	Ref string
	// Commit is what the id of the commit, or of the tag, must begin with; "": any.
	Commit string
	// KeepDir asks for the directory .git.
	KeepDir bool
	// Submodules asks for the submodules' files too.
	Submodules bool
	// Reach are the networks that may be reached beside the public ones.
	Reach []netip.Prefix
	// Out gets what the server says.
	Out io.Writer
}

// remoteArg is an argument of ADD that is not in the context.
type remoteArg struct {
	git *dfgitutil.GitRef // nil: a URL
	url string
}

// remoteOf tells whether an argument is a URL or a repository, as BuildKit does.
func remoteOf(arg string) (*remoteArg, error) {
	ref, isGit, err := dfgitutil.ParseGitRef(arg)
	switch {
	case err != nil && isGit:
		return nil, err
	case err == nil && !ref.IndistinguishableFromLocal:
		return &remoteArg{git: ref}, nil
	case strings.HasPrefix(arg, "http://"), strings.HasPrefix(arg, "https://"):
		return &remoteArg{url: arg}, nil
	}
	return nil, nil
}

// checkRemote looks at one argument before anything is fetched.
func (t *transfer) checkRemote(arg string, git Git) error {
	r, err := remoteOf(arg)
	if err != nil {
		return err
	}
	if r == nil {
		if t.checksum != "" {
			return errors.New("--checksum needs a URL or a git repository")
		}
		return nil
	}
	if t.name != "ADD" {
		return fmt.Errorf("%s is a URL or a repository, which only ADD fetches", redacted(arg))
	}
	if t.checksum != "" && len(t.params.SourcePaths) != 1 {
		return errors.New("--checksum needs exactly one source")
	}
	if r.git == nil {
		if t.checksum != "" && digest.Digest(t.checksum).Validate() != nil {
			return fmt.Errorf("--checksum=%s: neither sha256, sha384 nor sha512 with a digest in hexadecimal", t.checksum)
		}
		_, err = remoteName(arg)
		return err
	}
	if git == nil {
		return fmt.Errorf("%s is a git repository, and there is nobody here to fetch it", redacted(arg))
	}
	_, err = t.gitSource(r.git)
	return err
}

// redacted takes the password out of a URL.
func redacted(arg string) string {
	if u, err := url.Parse(arg); err == nil {
		return u.Redacted()
	}
	return arg
}

// remoteName is the name that a URL's file gets in a directory. As in BuildKit,
// what the server says of it does not count.
func remoteName(arg string) (string, error) {
	u, err := url.Parse(arg)
	if err != nil {
		return "", errors.New("a URL cannot be parsed")
	}
	name := path.Base(u.Path)
	switch {
	case name == "." || name == "/":
		return "__unnamed__", nil
	case name == ".." || strings.ContainsFunc(name, unicode.IsControl):
		return "", fmt.Errorf("%s gives no name for a file", u.Redacted())
	}
	return name, nil
}

// remote fetches an argument that is not local.
func (f *files) remote(ctx context.Context, arg string, r *remoteArg) (pick, error) {
	if r.git != nil {
		return f.repository(ctx, r.git)
	}
	return f.download(ctx, arg)
}

// fetcher gets files by http for this build.
func (b *session) fetcher() *fetch.Client {
	return fetch.New(filepath.Join(b.cache.dir, "fetched"), fetch.Guard{Allow: b.o.Reach}, fetch.Limits{Bytes: b.o.FetchBytes})
}

// download fetches a URL. The file belongs to root, who alone may read it, and
// is as old as the server says, as in BuildKit.
func (f *files) download(ctx context.Context, arg string) (pick, error) {
	name, err := remoteName(arg)
	if err != nil {
		return pick{}, err
	}
	client := f.fetcher()
	v := f.out.begin(f.t.name + " " + redacted(arg))
	got, err := client.Get(ctx, arg, digest.Digest(f.t.checksum))
	v.end(err)
	if err != nil {
		return pick{}, err
	}
	f.closed = append(f.closed, func() { _ = got.Close() }) // it is only kept for the next build
	tree, err := openRoot(got.Dir)
	if err != nil {
		return pick{}, err
	}
	f.closed = append(f.closed, func() { _ = tree.Close() })
	e := entry{path: got.Name, sum: got.SHA256}
	if e.stat, err = tree.lstat(got.Name); err != nil {
		return pick{}, err
	}
	e.stat.Mode, e.stat.Uid, e.stat.Gid, e.stat.Nlink = unix.S_IFREG|0o600, 0, 0, 1
	e.stat.Mtim = unix.Timespec{}
	if !got.Modified.IsZero() && got.Modified.Unix() >= 0 {
		e.stat.Mtim = unix.Timespec{Sec: got.Modified.Unix()}
	}
	src := &source{root: tree, context: true, dated: true}
	return pick{src: src, name: name, entries: []entry{e}, unpack: f.t.unpack != nil && *f.t.unpack}, nil
}

// gitSource joins what the URL of a repository says with the flags.
func (t *transfer) gitSource(ref *dfgitutil.GitRef) (GitSource, error) {
	if ref.Checksum != "" && t.checksum != "" && t.checksum != ref.Checksum {
		return GitSource{}, fmt.Errorf("--checksum=%s, and %s in the URL", t.checksum, ref.Checksum)
	}
	if ref.KeepGitDir != nil && t.keepGit != nil && *ref.KeepGitDir != *t.keepGit {
		return GitSource{}, errors.New("--keep-git-dir and the URL's keep-git-dir differ")
	}
	whole := *ref
	if t.checksum != "" {
		whole.Checksum = t.checksum
	}
	if t.keepGit != nil {
		whole.KeepGitDir = t.keepGit
	}
	return gitSource(&whole)
}

// gitSource says what the URL of a repository asks for.
func gitSource(ref *dfgitutil.GitRef) (GitSource, error) {
	s := GitSource{URL: ref.Remote, Ref: ref.Ref, Commit: strings.ToLower(ref.Checksum), Submodules: ref.Submodules == nil || *ref.Submodules}
	if strings.Trim(s.Commit, "0123456789abcdef") != "" || len(s.Commit) > 64 {
		return s, fmt.Errorf("checksum %q is not the id of a commit", ref.Checksum)
	}
	if ref.FetchByCommit {
		if s.Commit == "" {
			return s, errors.New("fetch-by-commit needs a checksum")
		}
		s.Ref = s.Commit
	}
	s.KeepDir = ref.KeepGitDir != nil && *ref.KeepGitDir && strings.Trim(ref.SubDir, "/") == "" // as in BuildKit: a subdirectory has none
	return s, nil
}

// repository checks a repository out.
func (f *files) repository(ctx context.Context, ref *dfgitutil.GitRef) (pick, error) {
	s, err := f.t.gitSource(ref)
	if err != nil {
		return pick{}, err
	}
	got, err := f.checkout(ctx, f.t.name+" "+redacted(ref.Remote), s, ref.SubDir)
	if err != nil {
		return pick{}, err
	}
	f.closed = append(f.closed, func() { _ = got.close() }) // the store sweeps what is left
	src := &source{root: got.tree, context: true}
	w := walk{ctx: ctx, source: src}
	if err := w.from(""); err != nil {
		return pick{}, err
	}
	if s.KeepDir {
		src.key = got.commit + " " + s.URL // .git holds packs and times that differ from one clone to the next
	}
	return pick{src: src, name: "/", entries: w.entries}, src.sumFiles(ctx, w.entries)
}

// fetched is a tree that was not on this machine, in a directory that the store
// sweeps after a crash.
type fetched struct {
	tree   *root
	commit string // of a repository
	layer  *image.Layer
}

func (f *fetched) close() error {
	var err error
	if f.tree != nil {
		err = f.tree.Close()
	}
	return errors.Join(err, f.layer.Discard())
}

// checkout fetches a commit. The tree is the subdirectory.
func (b *session) checkout(ctx context.Context, title string, s GitSource, sub string) (_ *fetched, err error) {
	l, err := b.store.NewLayer()
	if err != nil {
		return nil, err
	}
	got := &fetched{layer: l}
	v := b.out.begin(title)
	defer func() {
		v.end(err)
		if err != nil {
			err = errors.Join(err, got.close())
		}
	}()
	s.Out, s.Reach = v, b.o.Reach
	if got.commit, err = b.o.Git.Checkout(ctx, s, l.Upper); err != nil {
		return nil, fmt.Errorf("fetch %s: %w", redacted(s.URL), err)
	}
	_, _ = fmt.Fprintf(v, "commit %s\n", got.commit)
	top, err := openRoot(l.Upper)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	// No link on the way: it could lead out of the checkout (CVE-2026-33748).
	sub = strings.TrimPrefix(path.Join("/", sub), "/")
	if got.tree, err = top.sub(sub); err != nil {
		return nil, fmt.Errorf("directory %q of %s: %w", sub, redacted(s.URL), err)
	}
	return got, nil
}
