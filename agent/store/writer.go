package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// batchMax is how many transactions share one fsync at most.
const batchMax = 64

// flushEvery is how long a log line may wait for its transaction.
const flushEvery = 100 * time.Millisecond

// job is one transaction that waits for the writer.
type job struct {
	do   func(*sql.Tx) error
	err  error
	done chan struct{}
}

// update runs do in a transaction and returns when it is durable. It does not
// return early when ctx ends, since the caller must know whether it happened; an
// already ended ctx begins nothing.
func (s *Store) update(ctx context.Context, do func(*sql.Tx) error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	j := &job{do: do, done: make(chan struct{})}
	select {
	case s.queue <- j:
	case <-s.closing:
		return errClosed
	}
	select {
	case <-j.done:
		return j.err
	case <-s.stopped:
	}
	// The writer's last round may have taken it.
	select {
	case <-j.done:
		return j.err
	default:
		return errClosed
	}
}

// writer is the one goroutine that writes, from Open to Close.
func (s *Store) writer() {
	defer close(s.stopped)
	var flush <-chan time.Time
	for {
		select {
		case j := <-s.queue:
			s.commit(s.gather(j))
		case <-s.logs.dirty:
			if flush == nil {
				flush = time.After(flushEvery)
			}
		case <-flush:
			flush = nil
			s.flush()
		case <-s.closing:
			s.flush()
			return
		}
	}
}

// flush writes all log lines that wait.
func (s *Store) flush() {
	for _, deployment := range s.logs.waiting() {
		s.commit([]*job{{do: func(tx *sql.Tx) error { return s.logs.store(tx, deployment) }, done: make(chan struct{})}})
		s.watch.tell(deployment)
	}
}

// gather adds what waits already to j, so that all share a commit.
func (s *Store) gather(j *job) []*job {
	batch := []*job{j}
	for len(batch) < batchMax {
		select {
		case next := <-s.queue:
			batch = append(batch, next)
		default:
			return batch
		}
	}
	return batch
}

// commit runs the jobs in one transaction. A job that fails is undone alone.
func (s *Store) commit(batch []*job) {
	err := s.transact(batch)
	for _, j := range batch {
		j.err = named(errors.Join(j.err, err))
		close(j.done)
	}
}

// named gives the error of a full disk a name.
func named(err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code() == sqlite3.SQLITE_FULL {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

func (s *Store) transact(batch []*job) error {
	ctx := context.Background()
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	for _, j := range batch {
		if err := savepoint(tx, j); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// savepoint runs one job; the error it returns concerns the whole transaction.
func savepoint(tx *sql.Tx, j *job) error {
	if _, err := tx.Exec("SAVEPOINT job"); err != nil {
		return fmt.Errorf("savepoint: %w", err)
	}
	if j.err = j.do(tx); j.err != nil {
		if _, err := tx.Exec("ROLLBACK TO job"); err != nil {
			return fmt.Errorf("roll back to savepoint: %w", err)
		}
	}
	if _, err := tx.Exec("RELEASE job"); err != nil {
		return fmt.Errorf("release savepoint: %w", err)
	}
	return nil
}
