package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"naru/internal/redact"
	"naru/pipeline"
)

// limitedBuilder lets only so many builds of all apps run at once.
type limitedBuilder struct {
	pipeline.Builder
	slots chan struct{}
}

// Build waits for a free slot first.
func (b limitedBuilder) Build(ctx context.Context, r pipeline.BuildRequest) (string, error) {
	select {
	case b.slots <- struct{}{}:
	default:
		if _, err := fmt.Fprintln(r.Log, "waiting for the build of another app"); err != nil {
			return "", err
		}
		select {
		case b.slots <- struct{}{}:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	defer func() { <-b.slots }()
	return b.Builder.Build(ctx, r)
}

// lagSource waits for a server whose webhook was faster than what a fetch sees:
// else the push would be taken for one that is live already, and be lost.
type lagSource struct {
	pipeline.Source
	want string // the commit that the webhook told of; "": none
}

// A commit that is not there after lagTries was replaced by a forced push.
const (
	lagTries = 3
	lagWait  = time.Second
)

// Fetch without a hint returns the tip, if need be after asking again until the
// wanted commit is on the branch.
func (s lagSource) Fetch(ctx context.Context, repo pipeline.Repo, hint string, log io.Writer) (pipeline.Commit, error) {
	for try := 1; ; try++ {
		tip, err := s.Source.Fetch(ctx, repo, hint, log)
		if err != nil || hint != "" || s.want == "" || tip.Hash == s.want || try == lagTries {
			return tip, err
		}
		if _, err := s.Source.Fetch(ctx, repo, s.want, log); err == nil {
			return tip, nil // it is there, and older than the tip
		}
		if _, err := fmt.Fprintf(log, "commit %.12s is not on branch %s yet: asking again\n", s.want, repo.Branch); err != nil {
			return tip, err
		}
		select {
		case <-time.After(lagWait):
		case <-ctx.Done():
			return tip, context.Cause(ctx)
		}
	}
}

// maskedJournal keeps secrets out of the errors in the journal.
type maskedJournal struct {
	pipeline.Journal
	secrets []string
}

// Record masks the error and records the entry, also when the deployment is
// being cancelled: what has happened is to be known.
func (j maskedJournal) Record(ctx context.Context, deployment string, e pipeline.Entry) error {
	e.Error = redact.String(e.Error, j.secrets...)
	return j.Journal.Record(context.WithoutCancel(ctx), deployment, e)
}

// maxPart is the longest part of a line without end that is held, in bytes.
const maxPart = 64 << 10

// lineWriter cuts what is written into lines.
type lineWriter struct {
	put  func(line string)
	mu   sync.Mutex
	part []byte
}

// Write never fails: a log must not end a deployment.
func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		w.part = append(w.part, line...)
		if whole || len(w.part) > maxPart {
			w.put(string(w.part))
			w.part = w.part[:0]
		}
		rest = after
	}
	return len(p), nil
}

// flush puts the line that has no end yet.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.part) > 0 {
		w.put(string(w.part))
		w.part = nil
	}
}
