package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func run(t *testing.T, o Options) Report {
	t.Helper()
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
	return r
}

func TestAServerThatBehavesLosesNothing(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Version", "7")
		w.Header().Set("X-Request-Bytes", fmt.Sprint(n))
		if n%2 == 1 {
			w.(http.Flusher).Flush() // chunked
		}
		if n%5 == 0 {
			w.Header().Set("Connection", "close")
		}
		fmt.Fprint(w, strings.Repeat("x", 3000))
	}))
	defer s.Close()
	r := run(t, Options{Addr: s.Listener.Addr().String(), Clients: 4, Early: 2, Thinkers: 2,
		EarlyWait: 20 * time.Millisecond, Think: 20 * time.Millisecond, Requests: 2000})
	if r.Losses() != 0 || r.Sent < 2000 || r.Versions["7"].Count != r.OK || r.Posts == 0 || r.Dials < 100 {
		t.Fatalf("%+v", r)
	}
}

// raw serves each connection by hand.
func raw(t *testing.T, serve func(net.Conn, *bufio.Reader)) string {
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
				serve(c, bufio.NewReader(c))
			}()
		}
	}()
	return l.Addr().String()
}

func readRequest(r *bufio.Reader) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err == nil
}

func TestEachWayToLoseIsCountedAsItself(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nv1"
	cases := map[Loss]func(net.Conn, *bufio.Reader){
		ResetNew:  func(c net.Conn, r *bufio.Reader) { readRequest(r) },
		ShortBody: func(c net.Conn, r *bufio.Reader) { readRequest(r); io.WriteString(c, ok[:len(ok)-1]) },
		ServerError: func(c net.Conn, r *bufio.Reader) {
			readRequest(r)
			io.WriteString(c, "HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n")
		},
		ResetReused: func(c net.Conn, r *bufio.Reader) {
			readRequest(r)
			io.WriteString(c, ok)
			readRequest(r)
		},
		TimedOut: func(c net.Conn, r *bufio.Reader) { readRequest(r); readRequest(r) },
	}
	for way, serve := range cases {
		t.Run(string(way), func(t *testing.T) {
			r := run(t, Options{Addr: raw(t, serve), Clients: 1, Requests: 6, PostPercent: -1, Timeout: 200 * time.Millisecond})
			if r.Lost[way] == 0 || r.Losses() != r.Lost[way] || r.OK+r.Losses() != r.Sent {
				t.Fatalf("%v", r)
			}
		})
	}
	t.Run(string(Refused), func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if r := run(t, Options{Addr: l.Addr().String(), Clients: 1, Requests: 3}); r.Lost[Refused] != 3 {
			t.Fatalf("%v", r)
		}
	})
}

func TestAClientThatLooksSeesTheServersFin(t *testing.T) {
	var served atomic.Int64
	addr := raw(t, func(c net.Conn, r *bufio.Reader) {
		if readRequest(r) {
			served.Add(1)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nv1")
		}
	})
	o := Options{Addr: addr, Thinkers: 2, Think: 20 * time.Millisecond, Requests: 60}
	looking := run(t, o)
	if looking.ClosedIdle == 0 {
		t.Fatal("it never saw that the server had closed")
	}
	o.Blind = true
	if blind := run(t, o); blind.Lost[ResetReused] == 0 || blind.ClosedIdle != 0 {
		t.Fatalf("a blind client must lose: %v", blind)
	}
}

func TestOnlyLoopback(t *testing.T) {
	for _, a := range []string{"192.0.2.1:80", "localhost:80", "[2001:db8::1]:80", ""} {
		if _, err := Run(context.Background(), Options{Addr: a}); err == nil {
			t.Errorf("%q was loaded", a)
		}
	}
}
