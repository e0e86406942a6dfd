// Package webhooks turns the HTTP request of a sender into an Event that can
// be trusted to come from whoever holds the secret.
//
// There is one pure function per sender. Which one is used is fixed by the
// app's configuration and never guessed from headers, since some senders
// imitate the headers of others. The life of one request: the API reads the
// body with a size limit, looks the function up with For, and calls it with the
// raw bytes and the secret; the signature is checked before anything is parsed;
// the payload becomes an Event. Ref and Commit of an Event are hints: what is
// deployed is decided by the fetch of the repository.
//
// The package does no I/O, keeps nothing, and remembers no deliveries: repeats
// are recognised by the caller by Event.Delivery.
package webhooks

import (
	"errors"
	"net/http"
)

// Kind says what an Event asks for.
type Kind string

// The kinds of events.
const (
	Push  Kind = "push"  // a ref was created, moved or deleted
	Ping  Kind = "ping"  // the sender tests the hook: answer 200, do nothing
	Other Kind = "other" // verified and of no interest: answer 2xx, do nothing
)

var (
	// ErrSignature says that the request is not proven to come from the sender
	// (HTTP 401). Nothing in it has been parsed.
	ErrSignature = errors.New("signature refused")
	// ErrMalformed says that the request is genuine but cannot be understood
	// (HTTP 400).
	ErrMalformed = errors.New("malformed webhook")
)

// Request is what a verification needs of an HTTP request.
type Request struct {
	Header http.Header
	Body   []byte // exactly as received: the signature covers these bytes
}

// Event is a verified and normalised webhook.
type Event struct {
	Kind     Kind   `json:"kind"`
	Delivery string `json:"delivery"`          // the sender's id of the delivery; the same when the sender repeats it
	Ref      string `json:"ref,omitempty"`     // full name, "refs/heads/main"
	Commit   string `json:"commit,omitempty"`  // hex id the ref points to now; empty when it was deleted
	Before   string `json:"before,omitempty"`  // hex id it pointed to; empty when it was created
	Deleted  bool   `json:"deleted,omitempty"` // the ref is gone: nothing to deploy
	Repo     string `json:"repo,omitempty"`    // full name at the sender, "acme/web"
	Pusher   string `json:"pusher,omitempty"`  // login of who did it, for display only
	Ignored  string `json:"ignored,omitempty"` // why nothing is deployed; empty for a push that counts
}

// For returns the function of a sender. False means that naru knows no such
// sender yet: the API then answers 501.
func For(sender string) (func(Request, string) (Event, error), bool) {
	switch sender {
	case "github":
		return GitHub, true
	default:
		return nil, false
	}
}
