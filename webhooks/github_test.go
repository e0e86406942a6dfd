package webhooks

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	testSecret = "It's a Secret to Everybody"
	shaA       = "6113728f27ae82c7b1a177c8d03f9e96e0adf246"
	shaB       = "0000000000000000000000000000000000000001"
	shaZero    = "0000000000000000000000000000000000000000"
	pushBody   = `{"ref":"refs/heads/main","before":"` + shaB + `","after":"` + shaA + `","created":false,"deleted":false,
"forced":false,"commits":[],"repository":{"full_name":"acme/web","private":true},"pusher":{"name":"mona"},"sender":{"login":"octocat"}}`
)

func sign(body, secret string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// request makes a correctly signed request; edits change it afterwards.
func request(event, body string, edits ...func(*Request)) Request {
	r := Request{Header: http.Header{}, Body: []byte(body)}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-GitHub-Event", event)
	r.Header.Set("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
	r.Header.Set("X-Hub-Signature-256", sign(body, testSecret))
	for _, edit := range edits {
		edit(&r)
	}
	return r
}

func header(name, value string) func(*Request) {
	return func(r *Request) {
		if value == "" {
			r.Header.Del(name)
			return
		}
		r.Header.Set(name, value)
	}
}

func edited(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(pushBody) }

// TestSignatureVector is the example of GitHub's documentation, so that sign
// above and the code under test cannot be wrong together.
func TestSignatureVector(t *testing.T) {
	const want = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	if got := sign("Hello, World!", testSecret); got != want {
		t.Fatalf("got %s", got)
	}
	if err := verifySHA256(want, []byte("Hello, World!"), testSecret); err != nil {
		t.Error(err)
	}
}

func TestGitHubEvents(t *testing.T) {
	const id = "72d3162e-cc78-11e3-81ab-4c9367dc0958"
	push := Event{Kind: Push, Delivery: id, Ref: "refs/heads/main", Commit: shaA, Before: shaB, Repo: "acme/web", Pusher: "octocat"}
	with := func(edit func(*Event)) Event { e := push; edit(&e); return e }
	form := "payload=" + url.QueryEscape(pushBody)
	for _, c := range []struct {
		name string
		in   Request
		want Event
	}{
		{"a push", request("push", pushBody), push},
		{"a push as a form, signed over the form bytes", request("push", form, header("Content-Type", "application/x-www-form-urlencoded")), push},
		{"a content type with a charset", request("push", pushBody, header("Content-Type", "application/json; charset=utf-8")), push},
		{"a new branch has no before", request("push", edited(shaB, shaZero)), with(func(e *Event) { e.Before = "" })},
		{"a deleted branch deploys nothing", request("push", edited(shaA, shaZero, `"deleted":false`, `"deleted":true`)),
			with(func(e *Event) { e.Commit, e.Deleted, e.Ignored = "", true, "the ref was deleted" })},
		{"zeros delete even when the flag lies", request("push", edited(shaA, shaZero)),
			with(func(e *Event) { e.Commit, e.Deleted, e.Ignored = "", true, "the ref was deleted" })},
		{"a tag is a push of its ref", request("push", edited("refs/heads/main", "refs/tags/v1")), with(func(e *Event) { e.Ref = "refs/tags/v1" })},
		{"without a sender the pusher counts", request("push", edited(`"octocat"`, `""`)), with(func(e *Event) { e.Pusher = "mona" })},
		{"a ping", request("ping", `{"zen":"Keep it logically awesome.","hook_id":1}`), Event{Kind: Ping, Delivery: id, Ignored: "ping"}},
		{"an event of no interest", request("star", `{}`), Event{Kind: Other, Delivery: id, Ignored: `event "star" is not one that deploys`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := GitHub(c.in, testSecret)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestGitHubRefuses(t *testing.T) {
	form := header("Content-Type", "application/x-www-form-urlencoded")
	for _, c := range []struct {
		name   string
		in     Request
		secret string
		want   error
	}{
		{"an empty secret", request("push", pushBody, header("X-Hub-Signature-256", sign(pushBody, ""))), "", ErrSignature},
		{"no signature", request("push", pushBody, header("X-Hub-Signature-256", "")), testSecret, ErrSignature},
		{"SHA-1 alone", request("push", pushBody, header("X-Hub-Signature-256", ""), header("X-Hub-Signature", "sha1=7d38cdd689735b008b3c702edd92eea23791c5f6")), testSecret, ErrSignature},
		{"SHA-1 in the new header", request("push", pushBody, header("X-Hub-Signature-256", "sha1=7d38cdd689735b008b3c702edd92eea23791c5f6")), testSecret, ErrSignature},
		{"an empty signature", request("push", pushBody, header("X-Hub-Signature-256", "sha256=")), testSecret, ErrSignature},
		{"a short signature", request("push", pushBody, header("X-Hub-Signature-256", "sha256=ab")), testSecret, ErrSignature},
		{"an odd signature", request("push", pushBody, header("X-Hub-Signature-256", sign(pushBody, testSecret)[:70])), testSecret, ErrSignature},
		{"a signature that is no hex", request("push", pushBody, header("X-Hub-Signature-256", "sha256="+strings.Repeat("z", 64))), testSecret, ErrSignature},
		{"another secret", request("push", pushBody), "other", ErrSignature},
		{"a changed body", request("push", pushBody, func(r *Request) { r.Body = append(r.Body, ' ') }), testSecret, ErrSignature},
		{"a bad body with a bad signature is not parsed", request("push", "{", header("X-Hub-Signature-256", sign("x", testSecret))), testSecret, ErrSignature},
		{"no JSON", request("push", "{"), testSecret, ErrMalformed},
		{"a list", request("push", "[]"), testSecret, ErrMalformed},
		{"wrong types", request("push", `{"ref":1}`), testSecret, ErrMalformed},
		{"an empty object", request("push", `{}`), testSecret, ErrMalformed},
		{"a short ref", request("push", edited("refs/heads/main", "main")), testSecret, ErrMalformed},
		{"a ref with a line break", request("push", edited("refs/heads/main", `refs/heads/a\nb`)), testSecret, ErrMalformed},
		{"a ref without end", request("push", edited("refs/heads/main", "refs/heads/"+strings.Repeat("a", 2000))), testSecret, ErrMalformed},
		{"an id that is none", request("push", edited(shaA, "HEAD")), testSecret, ErrMalformed},
		{"an id that is no hex", request("push", edited(shaA, strings.Repeat("g", 40))), testSecret, ErrMalformed},
		{"no repository", request("push", edited("full_name", "name")), testSecret, ErrMalformed},
		{"no event", request("", pushBody), testSecret, ErrMalformed},
		{"no delivery id", request("push", pushBody, header("X-GitHub-Delivery", "")), testSecret, ErrMalformed},
		{"no content type", request("push", pushBody, header("Content-Type", "")), testSecret, ErrMalformed},
		{"another content type", request("push", pushBody, header("Content-Type", "text/plain")), testSecret, ErrMalformed},
		{"a form without payload", request("push", "a=b", form), testSecret, ErrMalformed},
		{"a form with two payloads", request("push", "payload=%7B%7D&payload=%7B%7D", form), testSecret, ErrMalformed},
		{"a broken form", request("push", "payload=%zz", form), testSecret, ErrMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := GitHub(c.in, c.secret)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if got != (Event{}) {
				t.Errorf("an error came with %+v", got)
			}
		})
	}
}

func TestFor(t *testing.T) {
	verify, ok := For("github")
	if !ok {
		t.Fatal("github is unknown")
	}
	if _, err := verify(request("push", pushBody), testSecret); err != nil {
		t.Error(err)
	}
	for _, sender := range []string{"", "gitlab", "GitHub"} {
		if _, ok := For(sender); ok {
			t.Errorf("%q is known", sender)
		}
	}
}

// FuzzGitHub holds: no panic, an unsigned request is never parsed, and what is
// accepted as a push is complete.
func FuzzGitHub(f *testing.F) {
	f.Add("push", "application/json", pushBody, "sha256=", true)
	f.Add("push", "application/x-www-form-urlencoded", "payload="+url.QueryEscape(pushBody), "", true)
	f.Add("ping", "application/json", "{}", "sha1=00", false)
	f.Fuzz(func(t *testing.T, event, contentType, body, signature string, signed bool) {
		if signed {
			signature = sign(body, testSecret)
		}
		r := request(event, body, header("Content-Type", contentType), header("X-Hub-Signature-256", signature))
		e, err := GitHub(r, testSecret)
		if !signed && signature != sign(body, testSecret) && !errors.Is(err, ErrSignature) {
			t.Fatalf("unsigned: %+v, %v", e, err)
		}
		if err != nil {
			if e != (Event{}) || !errors.Is(err, ErrSignature) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("%+v, %v", e, err)
			}
			return
		}
		if e.Kind == Push && (e.Ref == "" || e.Repo == "" || e.Deleted != (e.Commit == "") || e.Deleted != (e.Ignored != "")) {
			t.Fatalf("%+v", e)
		}
	})
}
