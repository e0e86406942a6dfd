package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// LastScheduled returns the last time at which a schedule of an app was due and
// was dealt with; zero if never.
func (s *Store) LastScheduled(ctx context.Context, app, schedule string) (time.Time, error) {
	var at int64
	err := s.read.QueryRowContext(ctx, "SELECT last_scheduled FROM schedule_runs WHERE app = ? AND schedule = ?", app, schedule).Scan(&at)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, fmt.Errorf("read schedule: %w", err)
	}
	return unstamp(at), nil
}

// SetScheduled notes that a schedule was dealt with up to at.
func (s *Store) SetScheduled(ctx context.Context, app, schedule string, at time.Time) error {
	err := s.update(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT OR REPLACE INTO schedule_runs (app, schedule, last_scheduled) VALUES (?, ?, ?)", app, schedule, stamp(at))
		return err
	})
	if err != nil {
		return fmt.Errorf("write schedule: %w", err)
	}
	return nil
}

// Forget deletes deliveries received, and journals and events of deployments
// finished, before the given time. Deployments and releases stay.
func (s *Store) Forget(ctx context.Context, before time.Time) error {
	const old = "(SELECT id FROM deployments WHERE finished > 0 AND finished < ?)"
	err := s.update(ctx, func(tx *sql.Tx) error {
		for _, statement := range []string{
			"DELETE FROM deliveries WHERE received < ?",
			"DELETE FROM journal WHERE deployment IN " + old,
			"DELETE FROM events WHERE deployment IN " + old,
		} {
			if _, err := tx.Exec(statement, stamp(before)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget old records: %w", err)
	}
	return nil
}
