package nginx

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"naru/pipeline"
)

// needNginx skips where there is no nginx; CI has one.
func needNginx(t *testing.T) {
	t.Helper()
	if _, err := findBinary(""); err != nil {
		t.Skip("no nginx binary: ", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: workers are another user")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func managed(t *testing.T) Options {
	t.Helper()
	needNginx(t)
	dir := t.TempDir()
	return Options{
		Mode: "managed", Dir: dir + "/nginx", Run: dir + "/run", Listen: []string{freePort(t)}, Workers: 2,
		Log: func(msg string, kv ...any) { t.Logf("%s %v", msg, kv) },
	}
}

func open(t *testing.T, o Options) *Router {
	t.Helper()
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// started is a router whose nginx ends with the test.
func started(t *testing.T, o Options) *Router {
	t.Helper()
	return startedSilent(t, o, headerTimeout)
}

// startedSilent is started with another client_header_timeout.
func startedSilent(t *testing.T, o Options, silence time.Duration) *Router {
	t.Helper()
	r := open(t, o)
	r.house.Silence = silence
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := r.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// supervised runs r.Run until the test ends.
func supervised(t *testing.T, r *Router) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// replica is an application: it answers with its version after up to 20 ms.
type replica struct {
	addr   netip.AddrPort
	server *http.Server
}

func newReplica(t *testing.T, version string) *replica {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if r.URL.Path != "/now" {
			_ = sleep(r.Context(), time.Duration(rand.IntN(20))*time.Millisecond) // the work it does
		}
		w.Header().Set("X-Version", version)
		w.Header().Set("X-Naru-Upstream", "forged:1")
		w.Header().Set("X-Request-Bytes", fmt.Sprint(n))
		fmt.Fprintln(w, version)
	}
	rep := &replica{addr: netip.MustParseAddrPort(l.Addr().String()), server: &http.Server{Handler: http.HandlerFunc(handler)}}
	go rep.server.Serve(l)
	t.Cleanup(func() { rep.server.Close() })
	return rep
}

// stop is what a well-behaved application does at SIGTERM: it closes its listener
// and finishes what it has.
func (r *replica) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.server.Shutdown(ctx); err != nil {
		t.Errorf("a retired replica still had requests: %v", err)
	}
}

func route(app string, servers ...netip.AddrPort) pipeline.Route {
	return pipeline.Route{App: app, Domains: []string{app + ".example.com"}, Servers: servers, Drain: 10 * time.Second}
}

// fetch is one request from outside; it returns status, body and headers.
func fetch(t *testing.T, r *Router, host string) (int, string, http.Header) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.house.Listen[0].String()+"/now", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		if sleep(context.Background(), 10*time.Millisecond) != nil { // clean-up waits too
			t.Fatalf("ended before: %s", what)
		}
	}
}

func masterPid(t *testing.T, r *Router) int {
	t.Helper()
	m, err := r.findMaster()
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	return m.pid
}
