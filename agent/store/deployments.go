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

// Delivery is one received request that asked for a deployment: a webhook, or a
// call of the API with an Idempotency-Key. Sender, App and ID together name it.
type Delivery struct {
	Sender     string
	App        string
	ID         string
	Hash       string // SHA-256 of the body, hex
	Event      string // what was understood of it, JSON
	Ignored    string // why nothing is deployed; empty for one that deploys
	Deployment string // id; empty for an ignored one
	Received   time.Time
}

// Accepted is what became of a request to deploy.
type Accepted struct {
	Deployment pipeline.Deployment
	Repeated   bool   // the delivery was known: Deployment is the one of then
	Hash       string // of the body that came first
}

// Enqueue stores a deployment, and the delivery that asked for it if any, in
// one transaction, and returns when they are durable. What waited for the same
// app becomes superseded. A delivery that already has a deployment changes
// nothing: the stored deployment comes back as Repeated.
func (s *Store) Enqueue(ctx context.Context, d pipeline.Deployment, from *Delivery) (Accepted, error) {
	got := Accepted{Deployment: d}
	var superseded []string
	err := s.update(ctx, func(tx *sql.Tx) (err error) {
		if from != nil {
			if got, err = known(tx, *from); err != nil || got.Repeated {
				return err
			}
			got = Accepted{Deployment: d, Hash: from.Hash}
		}
		if superseded, err = s.supersede(tx, d); err != nil {
			return err
		}
		if err := insert(tx, d); err != nil {
			return err
		}
		if err := addState(tx, d.ID, d.State, "", s.now()); err != nil {
			return err
		}
		if from == nil {
			return nil
		}
		from.Deployment = d.ID
		return deliver(tx, *from)
	})
	if err != nil {
		return Accepted{}, fmt.Errorf("store deployment: %w", err)
	}
	for _, id := range append(superseded, d.ID) {
		s.watch.tell(id)
	}
	return got, nil
}

// Ignore stores a delivery that starts nothing. If it once did start a
// deployment, that is returned as Repeated.
func (s *Store) Ignore(ctx context.Context, from Delivery) (got Accepted, err error) {
	err = s.update(ctx, func(tx *sql.Tx) (err error) {
		if got, err = known(tx, from); err != nil || got.Repeated {
			return err
		}
		return deliver(tx, from)
	})
	if err != nil {
		return Accepted{}, fmt.Errorf("store delivery: %w", err)
	}
	return got, nil
}

// Known returns what became of a delivery; Repeated is false if there was none
// that deployed.
func (s *Store) Known(ctx context.Context, from Delivery) (Accepted, error) {
	return known(ctxQuery{ctx, s.read}, from)
}

// queryer is what sql.Tx and ctxQuery have in common.
type queryer interface {
	QueryRow(query string, args ...any) *sql.Row
	Query(query string, args ...any) (*sql.Rows, error)
}

// ctxQuery is a database for one call.
type ctxQuery struct {
	ctx context.Context
	db  *sql.DB
}

func (q ctxQuery) QueryRow(query string, args ...any) *sql.Row {
	return q.db.QueryRowContext(q.ctx, query, args...)
}

func (q ctxQuery) Query(query string, args ...any) (*sql.Rows, error) {
	return q.db.QueryContext(q.ctx, query, args...)
}

func known(q queryer, from Delivery) (Accepted, error) {
	var id, hash string
	err := q.QueryRow("SELECT deployment, hash FROM deliveries WHERE sender = ? AND app = ? AND id = ? AND deployment IS NOT NULL",
		from.Sender, from.App, from.ID).Scan(&id, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return Accepted{}, nil
	}
	if err != nil {
		return Accepted{}, err
	}
	d, err := one(q, "WHERE id = ?", id)
	return Accepted{Deployment: d, Repeated: true, Hash: hash}, err
}

// deliver stores a delivery. One that was ignored is replaced: a person who
// sends it again after changing the config wants it judged again.
func deliver(tx *sql.Tx, d Delivery) error {
	_, err := tx.Exec(`INSERT OR REPLACE INTO deliveries (sender, app, id, hash, event, ignored, deployment, received)
		VALUES (?, ?, ?, ?, ?, ?, NULLIF(?, ''), ?)`,
		d.Sender, d.App, d.ID, d.Hash, d.Event, d.Ignored, d.Deployment, stamp(d.Received))
	return err
}

// supersede ends what waits for the app of d.
func (s *Store) supersede(tx *sql.Tx, d pipeline.Deployment) ([]string, error) {
	waiting, err := list(tx, "WHERE app = ? AND state = 'queued' ORDER BY seq", d.App)
	if err != nil {
		return nil, err
	}
	var ids []string
	serves, err := serving(tx, d.App)
	if err != nil {
		return nil, err
	}
	for _, w := range waiting {
		w.Serves = serves
		w.State, w.Error, w.Finished = pipeline.Superseded, "superseded by "+d.ID, s.now()
		if err := finish(tx, w); err != nil {
			return nil, err
		}
		ids = append(ids, w.ID)
	}
	return ids, nil
}

// serving is the number of the app's live release, 0 if there is none: what a
// deployment that never began leaves serving.
func serving(tx *sql.Tx, app string) (number int, err error) {
	err = tx.QueryRow("SELECT COALESCE(MAX(number), 0) FROM releases WHERE app = ? AND live = 1", app).Scan(&number)
	return number, err
}

func insert(tx *sql.Tx, d pipeline.Deployment) error {
	trigger, err := json.Marshal(d.Trigger)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO deployments (id, app, reason, state, hash, created) VALUES (?, ?, ?, ?, ?, ?)`,
		d.ID, d.App, string(trigger), string(d.State), d.Commit, stamp(d.Created))
	return err
}

// Begin takes the deployment of the app that waits, and makes it running. False
// means that none waits.
func (s *Store) Begin(ctx context.Context, app string) (d pipeline.Deployment, ok bool, err error) {
	err = s.update(ctx, func(tx *sql.Tx) (err error) {
		d, err = one(tx, "WHERE app = ? AND state = 'queued' ORDER BY seq LIMIT 1", app)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		ok = true
		d.State, d.Started = pipeline.Running, unstamp(stamp(s.now()))
		if _, err := tx.Exec("UPDATE deployments SET state = ?, started = ? WHERE id = ?", string(d.State), stamp(d.Started), d.ID); err != nil {
			return err
		}
		return addState(tx, d.ID, d.State, "", d.Started)
	})
	if err != nil {
		return d, false, fmt.Errorf("begin deployment: %w", err)
	}
	if ok {
		s.watch.tell(d.ID)
	}
	return d, ok, nil
}

// Finish writes the final state of d: State, Commit, Release, Serves, Error. One
// that is final already stays as it is.
func (s *Store) Finish(ctx context.Context, d pipeline.Deployment) error {
	if !d.State.Final() {
		return fmt.Errorf("finish deployment: %q is not a final state", d.State)
	}
	d.Finished = s.now()
	err := s.update(ctx, func(tx *sql.Tx) error {
		if err := s.logs.store(tx, d.ID); err != nil {
			return err
		}
		return finish(tx, d)
	})
	if err != nil {
		return fmt.Errorf("finish deployment: %w", err)
	}
	s.logs.forget(d.ID)
	s.watch.tell(d.ID)
	return nil
}

func finish(tx *sql.Tx, d pipeline.Deployment) error {
	r, err := tx.Exec(`UPDATE deployments SET state = ?, hash = ?, release = ?, serves = ?, error = ?, finished = ?
		WHERE id = ? AND state IN ('queued', 'running')`,
		string(d.State), d.Commit, d.Release, d.Serves, d.Error, stamp(d.Finished), d.ID)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		return err
	}
	// Nobody resumes it any more: its facts, the bulk of the journal, can go.
	if _, err := tx.Exec("UPDATE journal SET facts = '' WHERE deployment = ?", d.ID); err != nil {
		return err
	}
	return addState(tx, d.ID, d.State, d.Error, d.Finished)
}

// CancelWaiting makes a deployment that waits cancelled. False means that it
// does not wait (any more).
func (s *Store) CancelWaiting(ctx context.Context, id, why string) (did bool, err error) {
	err = s.update(ctx, func(tx *sql.Tx) error {
		d, err := one(tx, "WHERE id = ?", id)
		if err != nil || d.State != pipeline.Queued {
			return err
		}
		if d.Serves, err = serving(tx, d.App); err != nil {
			return err
		}
		did = true
		d.State, d.Error, d.Finished = pipeline.Cancelled, why, s.now()
		return finish(tx, d)
	})
	if err != nil {
		return false, fmt.Errorf("cancel deployment: %w", err)
	}
	s.watch.tell(id)
	return did, nil
}

// Deployment returns one deployment, or ErrNotFound.
func (s *Store) Deployment(ctx context.Context, id string) (pipeline.Deployment, error) {
	d, err := one(ctxQuery{ctx, s.read}, "WHERE id = ?", id)
	if err != nil {
		return d, fmt.Errorf("read deployment %s: %w", id, err)
	}
	return d, nil
}

// Deployments lists deployments, newest first: of an app ("": all), and older
// than the one with id before ("": from the newest), at most limit.
func (s *Store) Deployments(ctx context.Context, app, before string, limit int) ([]pipeline.Deployment, error) {
	found, err := list(ctxQuery{ctx, s.read}, `WHERE (? = '' OR app = ?)
		AND (? = '' OR seq < (SELECT seq FROM deployments WHERE id = ?)) ORDER BY seq DESC LIMIT ?`,
		app, app, before, before, limit)
	if err != nil {
		return nil, fmt.Errorf("list deployments: %w", err)
	}
	return found, nil
}

// Unfinished lists what an agent that starts has to go on with: the running and
// the waiting deployments, oldest first.
func (s *Store) Unfinished(ctx context.Context) ([]pipeline.Deployment, error) {
	found, err := list(ctxQuery{ctx, s.read}, "WHERE state IN ('queued', 'running') ORDER BY seq")
	if err != nil {
		return nil, fmt.Errorf("list unfinished deployments: %w", err)
	}
	return found, nil
}

// Counts returns how many deployments are in each state.
func (s *Store) Counts(ctx context.Context) (counts map[pipeline.State]int, err error) {
	rows, err := s.read.QueryContext(ctx, "SELECT state, count(*) FROM deployments GROUP BY state")
	if err != nil {
		return nil, fmt.Errorf("count deployments: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	counts = map[pipeline.State]int{}
	for rows.Next() {
		var state string
		var n int
		if err := rows.Scan(&state, &n); err != nil {
			return nil, err
		}
		counts[pipeline.State(state)] = n
	}
	return counts, rows.Err()
}

func one(q queryer, where string, args ...any) (pipeline.Deployment, error) {
	found, err := list(q, where, args...)
	if err != nil {
		return pipeline.Deployment{}, err
	}
	if len(found) == 0 {
		return pipeline.Deployment{}, ErrNotFound
	}
	return found[0], nil
}

func list(q queryer, where string, args ...any) (found []pipeline.Deployment, err error) {
	rows, err := q.Query(`SELECT id, app, reason, state, hash, release, step, error, serves, created, started, finished
		FROM deployments `+where, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var d pipeline.Deployment
		var trigger, state string
		var created, started, finished int64
		if err := rows.Scan(&d.ID, &d.App, &trigger, &state, &d.Commit, &d.Release, &d.Step, &d.Error, &d.Serves,
			&created, &started, &finished); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(trigger), &d.Trigger); err != nil {
			return nil, fmt.Errorf("trigger of deployment %s: %w", d.ID, err)
		}
		d.State = pipeline.State(state)
		d.Created, d.Started, d.Finished = unstamp(created), unstamp(started), unstamp(finished)
		found = append(found, d)
	}
	return found, rows.Err()
}
