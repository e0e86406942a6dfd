package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"naru/sandbox/build"
	reach "naru/sandbox/build/fetch"
)

// Fetcher fetches the repositories that a Dockerfile's ADD names (build.Git): one
// commit, without history where the server can. Both the URL and the
// repository are the build's, so nothing is asked but what a build may reach,
// and no credentials of a deployment are used.
type Fetcher struct {
	// AgentSocket is an ssh agent's (SSH_AUTH_SOCK), whose keys may be used for ssh
	// URLs; empty: there is none.
	AgentSocket string
	// KnownHosts is the file of host keys for ssh URLs.
	KnownHosts string
}

var _ build.Git = Fetcher{}

// maxSubmodules is how deep submodules may be in each other.
const maxSubmodules = 10

// Checkout writes the files of a commit into dir and returns its id; see
// build.Git. Files get the time of the commit, links stay as they are, and LFS
// files are pointers, as with git itself.
func (f Fetcher) Checkout(ctx context.Context, s build.GitSource, dir string) (commit string, err error) {
	if s.Out == nil {
		s.Out = io.Discard
	}
	gitDir := filepath.Join(dir, ".git")
	err = guard(func() error {
		c := &checkout{Fetcher: f, source: s, left: defaultLimits}
		commit, err = c.run(ctx, gitDir, dir)
		return err
	})
	if err != nil || !s.KeepDir {
		err = errors.Join(err, os.RemoveAll(gitDir))
	}
	return commit, err
}

// checkout is one commit of one repository that is being fetched.
type checkout struct {
	Fetcher
	source build.GitSource
	left   limits
	depth  int // of submodules
	st     *filesystem.Storage
	adv    *packp.AdvRefs
}

func (c *checkout) run(ctx context.Context, gitDir, dir string) (string, error) {
	session, err := c.connect(ctx)
	if err != nil {
		return "", err
	}
	defer session.Close() // all that was sent has been read
	if c.adv, err = session.AdvertisedReferencesContext(ctx); err != nil {
		return "", c.mask(err)
	}
	id, err := c.resolve()
	if err != nil {
		return "", err
	}
	c.st = filesystem.NewStorageWithOptions(osfs.New(gitDir), cache.NewObjectLRU(objectCache), filesystem.Options{LargeObjectThreshold: largeObject})
	defer c.st.Close() // read only by now
	if err := c.st.Init(); err != nil {
		return "", err
	}
	if err := c.fetch(ctx, session, id); err != nil {
		return "", c.mask(err)
	}
	found, err := c.commit(id)
	if err != nil {
		return "", err
	}
	if err := c.write(ctx, found, dir); err != nil {
		return "", err
	}
	if c.source.KeepDir {
		err = c.keep(found)
	}
	return found.Hash.String(), err
}

// mask takes the password of the URL out of an error.
func (c *checkout) mask(err error) error {
	a := access{}
	if u, perr := url.Parse(c.source.URL); perr == nil && u.User != nil {
		if password, ok := u.User.Password(); ok {
			a.secrets = append(a.secrets, password, url.QueryEscape(password))
		}
	}
	return a.redact(err)
}

// resolve finds the object that the ref names, by BuildKit's order: the ref as it
// is, a branch, a tag.
func (c *checkout) resolve() (plumbing.Hash, error) {
	s := c.source
	if plumbing.IsHash(s.Ref) {
		if !strings.HasPrefix(s.Ref, s.Commit) {
			return plumbing.ZeroHash, fmt.Errorf("expected a commit that begins with %s, got %s", s.Commit, s.Ref)
		}
		return plumbing.NewHash(s.Ref), nil
	}
	var id plumbing.Hash
	var peeled string
	switch {
	case s.Ref == "" || s.Ref == "HEAD":
		if c.adv.Head == nil {
			return id, errors.New("the repository has no default branch")
		}
		id = *c.adv.Head
	default:
		for _, name := range []string{"refs/" + strings.TrimPrefix(s.Ref, "refs/"), "refs/heads/" + strings.TrimPrefix(s.Ref, "refs/heads/"), "refs/tags/" + strings.TrimPrefix(s.Ref, "refs/tags/")} {
			if h, ok := c.adv.References[name]; ok {
				id, peeled = h, c.adv.Peeled[name].String()
				break
			}
		}
	}
	if id.IsZero() {
		return id, fmt.Errorf("the repository does not contain ref %.80q", s.Ref)
	}
	if !strings.HasPrefix(id.String(), s.Commit) && !strings.HasPrefix(peeled, s.Commit) {
		return id, fmt.Errorf("expected a commit that begins with %s, got %s", s.Commit, id)
	}
	return id, nil
}

// commit finds the commit that an id means: a tag is looked through.
func (c *checkout) commit(id plumbing.Hash) (*object.Commit, error) {
	for range 10 {
		tag, err := object.GetTag(c.st, id)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		id = tag.Target
	}
	found, err := object.GetCommit(c.st, id)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", id, err)
	}
	return found, nil
}

// write writes the files of a commit and of its submodules.
func (c *checkout) write(ctx context.Context, commit *object.Commit, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() // nothing is written to it itself
	tree, err := commit.Tree()
	if err != nil {
		return err
	}
	modules, err := readModules(commit)
	if err != nil {
		return err
	}
	type submodule struct {
		at string
		id plumbing.Hash
	}
	var subs []submodule
	e := &exporter{ctx: ctx, objects: c.st, root: root, left: c.left, mtime: commit.Committer.When, asIs: true}
	e.submodule = func(name string, id plumbing.Hash) error {
		subs = append(subs, submodule{name, id})
		return twice(root.Mkdir(name, 0o755))
	}
	if err := errors.Join(e.directory("", tree, 0), e.finish()); err != nil {
		return err
	}
	c.left = e.left
	for _, s := range subs {
		if !c.source.Submodules {
			break
		}
		if err := c.submodule(ctx, modules, s.at, s.id, dir); err != nil {
			return fmt.Errorf("submodule %q: %w", s.at, err)
		}
	}
	return nil
}

// readModules reads .gitmodules, by path.
func readModules(commit *object.Commit) (map[string]string, error) {
	f, err := commit.File(".gitmodules")
	if errors.Is(err, object.ErrFileNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if f.Size > maxKeyFile {
		return nil, refuse(".gitmodules has %d bytes", f.Size)
	}
	text, err := f.Contents()
	if err != nil {
		return nil, err
	}
	m := config.NewModules()
	if err := m.Unmarshal([]byte(text)); err != nil {
		return nil, fmt.Errorf("read .gitmodules: %w", err)
	}
	urls := map[string]string{}
	for _, sub := range m.Submodules {
		urls[path.Clean(sub.Path)] = sub.URL
	}
	return urls, nil
}

// submodule checks a submodule out into its directory, which was just made: no
// link can be on the way to it.
func (c *checkout) submodule(ctx context.Context, urls map[string]string, at string, id plumbing.Hash, dir string) error {
	where, ok := urls[at]
	if !ok {
		return refuse("it is not in .gitmodules")
	}
	if c.depth >= maxSubmodules {
		return refuse("it is more than %d submodules deep", maxSubmodules)
	}
	if strings.HasPrefix(where, "./") || strings.HasPrefix(where, "../") {
		base, err := url.Parse(c.source.URL)
		if err != nil {
			return refuse("its address %.200q is relative to none", where)
		}
		base.Path = path.Join(base.Path, where)
		where = base.String()
	}
	s := c.source
	s.URL, s.Ref, s.Commit, s.KeepDir = where, id.String(), "", false
	sub := &checkout{Fetcher: c.Fetcher, source: s, left: c.left, depth: c.depth + 1}
	to := filepath.Join(dir, filepath.FromSlash(at))
	_, err := sub.run(ctx, filepath.Join(to, ".git"), to)
	c.left = sub.left
	return errors.Join(err, os.RemoveAll(filepath.Join(to, ".git")))
}

// guardOf is the guard of a source.
func guardOf(allow []netip.Prefix) reach.Guard { return reach.Guard{Allow: allow} }
