package nginx

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"naru/pipeline"
)

// nobody is no app's name: asked for it, the default server answers.
const nobody = "_"

// get asks nginx on a unix socket, each time on a new connection: one that is kept
// would stay with the worker that took it.
func get(ctx context.Context, socket, host, path string) (*http.Response, []byte, error) {
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("User-Agent", "naru")
	resp, err := t.RoundTrip(req) // no redirects: the first answer is the answer
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return resp, body, err
}

// loadedGen is the gen of an app's (or the main) file as some worker has it; empty
// when there is none or nginx does not answer.
func (r *Router) loadedGen(ctx context.Context, key string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	host := key
	if key == mainName {
		host = nobody
	}
	resp, body, err := get(ctx, r.house.Status, host, "/gen")
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	if who, gen, _ := strings.Cut(string(body), " "); who == host {
		return gen
	}
	return "" // the default server answered: no such app
}

// loaded reports whether one worker each answered with the gens of all files.
func (r *Router) loaded(ctx context.Context, files []edit) bool {
	if r.loadedGen(ctx, mainName) != r.mainNow.gen {
		return false // also: it does not answer, which must not look like an app removed
	}
	for _, e := range files {
		if r.loadedGen(ctx, e.key) != e.file.gen {
			return false
		}
	}
	return true
}

// Prove sends one GET for path through nginx to the app and returns the replica
// that answered. A status from 500 up is an error, also when the app sent it.
func (r *Router) Prove(ctx context.Context, route pipeline.Route, path string) (netip.AddrPort, error) {
	var none netip.AddrPort
	route, err := checkRoute(route)
	if err != nil {
		return none, err
	}
	if len(route.Domains) == 0 {
		return none, fmt.Errorf("prove %s: it has no domain", route.App)
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	host := strings.Replace(route.Domains[0], "*", "naru-proof", 1)
	resp, _, err := get(ctx, r.house.Verify, host, path)
	if err != nil {
		return none, fmt.Errorf("prove %s: %w", route.App, err)
	}
	// With a second try there are several, the last of which answered.
	seen := resp.Header.Get("X-Naru-Upstream")
	addr, err := netip.ParseAddrPort(strings.TrimSpace(seen[strings.LastIndex(seen, ",")+1:]))
	if err != nil {
		return none, fmt.Errorf("prove %s: no replica answered (status %d)", route.App, resp.StatusCode)
	}
	if resp.StatusCode >= 500 {
		return none, fmt.Errorf("prove %s: status %d by way of %v", route.App, resp.StatusCode, addr)
	}
	return addr, nil
}
