package api

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"naru/agent/store"
)

func TestServe(t *testing.T) {
	s := newSite(t, true)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, s.handler) }()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Post("http://naru/api/v1/apps/web/deployments", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	var a Accepted
	if err := errors.Join(json.NewDecoder(resp.Body).Decode(&a), resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	answers := make(chan string, 2)
	stream, err := client.Get("http://naru/api/v1/deployments/" + a.Deployment + "/logs?follow=1")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		text, err := io.ReadAll(stream.Body)
		answers <- fmt.Sprint(string(text), errors.Join(err, stream.Body.Close()))
	}()
	go func() {
		resp, err := client.Get("http://naru/api/v1/deployments/" + a.Deployment + "?wait=100s")
		if err != nil {
			answers <- err.Error()
			return
		}
		text, err := io.ReadAll(resp.Body)
		answers <- fmt.Sprint(string(text), errors.Join(err, resp.Body.Close()))
	}()
	waitFor(t, s, a.Deployment, "building")
	stop()
	if err := <-ended; err != nil {
		t.Error("serve:", err)
	}
	for range 2 {
		// A poll that had not been accepted before the end is refused by the kernel.
		if text := <-answers; !strings.Contains(text, "building") && !strings.Contains(text, `"state":"running"`) && !strings.Contains(text, "connect") {
			t.Errorf("answer %q", text)
		}
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), busy, s.handler); err == nil {
		t.Error("a closed listener is no error")
	}
}

// waitFor waits until the log has a line.
func waitFor(t *testing.T, s *site, id, line string) {
	t.Helper()
	news, stop := s.store.Watch(id)
	defer stop()
	limit := time.After(20 * time.Second)
	for {
		events, err := s.store.Events(t.Context(), store.EventQuery{Deployment: id, Kind: store.KindLog, Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(events, func(e store.Event) bool { return e.Text == line }) {
			return
		}
		select {
		case <-news:
		case <-limit:
			t.Fatalf("after 20 s no line %q: %v", line, events)
		}
	}
}

func TestEvents(t *testing.T) {
	s := newSite(t, false)
	server := httptest.NewServer(s.handler)
	defer server.Close()
	a := decoded[Accepted](t, s.do(t, request{method: "POST", path: "/api/v1/apps/web/deployments"}), 202)
	read := func(after string) (whole string, ids, types []string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/api/v1/deployments/"+a.Deployment+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+s.token)
		req.Header.Set("Last-Event-ID", after)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Errorf("content type %q", resp.Header.Get("Content-Type"))
		}
		text, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if id, ok := strings.CutPrefix(line, "id: "); ok {
				ids = append(ids, strings.TrimSpace(id))
			}
			if kind, ok := strings.CutPrefix(line, "event: "); ok {
				types = append(types, strings.TrimSpace(kind))
			}
		}
		return string(text), ids, types
	}
	go func() { // the stream is opened while it builds, and sees the rest live
		waitFor(t, s, a.Deployment, "building")
		s.build <- nil
	}()
	text, ids, types := read("")
	for i, id := range ids {
		if id != fmt.Sprint(i+1) {
			t.Fatalf("ids %v", ids)
		}
	}
	for _, want := range []string{`"line":"building"`, `"step":"build","phase":"done"`, `event: end` + "\n" + `data: {"state":"live"}`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if types[len(types)-1] != "end" || len(types) != len(ids)+1 {
		t.Errorf("types %v", types)
	}
	// Wherever the connection broke, the rest is the same.
	for i := range ids {
		_, rest, _ := read(ids[i])
		if !slices.Equal(rest, ids[i+1:]) {
			t.Errorf("after %s come %v, want %v", ids[i], rest, ids[i+1:])
		}
	}
	w := s.do(t, request{method: "GET", path: "/api/v1/deployments/" + a.Deployment + "/logs?follow=1"})
	if !strings.HasPrefix(w.Body.String(), "fetching\n") || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		t.Errorf("log %q", w.Body)
	}
}

func FuzzWebhook(f *testing.F) {
	s := newSite(f, false)
	for _, r := range []request{push("d", nil), signed("p", "ping", "{}"), {path: "/webhooks/%2e%2e/web"}, {path: "/webhooks//"}} {
		f.Add(r.path, r.header["X-GitHub-Event"], r.header["X-Hub-Signature-256"], "application/json", []byte(r.body))
	}
	f.Add("/webhooks/github/web", "push", "sha256=", "application/x-www-form-urlencoded", []byte("payload=%7B"))
	f.Fuzz(func(t *testing.T, path, event, signature, kind string, body []byte) {
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://naru.test"+path, bytes.NewReader(body))
		if err != nil || req.URL.Host != "naru.test" {
			t.Skip("the fuzzer made no URL of this host")
		}
		req.RemoteAddr = "192.0.2.1:1"
		req.Header["X-Github-Event"], req.Header["X-Hub-Signature-256"] = []string{event}, []string{signature}
		req.Header["Content-Type"], req.Header["X-Github-Delivery"] = []string{kind}, []string{"d"}
		w := httptest.NewRecorder()
		s.handler.ServeHTTP(w, req)
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write(body)
		good := strings.EqualFold(signature, "sha256="+hex.EncodeToString(mac.Sum(nil)))
		switch {
		case w.Code >= 500 && w.Code != http.StatusNotImplemented:
			t.Errorf("status %d: %s", w.Code, w.Body)
		case w.Code < 300 && !good && strings.HasPrefix(req.URL.Path, "/webhooks/"):
			t.Errorf("unsigned and accepted: %d %s", w.Code, w.Body)
		case w.Code >= 400 && w.Header().Get("Content-Type") != "application/problem+json":
			t.Errorf("status %d without a problem: %q", w.Code, w.Body)
		}
	})
}
