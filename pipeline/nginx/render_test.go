package nginx

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"naru/pipeline"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(got) {
		t.Errorf("%s differs; run with -update and read the diff. Got:\n%s", path, got)
	}
}

func sampleHouse(v version, managed bool) house {
	h := house{
		Managed: managed, Prefix: "naru", Status: "/run/naru/status.sock", Verify: "/run/naru/verify.sock",
		Listen: []listener{{netip.MustParseAddrPort("0.0.0.0:80")}, {netip.MustParseAddrPort("[::]:80")}},
		Apps:   "/var/lib/naru/nginx/apps", Flags: "/var/lib/naru/nginx/work/drain", Work: "/var/lib/naru/nginx/work",
		Pid: "/run/naru/nginx.pid", User: "www-data www-data", Workers: 2, Files: 65536, Silence: headerTimeout,
		build: build{version: v, args: "--with-http_stub_status_module"},
	}
	if !managed {
		h.Prefix = "naru_0a1b2c3d"
	}
	return h
}

func sampleRoute() pipeline.Route {
	return pipeline.Route{
		App: "web", Domains: []string{"*.example.com", "example.com"}, Drain: 45 * time.Second,
		Servers: []netip.AddrPort{netip.MustParseAddrPort("10.213.0.2:8080"), netip.MustParseAddrPort("[fd00::2]:8080")},
	}
}

func TestGolden(t *testing.T) {
	for name, c := range map[string]struct {
		version version
		managed bool
	}{
		"1.22-managed": {version{1, 22, 1}, true}, "1.28-managed": {version{1, 28, 0}, true}, "1.22-system": {version{1, 22, 1}, false},
	} {
		h := sampleHouse(c.version, c.managed)
		main, err := h.renderMain(shared{}.cover(map[string]pipeline.Route{"web": sampleRoute()}))
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".main.conf", main.text)
		web, err := h.renderApp(sampleRoute())
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name+".web.conf", web.text)
		back, err := parseApp(web.text)
		if err != nil || !reflect.DeepEqual(back, sampleRoute()) {
			t.Errorf("read back %+v, %v", back, err)
		}
	}
	none := sampleRoute()
	none.Servers = nil
	f, err := sampleHouse(version{1, 22, 1}, true).renderApp(none)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "1.22-managed.none.conf", f.text)
}

func TestDomains(t *testing.T) {
	good := map[string]string{"Example.COM.": "example.com", "*.a-b.c": "*.a-b.c", "localhost": "localhost", "x_y.z": "x_y.z", "1.2.3.4": "1.2.3.4"}
	for in, want := range good {
		if got, err := checkDomain(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	bad := []string{"", ".", "a..b", "-a.b", "a-.b", "a b", "a;b", "a.b;", "a{b", "a\nb", "a#b", "$host", "~^x", "a.*", "*", "**.b", `a"b`, `a\b`, "a'b", "ä.de",
		".example.com", "a/b", "_.\x00", strings.Repeat("a", 64) + ".b", strings.Repeat("a.", 127) + "ab"}
	for _, in := range bad {
		if got, err := checkDomain(in); err == nil {
			t.Errorf("%q became %q", in, got)
		}
	}
}

// shape is what a configuration file means to nginx's tokenizer, apart from words.
func shape(text []byte) string {
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune("{};\n\"'\\#$", c) {
			return c
		}
		return -1
	}, string(text))
}

// FuzzNoNameBreaksOut: whatever is given as a name, either it is refused or the file
// has exactly the shape of the file of a harmless name.
func FuzzNoNameBreaksOut(f *testing.F) {
	for _, s := range []string{"example.com", "a;b", "x {", "a\nserver_name b", "*.example.com", "$host", "a\"", "a.b;return 200", "\\", "a#", "\u2028"} {
		f.Add(s, s)
	}
	h := sampleHouse(version{1, 22, 1}, true)
	plain := sampleRoute()
	plain.Domains = []string{"example.com"}
	want, err := h.renderApp(plain)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, domain, name string) {
		r := plain
		r.Domains, r.App = []string{domain}, name
		r, err := checkRoute(r)
		if err != nil {
			r = plain
			r.Domains = []string{domain}
			if r, err = checkRoute(r); err != nil {
				return
			}
		}
		got, err := h.renderApp(r)
		if err != nil {
			t.Fatal(err)
		}
		if shape(got.text) != shape(want.text) {
			t.Fatalf("domain %q, app %q:\n%s", domain, name, got.text)
		}
		back, err := parseApp(got.text)
		if err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("read back %+v, %v", back, err)
		}
	})
}

func TestSizesGrowAndNeverShrink(t *testing.T) {
	long := sampleRoute()
	long.Domains = []string{strings.Repeat(strings.Repeat("a", 60)+".", 4) + "com"}
	long.Drain = time.Hour
	s := shared{}.cover(map[string]pipeline.Route{"web": long})
	if s.Bucket != 512 || s.Drain != time.Hour || s.Names != 1024 {
		t.Errorf("%+v", s)
	}
	if again := s.cover(nil); again != s {
		t.Errorf("%+v became %+v", s, again)
	}
}

func TestBuilds(t *testing.T) {
	b, err := parseBuild("nginx version: nginx/1.22.1\nconfigure arguments: --conf-path=/etc/nginx/nginx.conf --pid-path=/run/nginx.pid --without-http_scgi_module")
	if err != nil || b.version != (version{1, 22, 1}) || b.confPath != "/etc/nginx/nginx.conf" || b.pidPath != "/run/nginx.pid" || b.drainsItself() || !b.without("scgi_module") {
		t.Errorf("%+v, %v", b, err)
	}
	for text, drains := range map[string]bool{"1.27.3": false, "1.27.4": true, "1.28.0": true, "2.0.0": true} {
		b, err := parseBuild("nginx version: openresty/" + text)
		if err != nil || b.drainsItself() != drains {
			t.Errorf("%s: %+v, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "nginx version: nginx/1.14.2", "apache"} {
		if _, err := parseBuild(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestListen(t *testing.T) {
	got, err := checkListen([]string{"127.0.0.1:8080", "[::1]:80"})
	if err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := checkListen([]string{"80", ":80"}); err != nil || len(got) < 1 || len(got) > 2 {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "0", "localhost:80", "1.2.3.4:99999", "1.2.3.4", "1.2.3.4:80;", "[fe80::1%eth0]:80"} {
		if got, err := checkListen([]string{bad}); err == nil {
			t.Errorf("%q became %v", bad, got)
		}
	}
}

func BenchmarkRender500(b *testing.B) {
	h := sampleHouse(version{1, 22, 1}, true)
	r := sampleRoute()
	for b.Loop() {
		for range 500 {
			if _, err := h.renderApp(r); err != nil {
				b.Fatal(err)
			}
		}
	}
}
