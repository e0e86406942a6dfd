package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"naru/pipeline"
)

const (
	// maxPacks is how many packs a mirror may have; each fetch adds one.
	maxPacks = 20
	// objectCache and largeObject bound the memory of reading, in bytes: what is
	// larger than largeObject is streamed from the pack.
	objectCache = 32 << 20
	largeObject = 8 << 20
	// lockPoll is how often a lock that another process holds is tried: flock(2)
	// cannot wait for a context.
	lockPoll = 20 * time.Millisecond
	// grace is how long a job may go on after its context has ended, before it is
	// left to itself.
	grace = 3 * time.Second
)

// mirror is one bare repository, locked.
type mirror struct {
	dir    string
	branch string
	remote remote
	log    io.Writer
	st     *filesystem.Storage
}

// corruptError says that the mirror cannot be read as it should.
type corruptError struct{ err error }

func (e *corruptError) Error() string { return "read mirror: " + e.err.Error() }
func (e *corruptError) Unwrap() error { return e.err }

// missingError says that a commit is not in the mirror: it was never on the
// branch, or the mirror is damaged, or it is older than the commit.
type missingError struct{ hash string }

func (e *missingError) Error() string { return e.Unwrap().Error() }
func (e *missingError) Unwrap() error { return fmt.Errorf("%w: %s", ErrNotOnBranch, e.hash) }

// job is work on one mirror.
type job struct {
	repo  pipeline.Repo
	log   io.Writer
	write bool // Fetch: changes the mirror
	do    func(context.Context, *mirror) error
}

// run does a job under the lock of its mirror, and once more on a fresh clone when
// the mirror turns out to be damaged.
//
// The work has a goroutine of its own: parts of go-git cannot be interrupted (the
// ssh handshake is one). When the context has ended and grace is over, run
// returns and the goroutine keeps the lock for as long as it lasts, so that
// nobody meets a mirror that is being written.
func (s *Store) run(ctx context.Context, j job) error {
	r, err := parseRemote(j.repo)
	if err != nil {
		return err
	}
	gate := &gate{w: j.log}
	done := make(chan error, 1)
	go func() { done <- r.explain(s.locked(ctx, j, r, gate)) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(grace):
			err = ctx.Err()
		}
	}
	gate.shut()
	return err
}

// locked runs the job; see run.
func (s *Store) locked(ctx context.Context, j job, r remote, log io.Writer) error {
	sum := sha256.Sum256([]byte(j.repo.URL + "\n" + r.branch))
	id := hex.EncodeToString(sum[:16])
	m := &mirror{dir: filepath.Join(s.root, id+".git"), branch: r.branch, remote: r, log: log}
	m.remote.caBundle = s.caBundle
	lock := filepath.Join(s.root, id+".lock")
	err := withLock(ctx, lock, j.write, func() error {
		return guard(func() error {
			if err := m.open(j.write); err != nil {
				return err
			}
			return j.do(ctx, m)
		})
	})
	if !damaged(err) || ctx.Err() != nil {
		return err
	}
	fmt.Fprintf(log, "the mirror has to be cloned again: %s\n", printable(err.Error(), 300))
	return withLock(ctx, lock, true, func() error {
		if err := os.RemoveAll(m.dir); err != nil {
			return fmt.Errorf("remove damaged mirror: %w", err)
		}
		return guard(func() error {
			if err := m.open(true); err != nil {
				return err
			}
			if !j.write { // Fetch does it itself
				if err := m.fetch(ctx); err != nil {
					return err
				}
			}
			return j.do(ctx, m)
		})
	})
}

func damaged(err error) bool {
	_, corrupt := errors.AsType[*corruptError](err)
	_, missing := errors.AsType[*missingError](err)
	return corrupt || missing
}

// guard turns a panic of go-git into damage: both the pack in the mirror and the
// one on the wire can bring it about, and a fresh clone tells which.
func guard(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = &corruptError{fmt.Errorf("git library panicked: %v", r)}
		}
	}()
	return do()
}

// withLock holds the lock file, exclusively or shared, while do runs.
func withLock(ctx context.Context, path string, exclusive bool, do func() error) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock mirror: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }() // which unlocks
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return do()
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock mirror: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for another fetch of the repository: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// open opens the repository in dir. One that is not there, or not complete since
// its making was cut short, is made when write is set, and is damage when
// not. The file system is bound: no path in the repository leads out of dir.
func (m *mirror) open(write bool) error {
	if _, err := os.Stat(filepath.Join(m.dir, "config")); err != nil {
		if !write {
			return &corruptError{err}
		}
		if err := os.RemoveAll(m.dir); err != nil {
			return fmt.Errorf("remove unfinished mirror: %w", err)
		}
	}
	m.st = filesystem.NewStorageWithOptions(osfs.New(m.dir, osfs.WithBoundOS()),
		cache.NewObjectLRU(objectCache), filesystem.Options{LargeObjectThreshold: largeObject})
	_, err := git.Open(m.st, nil)
	if errors.Is(err, git.ErrRepositoryNotExists) && write {
		_, err = git.Init(m.st, nil)
	}
	if err != nil {
		return &corruptError{err}
	}
	return nil
}

// fetch brings the branch here. Before, it checks that what is already here can be
// read, since the server is told not to send it; after, that the tip can.
func (m *mirror) fetch(ctx context.Context) error {
	if _, err := m.st.IterReferences(); err != nil { // reads all of them
		return &corruptError{err}
	}
	if _, err := m.tip(); err != nil && !errors.Is(err, plumbing.ErrReferenceNotFound) {
		return &corruptError{err}
	}
	access, err := m.remote.open()
	if err != nil {
		return err
	}
	progress := newProgress(m.log, access.secrets)
	err = git.NewRemote(m.st, &config.RemoteConfig{Name: "origin", URLs: []string{m.remote.url}}).FetchContext(ctx, &git.FetchOptions{
		RefSpecs: []config.RefSpec{config.RefSpec("+refs/heads/" + m.branch + ":" + refName(m.branch).String())},
		Auth:     access.auth,
		Progress: progress,
		Tags:     git.NoTags,
		Force:    true,
		CABundle: m.remote.caBundle,
	})
	progress.close()
	switch {
	case errors.Is(err, git.NoErrAlreadyUpToDate):
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, plumbing.ErrObjectNotFound):
		return &corruptError{err}
	case err != nil:
		return access.redact(err)
	}
	if _, err := m.tip(); err != nil {
		return &corruptError{err}
	}
	return nil
}

// tip is the newest commit of the branch; its tree can be read too.
func (m *mirror) tip() (*object.Commit, error) {
	ref, err := m.st.Reference(refName(m.branch))
	if err != nil {
		return nil, err
	}
	c, err := object.GetCommit(m.st, ref.Hash())
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", ref.Hash(), err)
	}
	if _, err := c.Tree(); err != nil {
		return nil, fmt.Errorf("tree of %s: %w", ref.Hash(), err)
	}
	return c, nil
}

// commit looks a full commit id up.
func (m *mirror) commit(hash string) (*object.Commit, error) {
	if !plumbing.IsHash(hash) {
		return nil, fmt.Errorf("%.80q is not a commit id", hash)
	}
	c, err := object.GetCommit(m.st, plumbing.NewHash(hash))
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return nil, &missingError{hash}
	}
	if err != nil {
		return nil, &corruptError{err}
	}
	return c, nil
}

// repack makes one pack of many. A failure is no reason to fail the deployment:
// the old packs are deleted only after the new one is there.
func (m *mirror) repack() {
	packs, err := m.st.ObjectPacks()
	if err != nil || len(packs) <= maxPacks {
		return
	}
	err = guard(func() error {
		repo, err := git.Open(m.st, nil)
		if err != nil {
			return err
		}
		return repo.RepackObjects(&git.RepackConfig{})
	})
	if err != nil {
		fmt.Fprintf(m.log, "repack mirror: %s\n", printable(err.Error(), 300))
	}
}

// gate is a writer that can be shut: a job that was left to itself must not write
// to a log that its caller has closed.
type gate struct {
	mu sync.Mutex
	w  io.Writer
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.w == nil {
		return len(p), nil
	}
	return g.w.Write(p)
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.w = nil
}
