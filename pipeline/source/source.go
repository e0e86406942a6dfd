// Package source fetches code with git, without a git working tree.
//
// A Store is a directory with one bare repository ("mirror") per repository URL and
// branch. Each holds the full history of that one branch and nothing else: no
// tags, no other branches, no shallow boundary, which go-git would break on the next
// fetch. The life of one deployment here: Fetch locks the mirror, fetches the
// delta of refs/heads/<branch> to refs/deploy/<branch> and names the commit;
// Changed compares two commits for path filters; Export walks the commit's tree
// and writes it below one directory through os.Root, so that nothing of the
// repository can name a place outside of it.
//
// What a repository holds is hostile input. go-git's worktree is therefore never
// used (CVE-2026-71556 and before), a panic while parsing becomes an error, sizes
// are capped, and symlinks that leave the tree are refused. A mirror that cannot
// be read is deleted and cloned again, once. go-git has no fsync of its own, so a
// mirror may well be unreadable after a power cut: it is a cache, and the
// same road mends it.
//
// Submodules, LFS and partial clones are not supported: the first two are found
// while exporting and named in the error.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"

	"naru/pipeline"
)

var (
	// ErrNotOnBranch says that a commit is not part of the branch's history, for
	// example since a force push took it away. Fetching again does not help.
	ErrNotOnBranch = errors.New("commit is not on the branch")
	// ErrRefused says that the tree holds something that is not exported: the
	// same commit will be refused again.
	ErrRefused = errors.New("tree refused")
)

// Store keeps the mirrors. Its methods may be called at once by several
// goroutines and processes.
type Store struct {
	root     string
	limits   limits
	caBundle []byte // more certificate authorities for https; for tests
}

var _ pipeline.Source = (*Store)(nil)

// Open returns the store in the directory root, which is made when it is not
// there. Nothing is fetched.
func Open(root string) (*Store, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("open source store: %w", err)
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open source store: %w", err)
	}
	return &Store{root: abs, limits: defaultLimits}, nil
}

// Fetch brings the branch up to date and returns its tip, or the commit that hint
// names: a commit id or at least its first seven digits. A hint that is not on
// the branch is ErrNotOnBranch, never silently another commit; an empty hint is
// the tip. What the server says is written to log, secrets masked. When ctx ends
// Fetch returns soon, even when the server hangs.
func (s *Store) Fetch(ctx context.Context, repo pipeline.Repo, hint string, log io.Writer) (pipeline.Commit, error) {
	var out pipeline.Commit
	err := s.run(ctx, job{repo: repo, log: log, write: true, do: func(ctx context.Context, m *mirror) error {
		if err := m.fetch(ctx); err != nil {
			return err
		}
		c, err := m.choose(ctx, hint)
		if err != nil {
			return err
		}
		m.repack()
		out = describe(c)
		return nil
	}})
	if err != nil {
		return pipeline.Commit{}, fmt.Errorf("fetch %s: %w", repo.URL, err)
	}
	return out, nil
}

// Export writes the files of the commit into dir, which must be empty or not
// there. Files get the mode 0644 or 0755 and the time of the commit. On error dir
// may hold a part of the tree. A tree with submodules, LFS pointers, symlinks
// that leave it or more than the limits is ErrRefused.
func (s *Store) Export(ctx context.Context, repo pipeline.Repo, commit, dir string) error {
	started := false // of the first try; a second one begins with an empty directory again
	err := s.run(ctx, job{repo: repo, log: io.Discard, do: func(ctx context.Context, m *mirror) error {
		c, err := m.commit(commit)
		if err != nil {
			return err
		}
		root, err := emptyRoot(dir, started)
		if err != nil {
			return err
		}
		started = true
		return errors.Join(export(ctx, exportJob{objects: m.st, commit: c, root: root, limits: s.limits}), root.Close())
	}})
	if err != nil {
		return fmt.Errorf("export %.12s: %w", commit, err)
	}
	return nil
}

// Changed lists the paths that differ between two commits, sorted; of a
// renamed file both names. Both commits must be in the mirror: ErrNotOnBranch
// says that one is not, and then nothing is known, which must not be taken
// for "nothing changed".
func (s *Store) Changed(ctx context.Context, repo pipeline.Repo, from, to string) ([]string, error) {
	var out []string
	err := s.run(ctx, job{repo: repo, log: io.Discard, do: func(ctx context.Context, m *mirror) error {
		var err error
		out, err = m.changed(ctx, from, to)
		return err
	}})
	if err != nil {
		return nil, fmt.Errorf("compare %.12s with %.12s: %w", from, to, err)
	}
	return out, nil
}

// choose finds the commit that hint means, on the branch.
func (m *mirror) choose(ctx context.Context, hint string) (*object.Commit, error) {
	tip, err := m.tip()
	if err != nil {
		return nil, &corruptError{err}
	}
	hint = strings.ToLower(strings.TrimSpace(hint))
	if hint == "" || hint == tip.Hash.String() {
		return tip, nil
	}
	if len(hint) < 7 || len(hint) > 40 || strings.Trim(hint, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%.80q is not a commit id", hint)
	}
	var found *object.Commit
	err = object.NewCommitPreorderIter(tip, nil, nil).ForEach(func(c *object.Commit) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !strings.HasPrefix(c.Hash.String(), hint) {
			return nil
		}
		if found != nil && found.Hash != c.Hash {
			return errAmbiguous
		}
		found = c
		if len(hint) == 40 {
			return storer.ErrStop
		}
		return nil
	})
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errAmbiguous):
		return nil, fmt.Errorf("%s means several commits of the branch %s", hint, m.branch)
	case err != nil:
		return nil, &corruptError{err}
	case found == nil:
		return nil, fmt.Errorf("%w: %s is not in the history of %s, whose tip is %s", ErrNotOnBranch, hint, m.branch, tip.Hash)
	}
	return found, nil
}

var errAmbiguous = errors.New("ambiguous commit id")

// describe fills the pipeline's form of a commit with text that cannot break a
// line or a terminal.
func describe(c *object.Commit) pipeline.Commit {
	subject, _, _ := strings.Cut(strings.TrimLeft(c.Message, "\n"), "\n")
	author := c.Author.Name
	if c.Author.Email != "" {
		author = strings.TrimSpace(author + " <" + c.Author.Email + ">")
	}
	return pipeline.Commit{Hash: c.Hash.String(), Subject: printable(subject, 200), Author: printable(author, 200), Time: c.Committer.When}
}

// refName is where the mirror keeps the branch. It is below refs/deploy and not
// refs/heads, so that no command run by hand in the mirror takes it for a branch.
func refName(branch string) plumbing.ReferenceName {
	return plumbing.ReferenceName("refs/deploy/" + branch)
}
