package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"naru/pipeline"
)

// The kinds of events.
const (
	KindState = "state" // Text is a StateChange
	KindStep  = "step"  // Text is a StepChange
	KindLog   = "log"   // Text is one line of the log
)

// Event is one thing that happened in a deployment.
type Event struct {
	N    int64 // from 1 for each deployment, without gaps
	At   time.Time
	Kind string
	Text string // JSON, or the line of a log
}

// StateChange is the Text of an event of KindState.
type StateChange struct {
	State pipeline.State `json:"state"`
	Error string         `json:"error,omitempty"`
}

// StepChange is the Text of an event of KindStep.
type StepChange struct {
	Step  string         `json:"step"`
	Phase pipeline.Phase `json:"phase"`
	Error string         `json:"error,omitempty"`
}

// Events returns what happened in a deployment after the event with number
// after, oldest first, at most limit events; kind "" means all kinds.
func (s *Store) Events(ctx context.Context, q EventQuery) (events []Event, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT n, at, kind, text FROM events
		WHERE deployment = ? AND n > ? AND (? = '' OR kind = ?) ORDER BY n LIMIT ?`, q.Deployment, q.After, q.Kind, q.Kind, q.Limit)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var e Event
		var at int64
		if err := rows.Scan(&e.N, &at, &e.Kind, &e.Text); err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		e.At = unstamp(at)
		events = append(events, e)
	}
	return events, rows.Err()
}

// EventQuery says which events to read.
type EventQuery struct {
	Deployment string
	After      int64  // number of the last event seen; 0: from the first
	Kind       string // "": all
	Limit      int
}

func addEvent(tx *sql.Tx, deployment, kind string, change any, at time.Time) error {
	text, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO events (deployment, n, at, kind, text)
		VALUES (?, (SELECT COALESCE(MAX(n), 0) + 1 FROM events WHERE deployment = ?), ?, ?, ?)`,
		deployment, deployment, stamp(at), kind, string(text))
	return err
}

func addState(tx *sql.Tx, deployment string, state pipeline.State, failure string, at time.Time) error {
	return addEvent(tx, deployment, KindState, StateChange{State: state, Error: failure}, at)
}

// Limits of the log of one deployment: a build may print without end.
const (
	maxLine  = 16 << 10 // bytes; longer lines are cut
	maxLog   = 16 << 20 // bytes; what comes after is left out
	maxWaits = 2000     // lines that wait for the writer before Log waits for it
)

const (
	cutMark = " … line cut"
	endMark = "… the log is longer than what is kept; the rest is left out"
)

// Log adds a line to the log of a deployment. It is durable within flushEvery, or
// with the next journal entry, and so may be lost when the agent is killed.
func (s *Store) Log(ctx context.Context, deployment, line string) error {
	line = strings.ToValidUTF8(strings.ReplaceAll(strings.TrimRight(line, "\r\n"), "\x00", ""), "\uFFFD")
	if len(line) > maxLine {
		cut := maxLine
		for !utf8.RuneStart(line[cut]) {
			cut--
		}
		line = line[:cut] + cutMark
	}
	if s.logs.add(deployment, line, s.now()) < maxWaits {
		return nil
	}
	err := s.update(ctx, func(tx *sql.Tx) error { return s.logs.store(tx, deployment) })
	if err != nil {
		return fmt.Errorf("store log: %w", err)
	}
	s.watch.tell(deployment)
	return nil
}

// logBuffer holds the lines that wait for the writer.
type logBuffer struct {
	dirty chan struct{} // holds one token when lines wait
	mu    sync.Mutex
	logs  map[string]*pendingLog
}

type pendingLog struct {
	lines []Event
	bytes int
	full  bool
}

// add returns how many lines wait.
func (b *logBuffer) add(deployment, line string, at time.Time) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.logs == nil {
		b.logs = map[string]*pendingLog{}
	}
	l := b.logs[deployment]
	if l == nil {
		l = &pendingLog{}
		b.logs[deployment] = l
	}
	if l.full {
		return 0
	}
	if l.bytes += len(line) + 1; l.bytes > maxLog {
		l.full, line = true, endMark
	}
	l.lines = append(l.lines, Event{At: at, Kind: KindLog, Text: line})
	select {
	case b.dirty <- struct{}{}:
	default:
	}
	return len(l.lines)
}

func (b *logBuffer) waiting() (deployments []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for d, l := range b.logs {
		if len(l.lines) > 0 {
			deployments = append(deployments, d)
		}
	}
	return deployments
}

// store writes the waiting lines of a deployment as a part of tx.
func (b *logBuffer) store(tx *sql.Tx, deployment string) error {
	b.mu.Lock()
	var lines []Event
	if l := b.logs[deployment]; l != nil {
		lines, l.lines = l.lines, nil
	}
	b.mu.Unlock()
	if len(lines) == 0 {
		return nil
	}
	var n int64
	if err := tx.QueryRow("SELECT COALESCE(MAX(n), 0) FROM events WHERE deployment = ?", deployment).Scan(&n); err != nil {
		return err
	}
	stmt, err := tx.Prepare("INSERT INTO events (deployment, n, at, kind, text) VALUES (?, ?, ?, ?, ?)")
	if err != nil {
		return err
	}
	for i, l := range lines {
		if _, err := stmt.Exec(deployment, n+int64(i)+1, stamp(l.At), l.Kind, l.Text); err != nil {
			return errors.Join(err, stmt.Close())
		}
	}
	return stmt.Close()
}

func (b *logBuffer) forget(deployment string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.logs, deployment)
}

// watchers are those who wait for news of a deployment.
type watchers struct {
	mu  sync.Mutex
	all map[string]map[chan struct{}]bool
}

// Watch returns a channel that gets a value after there is news of the
// deployment: read it with Deployment and Events. Several pieces of news may come
// as one value. The function ends the watch and must be called.
func (s *Store) Watch(deployment string) (<-chan struct{}, func()) {
	w := &s.watch
	news := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[string]map[chan struct{}]bool{}
	}
	if w.all[deployment] == nil {
		w.all[deployment] = map[chan struct{}]bool{}
	}
	w.all[deployment][news] = true
	return news, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all[deployment], news)
		if len(w.all[deployment]) == 0 {
			delete(w.all, deployment)
		}
	}
}

// tell never waits for a watcher.
func (w *watchers) tell(deployment string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for news := range w.all[deployment] {
		select {
		case news <- struct{}{}:
		default:
		}
	}
}
