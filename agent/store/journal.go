package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"naru/pipeline"
)

var (
	_ pipeline.Journal  = (*Store)(nil)
	_ pipeline.Releases = (*Store)(nil)
)

// Record appends an entry to the journal of a deployment, shows it in the
// deployment and in its events, and returns when all that is durable. Log lines
// that were written before it are stored before it.
func (s *Store) Record(ctx context.Context, deployment string, e pipeline.Entry) error {
	facts, err := json.Marshal(e.Facts)
	if err != nil {
		return fmt.Errorf("record journal entry: %w", err)
	}
	err = s.update(ctx, func(tx *sql.Tx) error {
		if err := s.logs.store(tx, deployment); err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO journal (deployment, step, phase, error, ending, facts, at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			deployment, e.Step, string(e.Phase), e.Error, string(e.End), string(facts), stamp(e.At)); err != nil {
			return err
		}
		return show(tx, deployment, e)
	})
	if err != nil {
		return fmt.Errorf("record journal entry: %w", err)
	}
	s.watch.tell(deployment)
	return nil
}

// beginning is the journal's first entry, which is about no step.
const beginning = "begin"

// show copies what an entry tells into the deployment's row and its events.
func show(tx *sql.Tx, deployment string, e pipeline.Entry) error {
	release := 0
	if e.Facts.Release != nil {
		release = e.Facts.Release.Number
	}
	if _, err := tx.Exec(`UPDATE deployments SET hash = COALESCE(NULLIF(?, ''), hash), release = ? WHERE id = ?`,
		e.Facts.Commit.Hash, release, deployment); err != nil {
		return err
	}
	if e.Step == beginning {
		return nil
	}
	if _, err := tx.Exec("UPDATE deployments SET step = ? WHERE id = ?", e.Step, deployment); err != nil {
		return err
	}
	return addEvent(tx, deployment, KindStep, StepChange{Step: e.Step, Phase: e.Phase, Error: e.Error}, e.At)
}

// Entries returns the journal of a deployment, oldest entry first.
func (s *Store) Entries(ctx context.Context, deployment string) (entries []pipeline.Entry, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT step, phase, error, ending, facts, at FROM journal WHERE deployment = ? ORDER BY seq`, deployment)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var e pipeline.Entry
		var phase, end, facts string
		var at int64
		if err := rows.Scan(&e.Step, &phase, &e.Error, &end, &facts, &at); err != nil {
			return nil, fmt.Errorf("read journal: %w", err)
		}
		e.Phase, e.End, e.At = pipeline.Phase(phase), pipeline.State(end), unstamp(at)
		if facts != "" {
			if err := json.Unmarshal([]byte(facts), &e.Facts); err != nil {
				return nil, fmt.Errorf("read journal facts: %w", err)
			}
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}

// Step is how far one step of a deployment has come.
type Step struct {
	Name    string         `json:"name"`
	Phase   pipeline.Phase `json:"phase"`
	Error   string         `json:"error,omitempty"`
	Started time.Time      `json:"started"`
	Ended   time.Time      `json:"ended,omitzero"` // zero while it is under way
}

// Steps returns the steps that a deployment has begun, in their order.
func (s *Store) Steps(ctx context.Context, deployment string) (steps []Step, err error) {
	rows, err := s.read.QueryContext(ctx, `SELECT step, phase, error, at FROM journal WHERE deployment = ? AND step <> ? ORDER BY seq`,
		deployment, beginning)
	if err != nil {
		return nil, fmt.Errorf("read steps: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	at := map[string]int{}
	for rows.Next() {
		var name, phase, failure string
		var when int64
		if err := rows.Scan(&name, &phase, &failure, &when); err != nil {
			return nil, fmt.Errorf("read steps: %w", err)
		}
		i, ok := at[name]
		if !ok {
			i = len(steps)
			at[name] = i
			steps = append(steps, Step{Name: name, Started: unstamp(when)})
		}
		step := &steps[i]
		step.Phase, step.Ended = pipeline.Phase(phase), time.Time{}
		if failure != "" {
			step.Error = failure
		}
		if step.Phase != pipeline.Started && step.Phase != pipeline.Undoing {
			step.Ended = unstamp(when)
		}
	}
	return steps, rows.Err()
}
