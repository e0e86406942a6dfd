package pipeline

import (
	"net/netip"
	"time"
)

// App is what a user deploys: a source, a build, one or more processes and a
// route. It is the checked and completed form of one file of apps.d; every
// deployment and release keeps the App it ran with, so the type is stable JSON.
type App struct {
	Name      string            `json:"name"`
	Target    string            `json:"target"`            // "local", …
	Runtime   string            `json:"runtime,omitempty"` // OCI runtime of the replicas, a name or an absolute path; empty: the target's own
	Repo      Repo              `json:"repo"`
	Build     Build             `json:"build"`
	Processes []Process         `json:"processes"` // sorted by name
	Domains   []string          `json:"domains,omitempty"`
	Policy    Policy            `json:"policy"`
	Env       map[string]string `json:"env,omitempty"`
	Volumes   []Volume          `json:"volumes,omitempty"`
}

// Repo says where an app's source is and which of it matters.
type Repo struct {
	URL        string   `json:"url"`    // https://, ssh://, git@host:path or file://
	Branch     string   `json:"branch"` // short name, "main"
	Paths      []string `json:"paths,omitempty"`
	TokenFile  string   `json:"token_file,omitempty"`  // https: file that holds the token
	KeyFile    string   `json:"key_file,omitempty"`    // ssh: private key
	KnownHosts string   `json:"known_hosts,omitempty"` // ssh: known_hosts file
}

// Build says how a commit becomes an image.
type Build struct {
	Context    string            `json:"context"`    // relative to the tree's root
	Dockerfile string            `json:"dockerfile"` // relative to the context
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	Secrets    []string          `json:"secrets,omitempty"` // names: values are in no record
	Network    string            `json:"network,omitempty"` // of its steps: default or none
	// Limits; zero stands for the builder's own.
	Memory  int64         `json:"memory,omitempty"` // bytes of one step
	CPUs    float64       `json:"cpus,omitempty"`   // of one step
	Pids    int64         `json:"pids,omitempty"`   // of one step
	Disk    int64         `json:"disk,omitempty"`   // bytes of all steps
	Timeout time.Duration `json:"timeout,omitempty"`
}

// Process is one kind of program of an app. The process with a Port and the
// name "web" is the routed one.
type Process struct {
	Name      string        `json:"name"`
	Command   []string      `json:"command,omitempty"` // empty: the image's own
	Port      int           `json:"port,omitempty"`    // 0: not routed, not probed by HTTP
	Replicas  int           `json:"replicas"`
	Health    Health        `json:"health"`
	Memory    int64         `json:"memory,omitempty"` // bytes; 0: the target's default
	CPUs      float64       `json:"cpus,omitempty"`
	Pids      int64         `json:"pids,omitempty"`
	Signal    string        `json:"signal,omitempty"` // "TERM"
	StopGrace time.Duration `json:"stop_grace"`
}

// Health says when a replica is ready: Healthy answers in a row with a status
// below 400, each within Timeout, before Deadline.
type Health struct {
	Path     string        `json:"path"`
	Interval time.Duration `json:"interval"`
	Timeout  time.Duration `json:"timeout"`
	Healthy  int           `json:"healthy"`
	Deadline time.Duration `json:"deadline"`
}

// Policy is how a new release replaces the old one.
type Policy struct {
	Strategy       string        `json:"strategy"` // "rolling"
	Surge          int           `json:"surge"`
	Unavailable    int           `json:"unavailable"`
	Drain          time.Duration `json:"drain"`
	Bake           time.Duration `json:"bake"`
	ReleaseCommand []string      `json:"release_command,omitempty"`
	Keep           int           `json:"keep"` // releases that can be rolled back to
}

// Volume is storage that outlives replicas.
type Volume struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

// TriggerKind says which kind of event asked for a deployment.
type TriggerKind string

// The trigger kinds.
const (
	Webhook  TriggerKind = "webhook"
	Jenkins  TriggerKind = "jenkins"
	Schedule TriggerKind = "schedule"
	Poll     TriggerKind = "poll"
	Manual   TriggerKind = "manual"
	Rollback TriggerKind = "rollback"
	Registry TriggerKind = "registry"
)

// Trigger is why a deployment happens. Ref and Commit are hints: what is built
// is decided by the fetch.
type Trigger struct {
	Kind     TriggerKind `json:"kind"`
	By       string      `json:"by,omitempty"`       // person, token or sender
	Delivery string      `json:"delivery,omitempty"` // id of the stored delivery
	Ref      string      `json:"ref,omitempty"`
	Commit   string      `json:"commit,omitempty"`
	Release  int         `json:"release,omitempty"` // rollback: the release to return to
	Reason   string      `json:"reason,omitempty"`
	Force    bool        `json:"force,omitempty"` // deploy although the same commit is live
}

// State is where a deployment stands.
type State string

// The states. All but Queued and Running are final.
const (
	Queued     State = "queued"
	Running    State = "running"
	Live       State = "live"
	Failed     State = "failed"      // nothing changed, the old release serves
	RolledBack State = "rolled_back" // something had changed and was undone
	Broken     State = "broken"      // the undoing failed too: needs a person
	Cancelled  State = "cancelled"
	Superseded State = "superseded"
	Skipped    State = "skipped"
)

// Final reports whether a deployment in this state will never change again.
func (s State) Final() bool { return s != Queued && s != Running }

// Deployment is one attempt to make a release live.
type Deployment struct {
	ID       string    `json:"id"` // UUIDv7: sorts by time
	App      string    `json:"app"`
	Trigger  Trigger   `json:"trigger"`
	State    State     `json:"state"`
	Commit   string    `json:"commit,omitempty"`
	Release  int       `json:"release,omitempty"` // 0 until the release step
	Step     string    `json:"step,omitempty"`    // the step under way or the last one
	Error    string    `json:"error,omitempty"`
	Serves   int       `json:"serves,omitempty"` // the release that serves when it ended
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// Release is the immutable record of what a deployment made live: enough to
// run it again without a build.
type Release struct {
	App        string    `json:"app"`
	Number     int       `json:"number"`
	Deployment string    `json:"deployment"` // the one that made it
	Commit     string    `json:"commit"`
	Subject    string    `json:"subject,omitempty"` // first line of the commit message
	Image      string    `json:"image"`             // digest
	Config     App       `json:"config"`
	Created    time.Time `json:"created"`
}

// Replica is one running container of a process of a release.
type Replica struct {
	Name    string         `json:"name"` // unique on the target; the key of every operation
	App     string         `json:"app"`
	Process string         `json:"process"`
	Release int            `json:"release"`
	Running bool           `json:"running"`
	Address netip.AddrPort `json:"address,omitzero"` // zero for a process without a port
	// Warnings say where it is less confined, or can do less, than it was meant to.
	Warnings []string `json:"warnings,omitempty"`
}

// ReplicaSpec is what a target needs to run one replica.
type ReplicaSpec struct {
	Name    string
	App     string
	Release int
	Image   string
	Process Process
	Runtime string // as App's
	Env     map[string]string
	Volumes []Volume
}

// Route is what the router must serve for one app: requests for any of Domains
// go to Servers.
type Route struct {
	App     string
	Domains []string
	Servers []netip.AddrPort // empty: the app answers 503
	Drain   time.Duration    // longest time an old connection may live
}

// Commit is one commit of a repository.
type Commit struct {
	Hash    string    `json:"hash"`
	Subject string    `json:"subject"`
	Author  string    `json:"author"`
	Time    time.Time `json:"time"`
}
