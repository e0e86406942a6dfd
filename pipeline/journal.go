package pipeline

import (
	"context"
	"time"
)

// Phase is how far a step has come.
type Phase string

// The phases of a step. Started is on disk before the step touches anything,
// so whatever exists of a step is named by the journal.
const (
	Started Phase = "started"
	Done    Phase = "done"
	Failing Phase = "failed" // Do returned an error; undoing begins
	Undoing Phase = "undoing"
	Undone  Phase = "undone"
)

// Entry is one line of the journal of a deployment.
type Entry struct {
	Step  string    `json:"step"`
	Phase Phase     `json:"phase"`
	Error string    `json:"error,omitempty"`
	End   State     `json:"end,omitempty"` // with Failing: the final state if nothing has to be undone
	Facts Facts     `json:"facts"`         // everything the deployment knows after this line
	At    time.Time `json:"at"`
}

// Facts is what a deployment has found out and done so far. It is written with
// every entry, so the last entry alone is enough to go on from.
type Facts struct {
	App     App       `json:"app"`               // the config this deployment started with
	Live    *Release  `json:"live,omitempty"`    // the release that was live at the start
	Old     []Replica `json:"old,omitempty"`     // replicas that ran at the start, sorted by name
	Commit  Commit    `json:"commit,omitzero"`   // set by fetch
	Image   string    `json:"image,omitempty"`   // set by build
	Release *Release  `json:"release,omitempty"` // set by release; from the start in a rollback
	New     []Replica `json:"new,omitempty"`     // replicas that this deployment started
}

// Journal remembers the steps of deployments, so that an agent that was killed
// can go on. Implemented by agent/store.
type Journal interface {
	// Record appends an entry and returns when it is durable.
	Record(ctx context.Context, deployment string, e Entry) error
	// Entries returns what was recorded, oldest first.
	Entries(ctx context.Context, deployment string) ([]Entry, error)
}

// Releases is the book of releases of all apps. Implemented by agent/store.
type Releases interface {
	// Create gives r the app's next number and keeps it. A second call for the
	// same deployment returns the first one's record.
	Create(ctx context.Context, r Release) (Release, error)
	// SetLive makes a release the one that is live; the others are kept for a
	// rollback, as many as keep says.
	SetLive(ctx context.Context, app string, number, keep int) error
}
