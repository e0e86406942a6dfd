package build

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"golang.org/x/sys/unix"

	"naru/sandbox/build/fetch"
)

// IsRemote tells whether a context is a git repository or a URL, and not a
// directory. An error is that of a URL that means none.
func IsRemote(context string) (bool, error) {
	r, err := remoteContext(context)
	return r != nil, err
}

// remoteContext reads a context as Docker does: a directory of that name wins, and
// "github.com/..." is a repository. Nil: it is a directory's name.
func remoteContext(arg string) (*remoteArg, error) {
	if _, err := os.Stat(arg); err == nil {
		return nil, nil
	}
	if ref, _, err := dfgitutil.ParseGitRef(arg); err == nil && ref.IndistinguishableFromLocal {
		ref.Remote = "https://" + ref.Remote
		return &remoteArg{git: ref}, nil
	}
	r, err := remoteOf(arg)
	if err != nil {
		return nil, err
	}
	if r == nil {
		if scheme, _, ok := strings.Cut(arg, "://"); ok && !strings.Contains(scheme, "/") {
			return nil, fmt.Errorf("%s: a context cannot be fetched by %s: it can by https, http, ssh and git", redacted(arg), scheme)
		}
		return nil, nil
	}
	if r.git != nil {
		_, err = gitSource(r.git)
		return r, err
	}
	u, err := url.Parse(r.url)
	if err != nil || u.Host == "" {
		return nil, errors.New("the URL of the context cannot be parsed")
	}
	if u.Fragment != "" {
		return nil, fmt.Errorf("%s: a fragment means nothing but in the URL of a repository, whose path ends in .git", u.Redacted())
	}
	return r, nil
}

// singleFile is the name of a file that is a whole context, as in BuildKit.
const singleFile = "context"

// keepGitArg is the build argument by which Docker's users ask for the directory
// .git of a repository that is the context.
const keepGitArg = "BUILDKIT_CONTEXT_KEEP_GIT_DIR"

// fetchContext fetches a context. text is the content of a single file, which is a
// Dockerfile if the context is the build's own; nil: the tree holds it.
func (b *session) fetchContext(ctx context.Context, title string, r *remoteArg) (got *fetched, text []byte, err error) {
	if r.git == nil {
		return b.downloadContext(ctx, title, r.url)
	}
	if b.o.Git == nil {
		return nil, nil, fmt.Errorf("%s is a git repository, and there is nobody here to fetch it", redacted(r.git.Remote))
	}
	ref := *r.git
	if value, ok := b.o.Args[keepGitArg]; ok {
		b.takenArgs.add(keepGitArg)
		if keep, err := strconv.ParseBool(value); err == nil {
			ref.KeepGitDir = &keep
		}
	}
	s, err := gitSource(&ref)
	if err != nil {
		return nil, nil, err
	}
	if got, err = b.checkout(ctx, title, s, ref.SubDir); err != nil {
		return nil, nil, err
	}
	b.material(ref.Remote, "sha1", got.commit)
	return got, nil, nil
}

// downloadContext fetches an archive, which is unpacked, or a single file.
func (b *session) downloadContext(ctx context.Context, title, address string) (_ *fetched, text []byte, err error) {
	v := b.out.begin(title)
	defer func() { v.end(err) }()
	file, err := b.fetcher().Get(ctx, address, "")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	l, err := b.store.NewLayer()
	if err != nil {
		return nil, nil, err
	}
	got := &fetched{layer: l}
	defer func() {
		if err != nil {
			err = errors.Join(err, got.close())
		}
	}()
	if got.tree, err = openRoot(l.Upper); err != nil {
		return nil, nil, err
	}
	if text, err = b.unpackContext(ctx, file, got.tree); err != nil {
		return nil, nil, fmt.Errorf("context %s: %w", redacted(address), err)
	}
	b.material(address, "sha256", hex.EncodeToString(file.SHA256[:]))
	return got, text, nil
}

// maxDockerfile bounds a context that is a single file, in bytes.
const maxDockerfile = 10 << 20

func (b *session) unpackContext(ctx context.Context, file *fetch.File, into *root) (text []byte, err error) {
	f, err := os.Open(filepath.Join(file.Dir, file.Name))
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	now, err := unix.TimeToTimespec(time.Now())
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(f, 64<<10)
	if IsArchive(in) {
		x := extraction{ctx: ctx, into: into, left: archiveFloor + archiveRatio*info.Size(), now: now, buf: make([]byte, 256<<10)}
		x.meter = b.budget.meter()
		defer x.meter.end() // the context is nothing that a step has written
		return nil, x.run(in)
	}
	if info.Size() > maxDockerfile {
		return nil, fmt.Errorf("it is neither a tar archive nor a Dockerfile: it has %d bytes", info.Size())
	}
	if text, err = io.ReadAll(in); err != nil {
		return nil, err
	}
	out, err := into.create(singleFile)
	if err != nil {
		return nil, err
	}
	_, err = out.Write(text)
	if err == nil {
		err = setFileMeta(out, meta{mode: 0o600, mtime: now})
	}
	return text, errors.Join(err, out.Close())
}

// openRemote fetches the build's own context.
func (s *session) openRemote(ctx context.Context, r *remoteArg) error {
	address := redacted(s.o.Context)
	title := "[internal] load remote build context " + address
	if r.git != nil {
		title = "[internal] load git source " + address
	}
	got, text, err := s.fetchContext(ctx, title, r)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	s.closers = append(s.closers, got.layer.Discard) // the tree is closed as any other is
	s.tree, s.o.Context, s.fetched = got.tree, address, true
	if text == nil || s.o.Text != nil || filepath.IsAbs(s.o.Dockerfile) {
		return nil
	}
	if s.o.Dockerfile != "" {
		return fmt.Errorf("build context %s: it is a single file, and so the Dockerfile: there is no %s in it", address, s.o.Dockerfile)
	}
	s.o.Text = text
	return nil
}

// material notes what was fetched, for provenance, without any credentials.
func (s *session) material(address, algorithm, sum string) {
	if u, err := url.Parse(address); err == nil {
		u.User, u.Fragment = nil, ""
		address = u.String()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.materials = append(s.materials, resource{address, map[string]string{algorithm: sum}})
}
