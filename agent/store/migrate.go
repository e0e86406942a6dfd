package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"naru/internal/atomicfile"
)

// migrations are run in order, each in a transaction of its own. Entries are
// never edited once released, only added; PRAGMA user_version counts them.
var migrations = []string{`
CREATE TABLE deployments (
	seq      INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of the queue: clocks may go back
	id       TEXT NOT NULL UNIQUE,
	app      TEXT NOT NULL,
	reason   TEXT NOT NULL, -- the trigger, JSON
	state    TEXT NOT NULL,
	hash     TEXT NOT NULL DEFAULT '',
	release  INTEGER NOT NULL DEFAULT 0,
	step     TEXT NOT NULL DEFAULT '',
	error    TEXT NOT NULL DEFAULT '',
	serves   INTEGER NOT NULL DEFAULT 0,
	created  INTEGER NOT NULL,
	started  INTEGER NOT NULL DEFAULT 0,
	finished INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX deployments_app ON deployments (app, seq);
CREATE INDEX deployments_unfinished ON deployments (state, app) WHERE state IN ('queued', 'running');

CREATE TABLE deliveries (
	sender     TEXT NOT NULL,
	app        TEXT NOT NULL,
	id         TEXT NOT NULL,
	hash       TEXT NOT NULL,
	event      TEXT NOT NULL,
	ignored    TEXT NOT NULL DEFAULT '',
	deployment TEXT REFERENCES deployments (id),
	received   INTEGER NOT NULL,
	PRIMARY KEY (sender, app, id)
) WITHOUT ROWID;
CREATE INDEX deliveries_received ON deliveries (received);
CREATE INDEX deliveries_deployment ON deliveries (deployment);

CREATE TABLE journal (
	seq        INTEGER PRIMARY KEY AUTOINCREMENT,
	deployment TEXT NOT NULL REFERENCES deployments (id),
	step       TEXT NOT NULL,
	phase      TEXT NOT NULL,
	error      TEXT NOT NULL,
	ending     TEXT NOT NULL,
	facts      TEXT NOT NULL, -- JSON; emptied when the deployment is finished
	at         INTEGER NOT NULL
);
CREATE INDEX journal_deployment ON journal (deployment, seq);

CREATE TABLE events (
	deployment TEXT NOT NULL REFERENCES deployments (id),
	n          INTEGER NOT NULL,
	at         INTEGER NOT NULL,
	kind       TEXT NOT NULL,
	text       TEXT NOT NULL,
	PRIMARY KEY (deployment, n)
) WITHOUT ROWID;

CREATE TABLE releases (
	app        TEXT NOT NULL,
	number     INTEGER NOT NULL,
	deployment TEXT NOT NULL UNIQUE REFERENCES deployments (id),
	hash       TEXT NOT NULL,
	subject    TEXT NOT NULL,
	image      TEXT NOT NULL,
	config     TEXT NOT NULL, -- pipeline.App, JSON
	created    INTEGER NOT NULL,
	live       INTEGER NOT NULL DEFAULT 0,
	kept       INTEGER NOT NULL DEFAULT 0, -- was live, and can be rolled back to
	PRIMARY KEY (app, number)
) WITHOUT ROWID;
CREATE UNIQUE INDEX releases_live ON releases (app) WHERE live = 1;

CREATE TABLE tokens (
	id      TEXT PRIMARY KEY,
	name    TEXT NOT NULL,
	hash    BLOB NOT NULL, -- SHA-256 of the token
	created INTEGER NOT NULL,
	used    INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE schedule_runs (
	app            TEXT NOT NULL,
	schedule       TEXT NOT NULL,
	last_scheduled INTEGER NOT NULL,
	PRIMARY KEY (app, schedule)
) WITHOUT ROWID;
`}

// migrate brings the schema from whatever version it has to the newest.
func migrate(ctx context.Context, db *sql.DB, path string) error {
	var have int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if have > len(migrations) {
		return fmt.Errorf("the database has schema %d, this naru knows %d: it was written by a newer naru", have, len(migrations))
	}
	if have > 0 && have < len(migrations) {
		if err := backup(ctx, db, fmt.Sprintf("%s.schema%d.bak", path, have)); err != nil {
			return err
		}
	}
	for i := have; i < len(migrations); i++ {
		if err := apply(ctx, db, i); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", i+1, err)
		}
	}
	return nil
}

// apply runs one migration. The version is read again inside the transaction,
// since another process may have opened the file at the same time.
func apply(ctx context.Context, db *sql.DB, i int) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	var have int
	if err := tx.QueryRow("PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	if have > i {
		return tx.Commit()
	}
	if _, err := tx.Exec(migrations[i]); err != nil {
		return err
	}
	if _, err := tx.Exec(fmt.Sprintf("PRAGMA user_version = %d", i+1)); err != nil {
		return err
	}
	return tx.Commit()
}

// backup writes a whole copy of the database to path. VACUUM INTO needs a name
// that does not exist and does not sync, so the copy gets its name last.
func backup(ctx context.Context, db *sql.DB, path string) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("back up before migration: %w", err)
	}
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", tmp); err != nil {
		return fmt.Errorf("back up before migration: %w", err)
	}
	f, err := os.OpenFile(tmp, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("back up before migration: %w", err)
	}
	if err := errors.Join(f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("back up before migration: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("back up before migration: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}
