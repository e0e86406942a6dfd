package nginx

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"naru/pipeline"
)

func TestRouteServesProvesAndUnroutes(t *testing.T) {
	r := started(t, managed(t))
	a, b := newReplica(t, "1"), newReplica(t, "2")
	if status, _, _ := fetch(t, r, "web.example.com"); status != 404 {
		t.Fatalf("unknown host: status %d", status)
	}
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	status, body, header := fetch(t, r, "WEB.example.com")
	if status != 200 || body != "1\n" {
		t.Fatalf("status %d, body %q", status, body)
	}
	if seen := header.Values("X-Naru-Upstream"); len(seen) > 0 {
		t.Fatalf("the public sees %q", seen)
	}
	if got, err := r.Prove(t.Context(), route("web", a.addr), "/now"); err != nil || got != a.addr {
		t.Fatalf("proved %v, %v", got, err)
	}
	if err := r.Route(t.Context(), route("web", b.addr)); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Prove(t.Context(), route("web", b.addr), "/now"); err != nil || got != b.addr {
		t.Fatalf("proved %v, %v", got, err)
	}
	if err := r.Retire(t.Context(), []netip.AddrPort{b.addr}, time.Second); err == nil {
		t.Fatal("a routed address was retired")
	}
	if err := r.Retire(t.Context(), []netip.AddrPort{a.addr}, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := r.Route(t.Context(), route("web")); err != nil {
		t.Fatal(err)
	}
	if status, body, header := fetch(t, r, "web.example.com"); status != 503 || header.Get("Retry-After") == "" || !strings.Contains(body, "Unavailable") {
		t.Fatalf("without servers: %d %q", status, body)
	}
	if err := r.Route(t.Context(), pipeline.Route{App: "web"}); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := fetch(t, r, "web.example.com"); status != 404 {
		t.Fatalf("after removal: status %d", status)
	}
}

func TestDeadReplicas(t *testing.T) {
	r := started(t, managed(t))
	dead, alive := newReplica(t, "0"), newReplica(t, "1")
	dead.stop(t)
	if err := r.Route(t.Context(), route("web", dead.addr)); err != nil {
		t.Fatal(err)
	}
	if status, body, _ := fetch(t, r, "web.example.com"); status != 502 || !strings.Contains(body, "Unavailable") {
		t.Fatalf("%d %q", status, body)
	}
	if got, err := r.Prove(t.Context(), route("web", dead.addr), "/"); err == nil {
		t.Fatalf("a dead replica %v was proven", got)
	}
	if err := r.Route(t.Context(), route("web", dead.addr, alive.addr)); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if got, err := r.Prove(t.Context(), route("web", dead.addr, alive.addr), "/"); err != nil || got != alive.addr {
			t.Fatalf("proved %v, %v", got, err)
		}
	}
}

func TestEqualRouteCostsNoReload(t *testing.T) {
	r := started(t, managed(t))
	a := newReplica(t, "1")
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	before, _ := r.reloaded()
	same := route("web", a.addr, a.addr)
	same.Domains = []string{"WEB.example.com."}
	if err := r.Route(t.Context(), same); err != nil {
		t.Fatal(err)
	}
	if after, _ := r.reloaded(); after != before {
		t.Fatal("it reloaded")
	}
}

func TestManyRoutesAtOnceShareReloadsAndABadOneStandsAlone(t *testing.T) {
	o := managed(t)
	var mu sync.Mutex
	live := 0
	log := o.Log
	o.Log = func(msg string, kv ...any) {
		log(msg, kv...)
		mu.Lock()
		defer mu.Unlock()
		if msg == "route is live" {
			live++
		}
	}
	r := started(t, o)
	a := newReplica(t, "1")
	apps := []string{"a", "b", "c", "d", "e", "f"}
	errs := make([]error, len(apps))
	var group sync.WaitGroup
	for i, name := range apps {
		group.Go(func() {
			ro := route(name, a.addr)
			switch name {
			case "d":
				// Valid to us, refused by nginx: no binary has so large a table.
				ro.Domains = nil
				ro.Servers = nil
				errs[i] = r.routeRaw(t, name, "server { listen "+r.house.Listen[0].String()+"; bogus on; }\n")
				return
			}
			errs[i] = r.Route(t.Context(), ro)
		})
	}
	group.Wait()
	for i, err := range errs {
		if apps[i] == "d" {
			if err == nil || !strings.Contains(err.Error(), "bogus") {
				t.Errorf("bad route: %v", err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", apps[i], err)
		}
	}
	if live != len(apps)-1 {
		t.Errorf("%d routes are live", live)
	}
	for _, name := range []string{"a", "f"} {
		if status, _, _ := fetch(t, r, name+".example.com"); status != 200 {
			t.Errorf("%s: status %d", name, status)
		}
	}
	if _, err := os.Stat(filepath.Join(r.house.Apps, "d.conf")); !os.IsNotExist(err) {
		t.Error("the refused file was installed")
	}
}

// routeRaw takes a file past the renderer.
func (r *Router) routeRaw(t *testing.T, name, text string) error {
	c := &change{app: app{route: pipeline.Route{App: name, Domains: []string{name}}, file: file{[]byte(text), "raw" + short(text)}}, done: make(chan struct{})}
	r.enqueue(c)
	if err := r.takeTurn(t.Context()); err != nil {
		return err
	}
	r.runBatch(t.Context())
	r.giveTurn()
	<-c.done
	return c.err
}

func TestAReloadThatIsNotProvenIsUndone(t *testing.T) {
	r := started(t, managed(t))
	a := newReplica(t, "1")
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(r.path("web"))
	if err != nil {
		t.Fatal(err)
	}
	// It passes nginx -t, which forgives a taken address; the reload does not.
	taken := newReplica(t, "x")
	err = r.routeRaw(t, "web", "server { listen "+taken.addr.String()+"; server_name web.example.com; }\n")
	if err == nil || !strings.Contains(err.Error(), "emerg") {
		t.Fatalf("it was accepted: %v", err)
	}
	after, err := os.ReadFile(r.path("web"))
	if err != nil || string(after) != string(before) {
		t.Fatalf("the former file is not back: %v", err)
	}
	if status, body, _ := fetch(t, r, "web.example.com"); status != 200 || body != "1\n" {
		t.Fatalf("status %d %q", status, body)
	}
	if entries, _ := os.ReadDir(r.prev()); len(entries) > 0 {
		t.Fatal("prev/ is not empty")
	}
}

func TestADomainBelongsToOneApp(t *testing.T) {
	r := started(t, managed(t))
	a := newReplica(t, "1")
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	thief := route("thief", a.addr)
	thief.Domains = []string{"web.example.com"}
	if err := r.Route(t.Context(), thief); err == nil || !strings.Contains(err.Error(), "belongs to app web") {
		t.Fatalf("got %v", err)
	}
}

func TestAgentRestartAdopts(t *testing.T) {
	o := managed(t)
	first := started(t, o)
	a := newReplica(t, "1")
	if err := first.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	pid, reload := masterPid(t, first), func(r *Router) time.Time { at, _ := r.reloaded(); return at }
	first.Announce(t.Context()) // and killed: the flags stay
	second := open(t, o)
	if err := second.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := masterPid(t, second); now != pid {
		t.Fatalf("master %d became %d", pid, now)
	}
	if !reload(second).Equal(reload(first)) {
		t.Error("adopting cost a reload")
	}
	if err := second.Route(t.Context(), route("web", a.addr)); err != nil || !reload(second).Equal(reload(first)) {
		t.Errorf("an equal route after the restart cost a reload (%v)", err)
	}
	if flags, _ := os.ReadDir(second.house.Flags); len(flags) != 0 {
		t.Error("the dead agent's announcement is still in force")
	}
}

func TestAgentKilledAfterInstallIsUndone(t *testing.T) {
	o := managed(t)
	first := started(t, o)
	a, b := newReplica(t, "1"), newReplica(t, "2")
	if err := first.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	for _, hup := range []bool{false, true} {
		half, err := first.house.renderApp(route("web", b.addr))
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := first.house.renderApp(route("fresh", b.addr))
		if err != nil {
			t.Fatal(err)
		}
		plan := []edit{{"web", half}, {"fresh", fresh}}
		if err := errors.Join(first.remember(plan), first.install(plan)); err != nil {
			t.Fatal(err)
		}
		if hup {
			if err := syscall.Kill(masterPid(t, first), syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			eventually(t, "half-done route is loaded", func() bool { return first.loadedGen(t.Context(), "web") == half.gen })
		}
		again := open(t, o)
		if err := again.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if status, body, _ := fetch(t, again, "web.example.com"); status != 200 || body != "1\n" {
			t.Fatalf("hup %v: %d %q", hup, status, body)
		}
		if status, _, _ := fetch(t, again, "fresh.example.com"); status != 404 {
			t.Fatalf("hup %v: the new app is still there: %d", hup, status)
		}
	}
}

func TestTakenPortIsNamed(t *testing.T) {
	o := managed(t)
	taken := newReplica(t, "x")
	o.Listen = []string{taken.addr.String()}
	err := open(t, o).Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), taken.addr.String()) || !strings.Contains(err.Error(), "pid ") {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(o.Dir); !os.IsNotExist(err) {
		t.Fatal("something was touched")
	}
}

func TestMissingBinaryIsNamed(t *testing.T) {
	o := Options{Mode: "managed", Dir: t.TempDir(), Run: t.TempDir(), Listen: []string{"80"}, Binary: "/nowhere/nginx"}
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "/nowhere/nginx") {
		t.Fatalf("got %v", err)
	}
}

func TestAnnouncementExpiresAndIsIdempotent(t *testing.T) {
	t.Parallel() // it mostly waits
	r := started(t, managed(t))
	a := newReplica(t, "1")
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r.Announce(t.Context())
	}
	if flags, _ := os.ReadDir(r.house.Flags); len(flags) != 2 {
		t.Fatalf("%d flags for 2 workers", len(flags))
	}
	_, _, h := fetch(t, r, "web.example.com")
	if h.Get("X-Version") != "1" {
		t.Fatal("an announced worker does not serve")
	}
	eventually(t, "the announcement expires", func() bool {
		flags, err := os.ReadDir(r.house.Flags)
		return err == nil && len(flags) == 0
	})
}
