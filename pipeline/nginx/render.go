package nginx

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"text/template"
	"time"

	"naru/pipeline"
)

const (
	// keepaliveTimeout is how long nginx promises an idle client to wait, and so
	// the longest wait after an announcement.
	keepaliveTimeout = 5 * time.Second
	// headerTimeout is how long a client may stay silent after connecting.
	headerTimeout = 15 * time.Second
	// systemHeaderTimeout is nginx's default, which holds in system mode, because
	// there the default server is not ours.
	systemHeaderTimeout = 60 * time.Second
	// shortestDrain is the least worker_shutdown_timeout: it also bounds plain
	// answers to slow clients.
	shortestDrain = 30 * time.Second
)

// house is what all files share: fixed from Open on.
type house struct {
	Managed bool
	Prefix  string // of every name that is global in nginx
	Listen  []listener
	Status  string // unix socket: gens, stub_status
	Verify  string // unix socket: the apps, with X-Naru-Upstream
	Apps    string // directory of the apps' files
	Flags   string // directory of the announcement flags
	Work    string // workers' directory: logs, bodies
	Pid     string
	User    string // "user group", empty when not root
	Workers int
	Files   int           // descriptors for each worker
	Silence time.Duration // client_header_timeout
	build   build
}

// MinTimeout and the like are asked by the templates.
func (h house) MinTimeout() bool { return h.build.drainsItself() }

// Stub reports whether the binary can count its connections.
func (h house) Stub() bool { return h.build.hasStub() }

// Scratch lists the directives that name a directory for bodies on disk; all are
// given, because each one's default lies in the machine's nginx.
func (h house) Scratch() []string {
	names := []string{"client_body", "proxy"}
	for _, n := range []string{"fastcgi", "uwsgi", "scgi"} {
		if !h.build.without(n + "_module") {
			names = append(names, n)
		}
	}
	return names
}

// shared is what the main file takes from the apps.
type shared struct {
	Drain  time.Duration // worker_shutdown_timeout: it holds for all apps
	Bucket int           // server_names_hash_bucket_size
	Names  int           // server_names_hash_max_size
}

// cover makes s large enough for the routes. It never shrinks: growing needs a new
// main file, and a size too large costs nothing.
func (s shared) cover(routes map[string]pipeline.Route) shared {
	longest, names := 0, 0
	for app, r := range routes {
		s.Drain = max(s.Drain, r.Drain)
		longest = max(longest, len(app))
		for _, d := range r.Domains {
			longest = max(longest, len(d))
		}
		names += len(r.Domains)
	}
	s.Drain = max(s.Drain, shortestDrain)
	// One element takes two pointers and the name, rounded up (ngx_hash.c,
	// NGX_HASH_ELT_SIZE), and one more pointer ends the bucket.
	s.Bucket = max(s.Bucket, powerOf2(longest+2+4*8), 128)
	s.Names = max(s.Names, powerOf2(2*names), 1024)
	return s
}

// seconds writes a time for nginx, rounded up: nothing here needs finer steps.
func seconds(d time.Duration) string {
	return fmt.Sprintf("%ds", (d+time.Second-1)/time.Second)
}

func powerOf2(n int) int {
	p := 1
	for p < n {
		p *= 2
	}
	return p
}

// file is one rendered text with its gen.
type file struct {
	text []byte
	gen  string
}

// header is the line of an app's file from which the route is read again: the
// files are the only memory of what is routed.
type header struct {
	App     string           `json:"app"`
	Domains []string         `json:"domains"`
	Servers []netip.AddrPort `json:"servers"`
	Drain   string           `json:"drain"`
}

const headerMark = "# route "

// renderApp expects a route of checkRoute.
func (h house) renderApp(r pipeline.Route) (file, error) {
	line, err := json.Marshal(header{r.App, r.Domains, r.Servers, r.Drain.String()})
	if err != nil {
		return file{}, fmt.Errorf("encode the route: %w", err)
	}
	return seal(func(gen string) ([]byte, error) {
		return execute(appTemplate(), struct {
			house
			Route  pipeline.Route
			Header string
			Zone   int
			Gen    string
		}{h, r, headerMark + string(line), 64 + len(r.Servers), gen})
	})
}

func (h house) renderMain(s shared) (file, error) {
	t := systemTemplate()
	if h.Managed {
		t = managedTemplate()
	}
	return seal(func(gen string) ([]byte, error) {
		return execute(t, struct {
			house
			shared
			Gen string
		}{h, s, gen})
	})
}

// seal renders twice: the gen is the hash of the text with an empty gen.
func seal(render func(gen string) ([]byte, error)) (file, error) {
	text, err := render("")
	if err != nil {
		return file{}, err
	}
	sum := sha256.Sum256(text)
	gen := hex.EncodeToString(sum[:10])
	text, err = render(gen)
	return file{text, gen}, err
}

func execute(t *template.Template, data any) ([]byte, error) {
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return nil, fmt.Errorf("render: %w", err)
	}
	return b.Bytes(), nil
}

// parseApp reads the route back from the text of an app's file.
func parseApp(text []byte) (pipeline.Route, error) {
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, headerMark)
		if !ok {
			continue
		}
		var h header
		if err := json.Unmarshal([]byte(rest), &h); err != nil {
			return pipeline.Route{}, fmt.Errorf("read the route line: %w", err)
		}
		drain, err := time.ParseDuration(h.Drain)
		if err != nil {
			return pipeline.Route{}, fmt.Errorf("read the route line: %w", err)
		}
		return checkRoute(pipeline.Route{App: h.App, Domains: h.Domains, Servers: h.Servers, Drain: drain})
	}
	return pipeline.Route{}, errors.New("no route line")
}
