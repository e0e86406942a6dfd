package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"go.uber.org/zap"

	"naru/pipeline"
)

func TestRefusals(t *testing.T) {
	s := newSite(t, false)
	unsigned, to := push("d", nil), func(path string) request { r := push("d", nil); r.path = path; return r }
	unsigned.header["X-Hub-Signature-256"] = "sha256=" + strings.Repeat("0", 64)
	noSignature := push("d", nil)
	delete(noSignature.header, "X-Hub-Signature-256")
	large := push("d", nil)
	large.body = strings.Repeat("x", maxWebhook+1)
	deploy := func(body string) request {
		return request{method: "POST", path: "/api/v1/apps/web/deployments", body: body}
	}
	for _, c := range []struct {
		name   string
		r      request
		status int
		detail string
	}{
		{"no such page", request{method: "GET", path: "/nope"}, 404, "/nope"},
		{"no such page below the API", request{method: "GET", path: "/api/v1/nope", anonymous: true}, 404, "/api/v1/nope"},
		{"a path with a slash too many", request{method: "GET", path: "/api/v1/apps/"}, 404, ""},
		{"the wrong method", request{method: "DELETE", path: "/api/v1/apps/web"}, 405, "DELETE"},
		{"a webhook by GET", request{method: "GET", path: "/webhooks/github/web"}, 405, "POST"},
		{"no token", request{method: "GET", path: "/api/v1/apps", anonymous: true}, 401, "token"},
		{"a wrong token", request{method: "GET", path: "/api/v1/apps", anonymous: true, header: map[string]string{"Authorization": "Bearer naru_x_y"}}, 401, "not valid"},
		{"basic auth", request{method: "GET", path: "/api/v1/apps", anonymous: true, header: map[string]string{"Authorization": "Basic Zm9v"}}, 401, ""},
		{"an unknown app", request{method: "GET", path: "/api/v1/apps/nope"}, 404, `"nope"`},
		{"deploying an unknown app", request{method: "POST", path: "/api/v1/apps/nope/deployments"}, 404, ""},
		{"no JSON", deploy("{"), 400, ""},
		{"a misspelled key", deploy(`{"comit":"1234567"}`), 400, "comit"},
		{"the wrong type", deploy(`{"force":"yes"}`), 400, ""},
		{"two values", deploy(`{} {}`), 400, ""},
		{"an array", deploy(`[]`), 400, ""},
		{"a large body", deploy(`{"reason":"` + strings.Repeat("x", maxBody) + `"}`), 413, ""},
		{"a long reason", deploy(`{"reason":"` + strings.Repeat("x", maxReason+1) + `"}`), 400, "reason"},
		{"no commit hash", deploy(`{"commit":"main; rm -rf /"}`), 400, "hash"},
		{"another branch", deploy(`{"ref":"refs/heads/other"}`), 422, "main"},
		{"a long key", request{method: "POST", path: "/api/v1/apps/web/deployments", header: map[string]string{"Idempotency-Key": strings.Repeat("k", 256)}}, 400, "Idempotency-Key"},
		{"a rollback without releases", request{method: "POST", path: "/api/v1/apps/web/rollback"}, 409, "no kept release"},
		{"a rollback to nothing", request{method: "POST", path: "/api/v1/apps/web/rollback", body: `{"release":7}`}, 409, "no release 7"},
		{"a negative release", request{method: "POST", path: "/api/v1/apps/web/rollback", body: `{"release":-1}`}, 400, ""},
		{"an unknown deployment", request{method: "GET", path: "/api/v1/deployments/nope"}, 404, "nope"},
		{"the log of an unknown deployment", request{method: "GET", path: "/api/v1/deployments/nope/logs"}, 404, ""},
		{"events of an unknown deployment", request{method: "GET", path: "/api/v1/deployments/nope/events"}, 404, ""},
		{"a bad event number", request{method: "GET", path: "/api/v1/deployments/nope/events", header: map[string]string{"Last-Event-ID": "x"}}, 400, ""},
		{"cancelling an unknown deployment", request{method: "POST", path: "/api/v1/deployments/nope/cancel"}, 404, ""},
		{"a bad wait", request{method: "GET", path: "/api/v1/deployments/nope?wait=long"}, 400, "wait"},
		{"a bad limit", request{method: "GET", path: "/api/v1/apps/web/deployments?limit=0"}, 400, "limit"},
		{"a bad page", request{method: "GET", path: "/api/v1/apps/web/deployments?before=nope"}, 404, ""},
		{"a webhook for an unknown app", to("/webhooks/github/nope"), 404, `"nope"`},
		{"a webhook for an app without", to("/webhooks/github/closed"), 404, "takes no webhooks"},
		{"an unknown sender", to("/webhooks/nope/web"), 404, "sender"},
		{"a sender that is not supported", to("/webhooks/bitbucket/web"), 501, "not supported yet"},
		{"a wrong signature", unsigned, 401, "signature"},
		{"no signature", noSignature, 401, "signature"},
		{"a signed body that is no JSON", signed("d", "push", "{"), 400, "malformed"},
		{"a signed body of the wrong shape", signed("d", "push", `{"ref":7}`), 400, "malformed"},
		{"a body that is too large", large, 413, "26214400"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.r.from = "192.0.2." + fmt.Sprint(len(c.name)) + ":1" // so that no address is refused too often
			if p := problem(t, s.do(t, c.r), c.status); !strings.Contains(p.Detail, c.detail) {
				t.Errorf("detail %q does not say %q", p.Detail, c.detail)
			}
			s.none(t)
		})
	}
}

func TestBodyWithoutLengthIsLimited(t *testing.T) {
	s := newSite(t, false)
	req := httptest.NewRequestWithContext(t.Context(), "POST", "/webhooks/github/web", io.LimitReader(zeros{}, maxWebhook+10))
	req.ContentLength = -1
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, req)
	problem(t, w, http.StatusRequestEntityTooLarge)
	s.none(t)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestFailuresAreLimited(t *testing.T) {
	s := newSite(t, false)
	bad := request{method: "GET", path: "/api/v1/apps", anonymous: true, from: "192.0.2.1:1"}
	for range failureBurst {
		problem(t, s.do(t, bad), http.StatusUnauthorized)
	}
	w := s.do(t, bad)
	problem(t, w, http.StatusTooManyRequests)
	if w.Header().Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	hook := push("d", nil)
	hook.header["X-Hub-Signature-256"], hook.from = "sha256=00", bad.from
	problem(t, s.do(t, hook), http.StatusTooManyRequests)
	good := request{method: "GET", path: "/api/v1/apps", from: bad.from}
	if w := s.do(t, good); w.Code != 200 {
		t.Errorf("a good token from the same address: %d", w.Code)
	}
	bad.from = "192.0.2.2:1"
	problem(t, s.do(t, bad), http.StatusUnauthorized)
	// Behind a proxy of this machine the address is the client's.
	bad.from, bad.header = "127.0.0.1:1", map[string]string{"X-Forwarded-For": "192.0.2.1"}
	problem(t, s.do(t, bad), http.StatusTooManyRequests)
}

func TestLimiter(t *testing.T) {
	l, now := newLimiter(2, time.Second), time.Unix(1, 0)
	for i, want := range []time.Duration{0, 0, time.Second} {
		if got := l.failed("2001:db8::1", now); got != want {
			t.Errorf("failure %d: wait %s, want %s", i, got, want)
		}
	}
	if got := l.failed("2001:db8::2", now.Add(time.Second/2)); got != time.Second/2 {
		t.Errorf("an address of the same network: %s", got)
	}
	if got := l.failed("2001:db8::1", now.Add(time.Second)); got != 0 {
		t.Errorf("after the wait: %s", got)
	}
	for i := range maxAddresses + 10 {
		l.failed(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), now)
	}
	if len(l.free) > maxAddresses {
		t.Errorf("%d addresses are remembered", len(l.free))
	}
}

func TestWebhook(t *testing.T) {
	s := newSite(t, false)
	if a := decoded[Accepted](t, s.do(t, signed("p", "ping", "{}")), 200); a.Ignored != "ping" {
		t.Errorf("ping: %+v", a)
	}
	for i, c := range []struct {
		r      request
		reason string
	}{
		{signed("i1", "star", "{}"), "star"},
		{push("i2", map[string]any{"ref": "refs/heads/other"}), "refs/heads/other"},
		{push("i3", map[string]any{"ref": "refs/tags/main"}), "refs/tags/main"},
		{push("i4", map[string]any{"deleted": true, "after": strings.Repeat("0", 40)}), "deleted"},
	} {
		if a := decoded[Accepted](t, s.do(t, c.r), 202); !strings.Contains(a.Ignored, c.reason) || a.Deployment != "" {
			t.Errorf("%d: %+v", i, a)
		}
	}
	s.none(t)
	w := s.do(t, push("one", nil))
	a := decoded[Accepted](t, w, 202)
	if a.URL != "https://naru.test/api/v1/deployments/"+a.Deployment || w.Header().Get("Location") != a.URL || a.Repeated {
		t.Errorf("accepted: %+v, Location %q", a, w.Header().Get("Location"))
	}
	again := decoded[Accepted](t, s.do(t, push("one", nil)), 200)
	if again.Deployment != a.Deployment || !again.Repeated {
		t.Errorf("redelivery: %+v", again)
	}
	s.build <- nil
	s.ends(t, a.Deployment, pipeline.Live)
	again = decoded[Accepted](t, s.do(t, push("one", nil)), 200)
	if again.Deployment != a.Deployment {
		t.Errorf("redelivery after the end: %+v", again)
	}
	d := decoded[Deployment](t, s.do(t, request{method: "GET", path: "/api/v1/deployments/" + a.Deployment}), 200)
	if d.Trigger.By != "github: ada" || d.Trigger.Delivery != "one" || d.Commit != commit || len(d.Steps) < 4 || d.Steps[0].Name != "fetch" {
		t.Errorf("deployment: %+v", d)
	}
	form := signed("two", "push", "payload="+`%7B%7D`)
	form.header["Content-Type"] = "application/x-www-form-urlencoded"
	problem(t, s.do(t, form), 400)
}

func TestDeployAndRead(t *testing.T) {
	s := newSite(t, false)
	post := func(body, key string) *httptest.ResponseRecorder {
		return s.do(t, request{method: "POST", path: "/api/v1/apps/web/deployments", body: body, header: map[string]string{"Idempotency-Key": key}})
	}
	a := decoded[Accepted](t, post(`{"commit":"0123ABC","ref":"main","reason":"try"}`, "job-1"), 202)
	if again := decoded[Accepted](t, post(`{"commit":"0123ABC","ref":"main","reason":"try"}`, "job-1"), 202); again.Deployment != a.Deployment || !again.Repeated {
		t.Errorf("the same key: %+v, first %+v", again, a)
	}
	problem(t, post(`{"force":true}`, "job-1"), 422)
	other, _, err := s.store.CreateToken(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	s.build <- nil
	s.ends(t, a.Deployment, pipeline.Live)
	mine := s.token
	s.token = other
	b := decoded[Accepted](t, post(`{"force":true}`, "job-1"), 202)
	if b.Deployment == a.Deployment {
		t.Error("a key of another token was taken for the same")
	}
	s.token = mine
	s.build <- nil
	s.ends(t, b.Deployment, pipeline.Live)

	get := func(path string) *httptest.ResponseRecorder { return s.do(t, request{method: "GET", path: path}) }
	apps := decoded[struct{ Apps []App }](t, get("/api/v1/apps"), 200).Apps
	if len(apps) != 2 || apps[0].Name != "closed" || apps[0].Live != nil {
		t.Errorf("apps: %+v", apps)
	}
	app := decoded[App](t, get("/api/v1/apps/web"), 200)
	if app.Live.Number != 2 || app.Deployment.ID != b.Deployment || app.Repo != "https://user@git.test/web.git" || len(app.NextRuns) != 1 {
		t.Errorf("app: %+v", app)
	}
	releases := decoded[struct{ Releases []Release }](t, get("/api/v1/apps/web/releases"), 200).Releases
	if len(releases) != 2 || !releases[0].Live || releases[1].Live || !releases[1].Kept || releases[1].Deployment != a.Deployment {
		t.Errorf("releases: %+v", releases)
	}
	w := get("/api/v1/apps/web/deployments?limit=1")
	page := decoded[struct{ Deployments []pipeline.Deployment }](t, w, 200).Deployments
	next := regexp.MustCompile(`<https://naru.test(.*)>; rel="next"`).FindStringSubmatch(w.Header().Get("Link"))
	if len(page) != 1 || page[0].ID != b.Deployment || next == nil {
		t.Fatalf("first page: %+v, Link %q", page, w.Header().Get("Link"))
	}
	page = decoded[struct{ Deployments []pipeline.Deployment }](t, get(next[1]), 200).Deployments
	if len(page) != 1 || page[0].ID != a.Deployment || page[0].Trigger.Commit != "0123abc" || page[0].Trigger.By != "ci" || page[0].Trigger.Reason != "try" {
		t.Errorf("second page: %+v", page)
	}
	word := s.do(t, request{method: "GET", path: "/api/v1/deployments/" + a.Deployment, header: map[string]string{"Accept": "text/plain"}})
	if word.Body.String() != "live\n" {
		t.Errorf("as text: %q", word.Body)
	}
	back := decoded[Accepted](t, s.do(t, request{method: "POST", path: "/api/v1/apps/web/rollback", body: `{"release":1}`}), 202)
	s.ends(t, back.Deployment, pipeline.Live)
	if app := decoded[App](t, get("/api/v1/apps/web"), 200); app.Live.Number != 1 {
		t.Errorf("live after the rollback: %+v", app.Live)
	}
}

func TestCancel(t *testing.T) {
	s := newSite(t, true) // over the unix socket: no token
	a := decoded[Accepted](t, s.do(t, request{method: "POST", path: "/api/v1/apps/web/deployments", anonymous: true}), 202)
	d := decoded[pipeline.Deployment](t, s.do(t, request{method: "POST", path: "/api/v1/deployments/" + a.Deployment + "/cancel", anonymous: true}), 202)
	if d.ID != a.Deployment || d.Trigger.By != "root" {
		t.Errorf("cancelled: %+v", d)
	}
	s.ends(t, a.Deployment, pipeline.Cancelled)
	problem(t, s.do(t, request{method: "POST", path: "/api/v1/deployments/" + a.Deployment + "/cancel"}), 409)
}

func TestHealthAndMetrics(t *testing.T) {
	s := newSite(t, false)
	get := func(path string) string {
		t.Helper()
		w := s.do(t, request{method: "GET", path: path, anonymous: true})
		if w.Code != 200 {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
		return w.Body.String()
	}
	get("/healthz")
	for limit := time.Now().Add(10 * time.Second); !s.agent.Ready() && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	get("/readyz")
	decoded[Accepted](t, s.do(t, push("one", map[string]any{"ref": "refs/heads/x"})), 202)
	text := get("/metrics")
	for _, want := range []string{`naru_deployments{state="live"} 0`, `naru_webhooks_total{result="ignored"} 1`, `naru_build_info{version="v1"} 1`, "naru_apps 2\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	line := regexp.MustCompile(`^(# (HELP|TYPE) .*|[a-z_]+(\{[a-z]+="[^"]*"\})? \d+)$`)
	for l := range strings.Lines(text) {
		if !line.MatchString(strings.TrimSuffix(l, "\n")) {
			t.Errorf("not in the text format: %q", l)
		}
	}
}

func TestPanicIsAProblem(t *testing.T) {
	s := newSite(t, false)
	srv := &server{log: zap.NewNop(), agent: s.agent, store: s.store, failures: newLimiter(1, time.Second)}
	e := srv.engine()
	e.GET("/panic", func(*gin.Context) { panic("secret detail") })
	w := httptest.NewRecorder()
	e.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/panic", nil))
	if p := problem(t, w, 500); strings.Contains(p.Detail, "secret detail") {
		t.Errorf("the problem tells %q", p.Detail)
	}
}

func TestOpenAPI(t *testing.T) {
	s := newSite(t, false)
	w := s.do(t, request{method: "GET", path: "/api/v1/openapi.json", anonymous: true})
	doc := decoded[struct {
		OpenAPI    string
		Paths      map[string]map[string]json.RawMessage
		Components struct{ Schemas, Parameters, Responses map[string]json.RawMessage }
	}](t, w, 200)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("OpenAPI version %q", doc.OpenAPI)
	}
	var described, routed []string
	for path, methods := range doc.Paths {
		for method := range methods {
			described = append(described, strings.ToUpper(method)+" "+path)
		}
	}
	param := regexp.MustCompile(`:(\w+)`)
	for _, r := range (&server{}).routes() {
		path := param.ReplaceAllString(r.path, "{$1}")
		routed = append(routed, r.method+" "+path)
		var op struct {
			OperationID string
			Security    *[]json.RawMessage
			Responses   map[string]json.RawMessage
		}
		if err := json.Unmarshal(doc.Paths[path][strings.ToLower(r.method)], &op); err != nil {
			t.Errorf("%s %s: %v", r.method, r.path, err)
			continue
		}
		if open := op.Security != nil && len(*op.Security) == 0; open == r.token || op.OperationID == "" || op.Responses["default"] == nil {
			t.Errorf("%s %s: needs a token: %t, described: %+v", r.method, r.path, r.token, op)
		}
	}
	slices.Sort(described)
	slices.Sort(routed)
	if !slices.Equal(described, routed) {
		t.Errorf("described %v\nrouted %v", described, routed)
	}
	for _, ref := range regexp.MustCompile(`"#/components/(\w+)/(\w+)"`).FindAllStringSubmatch(w.Body.String(), -1) {
		group := map[string]map[string]json.RawMessage{
			"schemas": doc.Components.Schemas, "parameters": doc.Components.Parameters, "responses": doc.Components.Responses,
		}[ref[1]]
		if group[ref[2]] == nil {
			t.Errorf("%s leads nowhere", ref[0])
		}
	}
}
