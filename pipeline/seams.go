package pipeline

import (
	"context"
	"io"
	"net/netip"
	"time"
)

// Source fetches code. Implemented by pipeline/source.
type Source interface {
	// Fetch brings the newest state of the repository's branch here and returns
	// its tip, or the commit named by hint when that is on the branch.
	Fetch(ctx context.Context, repo Repo, hint string, log io.Writer) (Commit, error)
	// Export writes the tree of commit into dir, which must be empty.
	Export(ctx context.Context, repo Repo, commit, dir string) error
	// Changed lists the paths that differ between two commits of the branch.
	Changed(ctx context.Context, repo Repo, from, to string) ([]string, error)
}

// BuildRequest is one image to make.
type BuildRequest struct {
	App    string
	Commit Commit
	Dir    string // the exported tree
	Build  Build
	Log    io.Writer
}

// Builder makes the image of a commit. Implemented by pipeline/image.
type Builder interface {
	// Build returns the digest of the image. Unchanged input gives the same
	// digest without work.
	Build(ctx context.Context, r BuildRequest) (digest string, err error)
}

// Target is where replicas run. Implemented by pipeline/target/*; every
// operation may be repeated after a crash without harm.
type Target interface {
	// Start makes the replica run and returns it with its address. A running
	// replica of that name is returned as it is; the rest of a dead one is
	// replaced.
	Start(ctx context.Context, s ReplicaSpec) (Replica, error)
	// Stop sends the process's stop signal, kills after grace, and removes the
	// replica. An unknown name is no error.
	Stop(ctx context.Context, name string, grace time.Duration) error
	// List returns the replicas of an app, dead ones too; all apps for "".
	List(ctx context.Context, app string) ([]Replica, error)
	// Report tells why a replica is not well.
	Report(ctx context.Context, name string) (Report, error)
	// Run runs a command once in a container like the replica's and waits.
	// It keeps the release command out of a second implementation of all the
	// above, which is why the interface has five methods.
	Run(ctx context.Context, s ReplicaSpec, command []string, log io.Writer) (code int, err error)
}

// Report is what a target knows of one replica.
type Report struct {
	Running  bool
	ExitCode int
	OOM      bool
	Log      []string // the last lines, oldest first
}

// Router sends requests to replicas. Implemented by pipeline/nginx.
type Router interface {
	// Announce says that a Route call is near, so that the waiting it needs
	// can begin. It does not block and may be left without a Route.
	Announce(ctx context.Context)
	// Route makes r the truth and returns when new connections follow it.
	// Equal routes cost nothing. On error the former route is in force.
	Route(ctx context.Context, r Route) error
	// Retire returns when no request can reach addrs any more: they must not
	// be in any route. It waits at most limit for streams to end.
	Retire(ctx context.Context, addrs []netip.AddrPort, limit time.Duration) error
	// Prove sends one real request for the app through the router and returns
	// the replica that answered.
	Prove(ctx context.Context, r Route, path string) (netip.AddrPort, error)
}
