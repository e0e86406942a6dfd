package nginx

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"naru/bench/load"
	"naru/pipeline"
)

// underLoad runs the strict clients until the returned function is called.
func underLoad(t *testing.T, r *Router, o load.Options) (end func() load.Report) {
	t.Helper()
	o.Addr, o.Host, o.Duration = r.house.Listen[0].String(), "web.example.com", 2*time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan load.Report, 1)
	go func() {
		report, err := load.Run(ctx, o)
		if err != nil {
			t.Error(err)
		}
		result <- report
	}()
	return func() load.Report {
		cancel()
		report := <-result
		t.Log(report)
		return report
	}
}

// deploy replaces the only replica as the pipeline does.
func deploy(t *testing.T, r *Router, old *replica, version string) *replica {
	t.Helper()
	r.Announce(t.Context())
	fresh := newReplica(t, version)
	began := time.Now()
	if err := r.Route(t.Context(), route("web", fresh.addr)); err != nil {
		t.Fatal(err)
	}
	routed := time.Since(began)
	if got, err := r.Prove(t.Context(), route("web", fresh.addr), "/now"); err != nil || got != fresh.addr {
		t.Fatalf("proved %v, %v", got, err)
	}
	if err := r.Retire(t.Context(), []netip.AddrPort{old.addr}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	old.stop(t)
	t.Logf("version %s: routed in %v, old one retired after %v", version, routed.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	return fresh
}

func TestReplacementsUnderLoadLoseNothing(t *testing.T) {
	for name, c := range map[string]struct {
		load         load.Options
		replacements int
	}{
		"busy and early clients":        {load.Options{Clients: 24, Early: 8, EarlyWait: 1500 * time.Millisecond}, 10},
		"thinkers that look not at all": {load.Options{Clients: 4, Thinkers: 60, Think: 1500 * time.Millisecond, Blind: true}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			r := started(t, managed(t))
			now := newReplica(t, "0")
			if err := r.Route(t.Context(), route("web", now.addr)); err != nil {
				t.Fatal(err)
			}
			end := underLoad(t, r, c.load)
			for i := range c.replacements {
				now = deploy(t, r, now, fmt.Sprint(i+1))
			}
			report := end()
			if report.Losses() != 0 || report.Statuses4 != 0 || report.Versions[fmt.Sprint(c.replacements)].Count == 0 {
				t.Error("requests were lost")
			}
		})
	}
}

// The control: if this loses nothing, the load client is blind.
func TestPlainReloadsLoseRequests(t *testing.T) {
	r := started(t, managed(t))
	if r.house.build.drainsItself() {
		t.Skip("this nginx keeps its promises")
	}
	a := newReplica(t, "1")
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	end := underLoad(t, r, load.Options{Clients: 40, Pause: 40 * time.Millisecond, Blind: true})
	for range 8 {
		if err := r.reload(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if end().Losses() == 0 {
		t.Error("nothing was lost")
	}
}

func TestMasterKilledUnderLoad(t *testing.T) {
	r := started(t, managed(t))
	supervised(t, r)
	a := newReplica(t, "1")
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	end := underLoad(t, r, load.Options{Clients: 16, Early: 4, EarlyWait: time.Second})
	for range 2 {
		old := masterPid(t, r)
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another master runs", func() bool {
			m, err := r.findMaster()
			if err != nil {
				return false
			}
			defer m.close()
			return m.pid != old
		})
		b := newReplica(t, "1")
		if err := r.Route(t.Context(), route("web", b.addr)); err != nil {
			t.Fatal(err)
		}
	}
	if end().Losses() != 0 {
		t.Error("requests were lost")
	}
}

func TestEverythingKilledIsRestarted(t *testing.T) {
	r := started(t, managed(t))
	supervised(t, r)
	a := newReplica(t, "1")
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	serving, _, err := r.workers()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(masterPid(t, r), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, w := range serving {
		_ = syscall.Kill(w.pid, syscall.SIGKILL) // one may have died with the test's luck
	}
	eventually(t, "nginx serves again", func() bool {
		c, err := net.Dial("tcp", r.house.Listen[0].String())
		if err != nil {
			return false
		}
		defer c.Close()
		return r.loadedGen(t.Context(), "web") != ""
	})
	if status, body, _ := fetch(t, r, "web.example.com"); status != 200 || body != "1\n" {
		t.Fatalf("%d %q", status, body)
	}
}

// dial opens a raw connection to the public address.
func dial(t *testing.T, r *Router) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.house.Listen[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(40 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRetireWaitsForASlowUploadAlsoAfterAnAgentRestart(t *testing.T) {
	t.Parallel() // it mostly waits
	o := managed(t)
	first := startedSilent(t, o, 4*time.Second)
	a, b := newReplica(t, "1"), newReplica(t, "2")
	if err := first.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	c := dial(t, first)
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 10\r\n\r\n12345")
	eventually(t, "nginx has read the head", func() bool {
		open, err := first.clients()
		return err == nil && len(open) > 0
	})
	if err := first.Route(t.Context(), route("web", b.addr)); err != nil {
		t.Fatal(err)
	}
	second := open(t, o)
	second.house.Silence = first.house.Silence
	if err := second.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	retired := make(chan error, 1)
	go func() { retired <- second.Retire(t.Context(), []netip.AddrPort{a.addr}, 30*time.Second) }()
	// Past client_header_timeout only the count of sockets keeps Retire waiting.
	timer := time.NewTimer(first.house.Silence + 2*time.Second)
	defer timer.Stop()
	select {
	case err := <-retired:
		t.Fatalf("retired while an upload was under way: %v", err)
	case <-timer.C:
	}
	io.WriteString(c, "67890")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.Header.Get("X-Version") != "1" {
		t.Fatalf("%v, %v", resp, err)
	}
	if err := <-retired; err != nil {
		t.Fatal(err)
	}
}

// streamer upgrades every request and then echoes.
func streamer(t *testing.T) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				req, err := http.ReadRequest(r)
				if err != nil || !strings.EqualFold(req.Header.Get("Connection"), "upgrade") {
					return
				}
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
				io.Copy(c, r)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestAnotherAppsWebsocketSurvivesAndDoesNotHoldRetire(t *testing.T) {
	t.Parallel() // it mostly waits
	r := startedSilent(t, managed(t), 3*time.Second)
	a, b, chat := newReplica(t, "1"), newReplica(t, "2"), streamer(t)
	for _, ro := range []pipeline.Route{route("web", a.addr), route("chat", chat)} {
		if err := r.Route(t.Context(), ro); err != nil {
			t.Fatal(err)
		}
	}
	c := dial(t, r)
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: chat.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	in := bufio.NewReader(c)
	if resp, err := http.ReadResponse(in, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("%v, %v", resp, err)
	}
	if err := r.Route(t.Context(), route("web", b.addr)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := r.Retire(t.Context(), []netip.AddrPort{a.addr}, 28*time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("retired only after %v", took)
	}
	io.WriteString(c, "still here\n")
	if line, err := in.ReadString('\n'); err != nil || line != "still here\n" {
		t.Fatalf("%q, %v", line, err)
	}
	// The address that the stream does use is another matter.
	if err := r.Route(t.Context(), route("chat")); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if err := r.Retire(t.Context(), []netip.AddrPort{chat}, time.Second); err != nil || time.Since(began) < time.Second {
		t.Errorf("a stream was forgotten: %v after %v", err, time.Since(began))
	}
}

func TestAClientThatConnectedEarlyIsToldToClose(t *testing.T) {
	t.Parallel() // it mostly waits
	r := started(t, managed(t))
	a, b := newReplica(t, "1"), newReplica(t, "2")
	if err := r.Route(t.Context(), route("web", a.addr)); err != nil {
		t.Fatal(err)
	}
	var early []net.Conn
	for range 4 {
		early = append(early, dial(t, r))
	}
	eventually(t, "the workers have them", func() bool {
		table, err := tcpTable()
		accepted := 0
		for _, c := range table {
			if r.isPublic(c.local) && c.state == tcpEstablished && c.inode != 0 {
				accepted++
			}
		}
		return err == nil && accepted == len(early)
	})
	if err := r.Route(t.Context(), route("web", b.addr)); err != nil {
		t.Fatal(err)
	}
	for _, c := range early {
		io.WriteString(c, "POST /now HTTP/1.1\r\nHost: web.example.com\r\nContent-Length: 5\r\n\r\nhello")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if !resp.Close || resp.Header.Get("X-Version") != "1" || resp.Header.Get("X-Request-Bytes") != "5" {
			t.Fatalf("a lingering worker answers %v", resp.Header)
		}
	}
	if err := r.Retire(t.Context(), []netip.AddrPort{a.addr}, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, left, err := r.workers(); err != nil || len(left) > 0 {
		t.Fatalf("%d workers linger, %v", len(left), err)
	}
}
