package nginx

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"naru/pipeline"
)

// Options says which nginx to use and where its files are.
type Options struct {
	// Mode is "managed" (an nginx of our own) or "system" (the machine's).
	Mode string
	// Dir holds the configuration and what must survive a reboot. The workers'
	// own directory (logs, bodies) is Dir/work, or, where the worker user may not
	// pass through Dir's parents, /var/lib/naru-nginx-<hash of Dir>.
	Dir string
	// Run holds the pid file and the sockets (managed mode); at most 90 bytes.
	Run string
	// Listen are the public addresses: "127.0.0.1:8080", "[::]:80", ":80", "80".
	Listen []string
	// Binary is the nginx to use; empty: the one in PATH or /usr/sbin.
	Binary string
	// Workers is the number of worker processes (managed mode); 0: one per CPU,
	// at most 8. It is written into the configuration, because a generation whose
	// number of workers changes closes connections.
	Workers int
	// SystemInclude is a file that does not exist yet in a directory from which
	// the machine's nginx.conf includes *.conf inside http {}, such as
	// /etc/nginx/conf.d/naru.conf (system mode).
	SystemInclude string
	// SystemConf is the machine's nginx.conf and SystemPid its pid file; empty:
	// as compiled into the binary or written in the configuration.
	SystemConf, SystemPid string
	// Log takes what is worth knowing, as a message with key-value pairs. It may
	// be nil and may be called from several goroutines.
	Log func(msg string, kv ...any)
}

// Router is a pipeline.Router over one nginx. Its methods may be called from
// several goroutines. Only one Router at a time may work with a Dir.
type Router struct {
	opts  Options
	house house
	dir   string // absolute Options.Dir
	main  string // path of the main file
	conf  string // what nginx is started and tested with
	pid   string

	// turn is held by who changes files, reloads or restarts: one at a time. What
	// follows it is owned by its holder.
	turn    chan struct{}
	live    map[string]app // installed and proven
	mainNow file
	size    shared

	// mu guards what follows; it is never held while waiting.
	mu      sync.Mutex
	queue   []*change
	proven  map[string]app // a copy of live for readers
	ann     *announcement
	last    time.Time // when workers last changed
	started bool
	stopped bool // Shutdown was called: Run must not restart
}

// app is one routed app.
type app struct {
	route pipeline.Route
	file  file
}

var _ pipeline.Router = (*Router)(nil)

// Open checks the options and asks the nginx binary for its version. It changes
// nothing on the machine; Start does.
func Open(o Options) (*Router, error) {
	if o.Mode != "managed" && o.Mode != "system" {
		return nil, fmt.Errorf("nginx mode %q: want managed or system", o.Mode)
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	b, err := inspect(ctx, o.Binary)
	if err != nil {
		return nil, err
	}
	r := &Router{
		opts: o, turn: make(chan struct{}, 1), live: map[string]app{}, proven: map[string]app{},
		house: house{Managed: o.Mode == "managed", Prefix: "naru", Silence: headerTimeout, build: b},
	}
	if r.house.Listen, err = checkListen(o.Listen); err != nil {
		return nil, err
	}
	if len(r.house.Listen) == 0 {
		return nil, errors.New("nginx needs at least one address to listen on")
	}
	if r.house.Workers = o.Workers; o.Workers <= 0 {
		r.house.Workers = min(runtime.NumCPU(), 8)
	}
	return r, r.place()
}

// place decides where every file is.
func (r *Router) place() error {
	dir, err := filepath.Abs(r.opts.Dir)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", r.opts.Dir, err)
	}
	run, err := filepath.Abs(r.opts.Run)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", r.opts.Run, err)
	}
	h := &r.house
	r.dir = dir
	h.Apps = filepath.Join(dir, "apps")
	r.placeWork()
	if h.Managed {
		r.main = filepath.Join(dir, "nginx.conf")
		r.conf = r.main
		r.pid = filepath.Join(run, "nginx.pid")
		h.Status, h.Verify = filepath.Join(run, "status.sock"), filepath.Join(run, "verify.sock")
		h.User = workerUser()
		h.Files = fileLimit()
	} else if err := r.placeSystem(); err != nil {
		return err
	}
	h.Pid = r.pid
	for _, p := range []string{dir, run, h.Work, r.main, r.conf, r.pid, h.Status, h.Verify} {
		if err := checkPath("path", p); err != nil {
			return err
		}
	}
	if n := max(len(h.Status), len(h.Verify)); n > maxSocketPath {
		return fmt.Errorf("run directory %s: its sockets' paths have %d bytes, the system allows %d", run, n, maxSocketPath)
	}
	return nil
}

// placeWork is repeated by Start, when all directories exist.
func (r *Router) placeWork() {
	r.house.Work = workDirs(r.dir)[0]
	if shut(r.dir) {
		r.house.Work = workDirs(r.dir)[1]
	}
	r.house.Flags = filepath.Join(r.house.Work, "drain")
}

// placeSystem keeps the sockets beside the machine's pid file: that directory
// exists whenever nginx starts, also at boot before the agent, and a configuration
// whose sockets cannot be made would keep the whole nginx down.
func (r *Router) placeSystem() error {
	o, b := r.opts, r.house.build
	if o.SystemInclude == "" {
		return errors.New("nginx system mode needs the path of an include file")
	}
	if r.conf = o.SystemConf; r.conf == "" {
		r.conf = b.confPath
	}
	text, err := os.ReadFile(r.conf)
	if err != nil {
		return fmt.Errorf("read the machine's nginx configuration: %w", err)
	}
	if r.pid = o.SystemPid; r.pid == "" {
		r.pid = b.pidPath
		if m := pidDirective().FindSubmatch(text); m != nil {
			r.pid = string(m[1])
		}
	}
	if r.main, err = filepath.Abs(o.SystemInclude); err != nil {
		return fmt.Errorf("resolve %s: %w", o.SystemInclude, err)
	}
	h := &r.house
	h.Prefix = "naru_" + short(r.dir)
	beside := filepath.Join(filepath.Dir(r.pid), strings.ReplaceAll(h.Prefix, "_", "-"))
	h.Status, h.Verify = beside+"-status.sock", beside+"-verify.sock"
	return nil
}

// Route makes route the truth for its app and returns when it is proven. A route
// without Domains takes the app out of nginx.
func (r *Router) Route(ctx context.Context, route pipeline.Route) error {
	route, err := checkRoute(route)
	if err != nil {
		return err
	}
	c := &change{app: app{route: route}, done: make(chan struct{})}
	if len(route.Domains) > 0 {
		if c.file, err = r.house.renderApp(route); err != nil {
			return err
		}
	}
	if r.isProven(ctx, c) {
		return nil
	}
	r.enqueue(c)
	select {
	case r.turn <- struct{}{}:
		// Others may wait for the same batch, so it does not end with this ctx.
		r.runBatch(context.WithoutCancel(ctx))
		r.giveTurn()
	case <-c.done:
	case <-ctx.Done():
		if r.dequeue(c) {
			return fmt.Errorf("route %s: %w", route.App, ctx.Err())
		}
	}
	<-c.done
	if c.err != nil {
		return fmt.Errorf("route %s: %w", route.App, c.err)
	}
	return nil
}

func (r *Router) takeTurn(ctx context.Context) error {
	select {
	case r.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Router) giveTurn() { <-r.turn }

// isProven is true when nginx really runs what c wants: the files may be right
// and the process a different one.
func (r *Router) isProven(ctx context.Context, c *change) bool {
	r.mu.Lock()
	now, ok := r.proven[c.route.App]
	waiting := len(r.queue) > 0
	r.mu.Unlock()
	if waiting || now.file.gen != c.file.gen {
		return false
	}
	if !ok { // to be removed, and not there
		return true
	}
	return r.loadedGen(ctx, c.route.App) == c.file.gen
}

// Routes returns what is routed now, by app.
func (r *Router) Routes() map[string]pipeline.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string]pipeline.Route, len(r.proven))
	for name, a := range r.proven {
		all[name] = a.route
	}
	return all
}

// AccessLog is the file to which nginx writes one JSON object per request:
// time, app, method, host, path (without query), status, bytes, duration, client,
// upstream, upstream_status, upstream_duration, request. It is renamed to
// access.log.1 when it has grown to 64 MiB. Valid after Start.
func (r *Router) AccessLog() string { return filepath.Join(r.house.Work, "log", "access.log") }

// routed returns the app that routes to one of addrs.
func (r *Router) routed(addrs map[netip.AddrPort]bool) (string, netip.AddrPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, a := range r.proven {
		for _, s := range a.route.Servers {
			if addrs[s] {
				return name, s, true
			}
		}
	}
	return "", netip.AddrPort{}, false
}

// publish shows the proven routes to readers. The turn is held.
func (r *Router) publish() {
	shown := make(map[string]app, len(r.live))
	for name, a := range r.live {
		shown[name] = a
	}
	r.mu.Lock()
	r.proven = shown
	r.mu.Unlock()
}

// tick is how often a condition of another process is looked at.
const tick = 15 * time.Millisecond

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
