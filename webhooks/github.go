package webhooks

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"strings"
	"unicode"
)

// maxField bounds every text that is taken over from a payload, in bytes.
const maxField = 1024

// GitHub verifies and reads a webhook of github.com or GitHub Enterprise.
//
// The signature is X-Hub-Signature-256, an HMAC-SHA256 over the raw body. A
// request without it is refused even when it has the old SHA-1 one, and an
// empty secret refuses everything: there is no unsigned mode. Both content types
// that GitHub offers are read; in a form the JSON is the field "payload". Events
// other than push and ping come back as Other with Ignored set, and need a 2xx
// answer. Errors wrap ErrSignature or ErrMalformed. Source: GitHub docs,
// "Validating webhook deliveries" and "Webhook events and payloads".
func GitHub(r Request, secret string) (Event, error) {
	if err := verifySHA256(r.Header.Get("X-Hub-Signature-256"), r.Body, secret); err != nil {
		return Event{}, err
	}
	e := Event{Delivery: r.Header.Get("X-GitHub-Delivery")}
	if err := checkText("X-GitHub-Delivery", e.Delivery); err != nil {
		return Event{}, err
	}
	if e.Delivery == "" {
		return Event{}, fmt.Errorf("%w: header X-GitHub-Delivery is missing", ErrMalformed)
	}
	body, err := githubJSON(r)
	if err != nil {
		return Event{}, err
	}
	switch kind := r.Header.Get("X-GitHub-Event"); kind {
	case "push":
		return githubPush(e, body)
	case "ping":
		e.Kind, e.Ignored = Ping, "ping"
		return e, nil
	case "":
		return Event{}, fmt.Errorf("%w: header X-GitHub-Event is missing", ErrMalformed)
	default:
		e.Kind = Other
		e.Ignored = fmt.Sprintf("event %.40q is not one that deploys", kind)
		return e, nil
	}
}

// verifySHA256 compares in constant time. The header must be "sha256=" and 64
// hex digits: Gitea sends "sha256=" alone when it has no secret, and an index
// into a short value was a denial of service elsewhere (CVE-2025-59531).
func verifySHA256(header string, body []byte, secret string) error {
	if secret == "" {
		return fmt.Errorf("%w: no secret is configured", ErrSignature)
	}
	text, ok := strings.CutPrefix(header, "sha256=")
	if !ok {
		return fmt.Errorf("%w: header X-Hub-Signature-256 is missing or not sha256=…", ErrSignature)
	}
	got, err := hex.DecodeString(text)
	if err != nil || len(got) != sha256.Size {
		return fmt.Errorf("%w: X-Hub-Signature-256 is not a SHA-256 in hex", ErrSignature)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	if !hmac.Equal(got, mac.Sum(nil)) {
		return fmt.Errorf("%w: it does not match the body and the secret", ErrSignature)
	}
	return nil
}

// githubJSON returns the JSON document, out of the form when it is one.
func githubJSON(r Request) ([]byte, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return nil, fmt.Errorf("%w: content type: %w", ErrMalformed, err)
	}
	switch kind {
	case "application/json":
		return r.Body, nil
	case "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(string(r.Body))
		if err != nil {
			return nil, fmt.Errorf("%w: form: %w", ErrMalformed, err)
		}
		if len(form["payload"]) != 1 {
			return nil, fmt.Errorf("%w: the form must have one field payload", ErrMalformed)
		}
		return []byte(form.Get("payload")), nil
	default:
		return nil, fmt.Errorf("%w: content type %.80q is neither JSON nor a form", ErrMalformed, kind)
	}
}

// githubPayload is the part of a push payload that is used. The lists of commits
// and files are left out on purpose: they are cut short by the sender.
type githubPayload struct {
	Ref        string `json:"ref"`
	Before     string `json:"before"`
	After      string `json:"after"`
	Deleted    bool   `json:"deleted"`
	Repository struct {
		FullName string `json:"full_name"`
	} `json:"repository"`
	Pusher struct {
		Name string `json:"name"`
	} `json:"pusher"`
	Sender struct {
		Login string `json:"login"`
	} `json:"sender"`
}

func githubPush(e Event, body []byte) (Event, error) {
	var p githubPayload
	if err := json.Unmarshal(body, &p); err != nil {
		return Event{}, fmt.Errorf("%w: push payload: %s", ErrMalformed, inWords(err))
	}
	e.Kind = Push
	e.Ref, e.Repo, e.Deleted = p.Ref, p.Repository.FullName, p.Deleted
	e.Pusher = p.Sender.Login
	if e.Pusher == "" {
		e.Pusher = p.Pusher.Name
	}
	for name, text := range map[string]string{"ref": e.Ref, "repository.full_name": e.Repo, "sender.login": e.Pusher} {
		if err := checkText(name, text); err != nil {
			return Event{}, err
		}
	}
	if !strings.HasPrefix(e.Ref, "refs/") {
		return Event{}, fmt.Errorf("%w: ref %.80q is not a full ref name", ErrMalformed, e.Ref)
	}
	if e.Repo == "" {
		return Event{}, fmt.Errorf("%w: repository.full_name is missing", ErrMalformed)
	}
	var err error
	if e.Commit, err = objectID("after", p.After); err != nil {
		return Event{}, err
	}
	if p.Before != "" { // no more than told: a push made by hand may leave it out
		if e.Before, err = objectID("before", p.Before); err != nil {
			return Event{}, err
		}
	}
	// "after" of all zeros is what deletes; "deleted" only says so.
	e.Deleted = e.Deleted || e.Commit == ""
	if e.Deleted {
		e.Commit, e.Ignored = "", "the ref was deleted"
	}
	return e, nil
}

// inWords keeps the names of our types out of what the sender reads.
func inWords(err error) string {
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		where := kind.Field
		if where == "" {
			where = "the document"
		}
		return fmt.Sprintf("%s must not be a JSON %s", where, kind.Value)
	}
	return err.Error()
}

// objectID checks a git object id (SHA-1 or SHA-256) and returns it in lower
// case; the id of all zeros, which stands for "none", comes back empty.
func objectID(name, id string) (string, error) {
	if len(id) != 40 && len(id) != 64 {
		return "", fmt.Errorf("%w: %s is not a commit id", ErrMalformed, name)
	}
	if _, err := hex.DecodeString(id); err != nil {
		return "", fmt.Errorf("%w: %s is not a commit id", ErrMalformed, name)
	}
	if strings.Trim(id, "0") == "" {
		return "", nil
	}
	return strings.ToLower(id), nil
}

// checkText refuses what could forge lines in a log or fill it.
func checkText(name, text string) error {
	if len(text) > maxField {
		return fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrMalformed, name, len(text), maxField)
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		return fmt.Errorf("%w: %s has control characters", ErrMalformed, name)
	}
	return nil
}
