package fetch

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGuard(t *testing.T) {
	g := Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.9.0.0/16")}}
	for addr, allowed := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1111": true, "127.9.1.1": true, "::ffff:127.9.1.1": true,
		"127.0.0.1": false, "::1": false, "::": false, "0.0.0.0": false, "169.254.169.254": false, "::ffff:169.254.169.254": false,
		"fe80::1%eth0": false, "fd00:ec2::254": false, "100.100.100.200": false, "224.0.0.1": false, "255.255.255.255": false,
		"64:ff9b::a9fe:a9fe": false, "2002:7f00:1::": false, "::127.0.0.1": false, "64:ff9b::101:101": true,
	} {
		if err := g.Check(netip.MustParseAddr(addr)); (err == nil) != allowed || err != nil && !errors.Is(err, ErrForbidden) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		if err := (Guard{}).Check(netip.MustParsePrefix(a.String()).Addr()); err == nil {
			t.Errorf("%s is this machine's, and may be reached", a)
		}
	}
}

var here = Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}

// TestRedirectOut: an address is looked at wherever it comes from.
func TestRedirectOut(t *testing.T) {
	asked := 0
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	inner := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	inner.Listener.Close()
	inner.Listener = l
	inner.Start()
	defer inner.Close()
	s := httptest.NewServer(http.RedirectHandler(inner.URL, http.StatusFound))
	defer s.Close()
	if _, err := New(t.TempDir(), here, Limits{}).Get(t.Context(), s.URL, ""); !errors.Is(err, ErrForbidden) || asked > 0 {
		t.Errorf("%v, asked %d times", err, asked)
	}
}

// TestProxy: a proxy may be anywhere, what it is asked for may not.
func TestProxy(t *testing.T) {
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		fmt.Fprint(w, "from the proxy")
	}))
	defer s.Close()
	proxy, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	c := New(t.TempDir(), Guard{}, Limits{})
	tr := c.http.Transport.(*transport)
	tr.which = http.ProxyURL(proxy)
	f, err := c.Get(t.Context(), "http://name.invalid/x", "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := c.Get(t.Context(), "http://169.254.169.254/latest", ""); !errors.Is(err, ErrForbidden) {
		t.Error(err)
	}
	if len(asked) != 1 {
		t.Errorf("asked %q", asked)
	}
}

func TestLimits(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/endless" { // without a length
			for range 1000 {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					return
				}
				w.(http.Flusher).Flush()
			}
			return
		}
		fmt.Fprint(w, strings.Repeat("x", 600))
	}))
	defer s.Close()
	dir := t.TempDir()
	c := New(dir, here, Limits{Bytes: 1000, Kept: 1300})
	if _, err := c.Get(t.Context(), s.URL+"/endless", ""); err == nil || !strings.Contains(err.Error(), "more than the 1000 bytes") {
		t.Error(err)
	}
	if _, err := New(dir, here, Limits{Bytes: 100}).Get(t.Context(), s.URL+"/x", ""); err == nil || !strings.Contains(err.Error(), "600 bytes are more than") {
		t.Error(err)
	}
	for i := range 5 {
		f, err := c.Get(t.Context(), fmt.Sprint(s.URL, "/", i), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	size := int64(0)
	_ = filepath.Walk(dir, func(_ string, i os.FileInfo, _ error) error {
		if i.Mode().IsRegular() {
			size += i.Size()
		}
		return nil
	})
	if size > 1300 {
		t.Errorf("%d bytes are kept", size)
	}
}

// TestDamaged: what is not what it was is fetched again.
func TestDamaged(t *testing.T) {
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("ETag", `"x"`)
		if r.Header.Get("If-None-Match") != "" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fmt.Fprint(w, "good")
	}))
	defer s.Close()
	c := New(t.TempDir(), here, Limits{})
	for i := range 3 {
		f, err := c.Get(t.Context(), s.URL, "")
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(f.Dir, f.Name)
		if data, err := os.ReadFile(name); err != nil || string(data) != "good" {
			t.Errorf("%d: %q, %v", i, data, err)
		}
		if i == 1 {
			if err := os.WriteFile(name, []byte("evil"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n != 3 {
		t.Errorf("asked %d times", n)
	}
}
