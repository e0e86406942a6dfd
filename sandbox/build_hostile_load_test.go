package sandbox

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"naru/sandbox/build"
	"naru/sandbox/network"
)

// appLoad is an app in a container behind a bridge, and clients in a process of their
// own that ask it without end, as those of users do. What they feel is printed: calm
// and loaded rounds in turns, as a machine with neighbours is never calm for long.
type appLoad struct {
	client     *exec.Cmd
	say        io.WriteCloser // a line begins the next round, its end ends all
	heard      *bufio.Scanner
	calm, busy []round
	loaded     int // builds in this round
}

// round is what the clients felt of one; times are in microseconds.
type round struct {
	Requests, Failed int
	P50, P99         float64
}

const (
	loadClients = 4
	loadPause   = 10 * time.Millisecond // of each client, after each answer
	loadCalm    = 3 * time.Second
	loadBuilds  = 12 // in a loaded round
)

// serveApp is the app.
func serveApp() error {
	return http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("hello ", 200))
	}))
}

// startLoad starts the app and the clients.
func (w *hostileWorld) startLoad() *appLoad {
	w.t.Helper()
	dir := writeContext(w.t, map[string]string{"Dockerfile": "FROM busybox\nCOPY --chmod=755 server /server\n"})
	must(w.t, os.WriteFile(dir+"/server", w.self, 0o755))
	img, log, err := buildIn(w.t, w.e, build.Options{Context: dir})
	if err != nil {
		w.t.Fatalf("%v\n%s", err, log)
	}
	c, err := w.e.Run(w.t.Context(), ContainerConfig{Image: img.ID.String(), Args: []string{"/server"}, Env: []string{hostileServer + "=1"}, Network: network.Default, Memory: 256 << 20}, Stdio{})
	must(w.t, err)
	url := "http://" + net.JoinHostPort(c.Address.String(), "8080")
	eventually(w.t, "the app answers", func() bool {
		resp, err := http.Get(url)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
	http.DefaultClient.CloseIdleConnections()
	l := &appLoad{client: exec.Command("/proc/self/exe")}
	l.client.Env = append(os.Environ(), hostileClient+"="+url)
	l.client.Stderr = os.Stderr
	l.say, err = l.client.StdinPipe()
	must(w.t, err)
	out, err := l.client.StdoutPipe()
	must(w.t, err)
	l.heard = bufio.NewScanner(out)
	must(w.t, l.client.Start())
	l.beCalm(w.t)
	return l
}

// built counts a build, and tells whether it ends a round: a calm one comes next.
func (l *appLoad) built(t *testing.T) bool {
	if l.loaded++; l.loaded < loadBuilds {
		return false
	}
	l.busy, l.loaded = append(l.busy, l.next(t)), 0
	return true
}

func (l *appLoad) beCalm(t *testing.T) {
	l.next(t) // what was before is in no round
	time.Sleep(loadCalm)
	l.calm = append(l.calm, l.next(t))
}

// next ends a round and begins another.
func (l *appLoad) next(t *testing.T) (r round) {
	t.Helper()
	_, err := fmt.Fprintln(l.say)
	must(t, err)
	if !l.heard.Scan() {
		t.Fatalf("the clients ended: %v", l.heard.Err())
	}
	must(t, json.Unmarshal(l.heard.Bytes(), &r))
	return r
}

// report prints what the app's users felt; a failed request is a failed test.
func (l *appLoad) report(t *testing.T) {
	must(t, l.say.Close())
	must(t, l.client.Wait())
	median := func(list []round, of func(round) float64) float64 {
		var all []float64
		for _, r := range list {
			all = append(all, of(r))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	p50, p99 := func(r round) float64 { return r.P50 }, func(r round) float64 { return r.P99 }
	for _, p := range []struct {
		name string
		list []round
	}{{"calm", l.calm}, {"beside hostile builds", l.busy}} {
		requests, failed, each := 0, 0, ""
		for _, r := range p.list {
			requests, failed, each = requests+r.Requests, failed+r.Failed, each+fmt.Sprintf(" %.1f", r.P99/1000)
		}
		t.Logf("app, %s: %d requests, %d failed, medians of rounds p50 %.2f ms, p99 %.2f ms; p99 of each:%s", p.name, requests, failed, median(p.list, p50)/1000, median(p.list, p99)/1000, each)
		if failed > 0 {
			t.Errorf("%d requests failed", failed)
		}
	}
	t.Logf("p99 is %.2f times that of calm", median(l.busy, p99)/median(l.calm, p99))
}

// askApp is the clients' process.
func askApp(url string) error {
	var mu sync.Mutex
	var times []time.Duration
	failed := 0
	for range loadClients {
		go func() {
			client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
			for {
				time.Sleep(loadPause)
				start := time.Now()
				resp, err := client.Get(url)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
				mu.Lock()
				if times = append(times, time.Since(start)); err != nil || resp.StatusCode != http.StatusOK {
					failed++
				}
				mu.Unlock()
			}
		}()
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		mu.Lock()
		list, r := times, round{Requests: len(times), Failed: failed}
		times, failed = nil, 0
		mu.Unlock()
		slices.Sort(list)
		at := func(q float64) float64 {
			if len(list) == 0 {
				return 0
			}
			return float64(list[min(len(list)-1, int(q*float64(len(list))))].Microseconds())
		}
		r.P50, r.P99 = at(0.5), at(0.99)
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return err
		}
	}
	return nil
}
