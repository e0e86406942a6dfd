package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"naru/pipeline"
)

// Release is a release with its standing.
type Release struct {
	pipeline.Release
	Live bool `json:"live"`
	Kept bool `json:"kept"` // can be rolled back to: it was live and its image is not pruned
}

// Create gives r the next number of its app and stores it. A second call for the
// same deployment returns the record of the first.
func (s *Store) Create(ctx context.Context, r pipeline.Release) (pipeline.Release, error) {
	config, err := json.Marshal(r.Config)
	if err != nil {
		return r, fmt.Errorf("create release: %w", err)
	}
	err = s.update(ctx, func(tx *sql.Tx) error {
		before, err := releases(tx, "WHERE deployment = ?", r.Deployment)
		if err != nil {
			return err
		}
		if len(before) > 0 {
			r = before[0].Release
			return nil
		}
		// Rows are never deleted, so a number is never given twice.
		if err := tx.QueryRow("SELECT COALESCE(MAX(number), 0) + 1 FROM releases WHERE app = ?", r.App).Scan(&r.Number); err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO releases (app, number, deployment, hash, subject, image, config, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
			r.App, r.Number, r.Deployment, r.Commit, r.Subject, r.Image, string(config), stamp(r.Created))
		return err
	})
	if err != nil {
		return r, fmt.Errorf("create release: %w", err)
	}
	return r, nil
}

// SetLive makes a release the live one of its app. Of the others that were live
// before, the newest keep stay available for a rollback; what has once been
// given up never comes back.
func (s *Store) SetLive(ctx context.Context, app string, number, keep int) error {
	err := s.update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.Exec("UPDATE releases SET live = 0 WHERE app = ? AND live = 1 AND number <> ?", app, number); err != nil {
			return err
		}
		r, err := tx.Exec("UPDATE releases SET live = 1, kept = 1 WHERE app = ? AND number = ?", app, number)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, fmt.Errorf("release %d of %s: %w", number, app, ErrNotFound))
		}
		_, err = tx.Exec(`UPDATE releases SET kept = 0 WHERE app = ?1 AND kept = 1 AND live = 0 AND number NOT IN
			(SELECT number FROM releases WHERE app = ?1 AND kept = 1 AND live = 0 ORDER BY number DESC LIMIT ?2)`, app, max(keep, 0))
		return err
	})
	if err != nil {
		return fmt.Errorf("set live release: %w", err)
	}
	return nil
}

// LiveRelease returns the live release of an app, or nil.
func (s *Store) LiveRelease(ctx context.Context, app string) (*pipeline.Release, error) {
	found, err := s.releases(ctx, "WHERE app = ? AND live = 1", app)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0].Release, nil
}

// LiveReleases returns the live releases of all apps.
func (s *Store) LiveReleases(ctx context.Context) ([]Release, error) {
	return s.releases(ctx, "WHERE live = 1 ORDER BY app")
}

// Releases returns all releases of an app, newest first.
func (s *Store) Releases(ctx context.Context, app string) ([]Release, error) {
	return s.releases(ctx, "WHERE app = ? ORDER BY number DESC", app)
}

// Release returns one release of an app, or ErrNotFound.
func (s *Store) Release(ctx context.Context, app string, number int) (Release, error) {
	found, err := s.releases(ctx, "WHERE app = ? AND number = ?", app, number)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("release %d of %s: %w", number, app, ErrNotFound)
	}
	if err != nil {
		return Release{}, err
	}
	return found[0], nil
}

// Previous returns the newest kept release before the live one, or ErrNotFound.
func (s *Store) Previous(ctx context.Context, app string) (Release, error) {
	found, err := s.releases(ctx, `WHERE app = ?1 AND kept = 1 AND live = 0 AND number <
		(SELECT number FROM releases WHERE app = ?1 AND live = 1) ORDER BY number DESC LIMIT 1`, app)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("a kept release of %s before the live one: %w", app, ErrNotFound)
	}
	if err != nil {
		return Release{}, err
	}
	return found[0], nil
}

// NeededImages returns the digests that must not be pruned: those of live and
// kept releases and of releases whose deployment is not finished.
func (s *Store) NeededImages(ctx context.Context) ([]string, error) {
	found, err := s.releases(ctx, `WHERE kept = 1 OR live = 1 OR deployment IN
		(SELECT id FROM deployments WHERE state IN ('queued', 'running'))`)
	if err != nil {
		return nil, err
	}
	var images []string
	for _, r := range found {
		images = append(images, r.Image)
	}
	return images, nil
}

func (s *Store) releases(ctx context.Context, where string, args ...any) ([]Release, error) {
	found, err := releases(ctxQuery{ctx, s.read}, where, args...)
	if err != nil {
		return nil, fmt.Errorf("read releases: %w", err)
	}
	return found, nil
}

func releases(q queryer, where string, args ...any) (found []Release, err error) {
	rows, err := q.Query(`SELECT app, number, deployment, hash, subject, image, config, created, live, kept FROM releases `+where, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var r Release
		var config string
		var created int64
		if err := rows.Scan(&r.App, &r.Number, &r.Deployment, &r.Commit, &r.Subject, &r.Image, &config, &created, &r.Live, &r.Kept); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(config), &r.Config); err != nil {
			return nil, fmt.Errorf("config of release %d: %w", r.Number, err)
		}
		r.Created = unstamp(created)
		found = append(found, r)
	}
	return found, rows.Err()
}
