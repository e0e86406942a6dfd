// Package store remembers what has happened: deliveries, deployments and their
// journals, events and logs, releases, tokens and schedules, in one SQLite file.
//
// A webhook arrives: Enqueue puts its delivery and its deployment into one
// transaction and returns when both are on disk; only then the sender gets its
// answer. The lane of the app takes it with Begin, the engine writes the journal
// with Record and the release with Create and SetLive, and Finish closes it.
// Whoever watches (Watch) is told after each commit and reads Events from the
// number it has seen last, so that live and replayed events are the same road.
//
// The file is in WAL mode with synchronous=FULL: what was committed survives a
// power cut. One goroutine writes; transactions that wait for it at the same
// time share one fsync. Only log lines are written later, after at most
// flushEvery, and always before the next journal entry of their deployment.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"
)

var (
	// ErrNotFound says that the store has no such record.
	ErrNotFound = errors.New("not found")
	// ErrFull says that the disk of the store is full, so that nothing was stored.
	ErrFull = errors.New("the disk of the data directory is full")
)

// errClosed is returned by writes after Close.
var errClosed = errors.New("store is closed")

// Store is the open database. Its methods may be called by any goroutine.
type Store struct {
	write   *sql.DB // one connection, used by the writer goroutine alone
	read    *sql.DB
	queue   chan *job
	closing chan struct{}
	once    sync.Once
	stopped chan struct{} // closed when the writer has ended
	logs    logBuffer
	watch   watchers
	now     func() time.Time
}

// Open opens or creates the database file and brings its schema up to date. A
// database with data is copied beside itself before a migration. A database of a
// newer naru is refused.
func Open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("create store directory: %w", err)
	}
	// SQLite gives its -wal and -shm files the mode of the database.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{
		queue: make(chan *job, batchMax), closing: make(chan struct{}), stopped: make(chan struct{}), now: time.Now,
		logs: logBuffer{dirty: make(chan struct{}, 1)},
	}
	if s.write, err = connect(path, 1, "immediate"); err != nil {
		return nil, err
	}
	if err := migrate(context.Background(), s.write, path); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	if s.read, err = connect(path, 4, "deferred"); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	go s.writer()
	return s, nil
}

func connect(path string, conns int, lock string) (*sql.DB, error) {
	q := url.Values{"_txlock": {lock}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
	}}
	dsn := url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(1)
	if err := db.Ping(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), db.Close())
	}
	return db, nil
}

// Close writes what waits and closes the file. It may be called twice.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closing)
		<-s.stopped
		err = errors.Join(s.read.Close(), s.write.Close())
	})
	return err
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	return s.read.QueryRowContext(ctx, "SELECT 1").Scan(&one)
}

// stamp and unstamp keep times as microseconds since 1970; 0 is the zero time.
func stamp(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func unstamp(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}
